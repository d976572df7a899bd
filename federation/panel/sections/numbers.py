"""Numbers of a result as the texts that a reader sees, and the one gate between a result and the page.

Nothing is computed here that is not a way of saying a number of the result: a rate as people of 1,000, an ε as the
odds that it allows.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from federation.panel.svg import Mark

Json = Mapping[str, Any]
Unit = Literal["percent", "points", "decimal", "count", "thousand", "benefit"]

HIDDEN = "not shown"
GONE = "not computed"
UNMEASURED = "not measured"
# name in result.json -> (name here, what it says, unit)
MEASURES: Mapping[str, tuple[str, str, Unit]] = {
    "auc": ("Ranking", "share of pairs in the right order; 0.5 is a coin, 1 is perfect (AUC)", "decimal"),
    "auc_bound": (
        "Rounding in the ranking",
        "how far the ranking may be off, because scores are counted in bands",
        "decimal",
    ),
    "brier": (
        "Distance from the truth",
        "mean squared distance between score and outcome; 0 is perfect (Brier)",
        "decimal",
    ),
    "log_loss": (
        "Surprise",
        "how surprised the model is by what happens; 0 is perfect (log loss)",
        "decimal",
    ),
    "observed_expected": (
        "Observed over expected",
        "outcomes that happened for each one expected; 1 is perfect (O/E)",
        "decimal",
    ),
    "ece": (
        "Calibration error",
        "how far scores are from the observed share, on average; 0 is perfect (ECE)",
        "decimal",
    ),
    "base_rate": ("Had the outcome", "share of all people (base rate)", "percent"),
    "selection_rate": ("Flagged", "share of all people (selection rate)", "percent"),
    "tpr": ("Found", "share flagged, of those who had the outcome (TPR)", "percent"),
    "fnr": ("Missed", "share not flagged, of those who had the outcome (FNR)", "percent"),
    "fpr": ("Wrongly flagged", "share flagged, of those who did not have it (FPR)", "percent"),
    "ppv": ("Right if flagged", "share with the outcome, of those flagged (PPV)", "percent"),
    "accuracy": (
        "Right either way",
        "share of all people rightly flagged or rightly left (accuracy)",
        "percent",
    ),
    "net_benefit": (
        "Worth",
        "rightly flagged less the price of wrongly flagged, for each person (net benefit)",
        "decimal",
    ),
    "net_benefit_all": ("Worth of flagging everybody", "the same, if everybody were flagged", "decimal"),
    "net_benefit_gain": (
        "Worth over simple rules",
        "the same, beyond the better of flagging everybody and nobody",
        "decimal",
    ),
    "people": ("People counted", "with noise, where there is privacy", "count"),
}


@dataclass(frozen=True)
class Cell:
    """A number as the reader sees it. `hidden`: there is no number to see, and `text` says so."""

    text: str
    interval: str = ""
    hidden: bool = False


def shown(estimate: Json | None) -> Mark | None:
    """The one gate between a result and the page: an estimate that may be published, or None."""
    if not isinstance(estimate, Mapping) or estimate.get("publishable") is not True:
        return None
    return mark_of(estimate)


def mark_of(estimate: Json) -> Mark | None:
    """Value and ends of what a person published before, or of what `shown` let through."""
    if not real(estimate.get("value")):
        return None
    low, high = (float(estimate[k]) if real(estimate.get(k)) else None for k in ("low", "high"))
    return Mark(float(estimate["value"]), low, high)


def cell(estimate: Json | None, unit: Unit, gone: str = GONE) -> Cell:
    """An estimate as text with its interval, if it may be shown. gone: what is said where there is none."""
    mark = shown(estimate)
    if mark is None:
        kept = isinstance(estimate, Mapping) and estimate.get("publishable") is not True
        return Cell(HIDDEN if kept else gone, hidden=True)
    return of_mark(mark, unit)


def of_mark(mark: Mark, unit: Unit) -> Cell:
    """A value that may be shown, as text with its interval."""
    if mark.low is None or mark.high is None or mark.low == mark.value == mark.high:
        return Cell(say(mark.value, unit))
    low, high = say(mark.low, unit, bare=True), say(mark.high, unit, bare=True)
    between = unit in ("thousand", "benefit")
    return Cell(say(mark.value, unit), f"between {low} and {high}" if between else f"{low} to {high}")


def real(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def say(value: float, unit: Unit, bare: bool = False) -> str:
    """A number as text. bare: without the sign of its unit. thousand: people of 1,000; benefit: those, with a sign."""
    if unit == "count":
        return f"{max(value, 0):,.0f}"
    if unit == "thousand":
        return f"{1000 * min(max(value, 0), 1):,.0f}"
    if unit == "benefit":
        worth = round(1000 * value, 1)
        return "0" if worth == 0 else f"{worth:+,.{0 if abs(worth) >= 100 else 1}f}".replace("-", "−")
    if unit == "decimal":
        return f"{value:.3f}"
    return f"{100 * value:.1f}" + ("" if bare else "%" if unit == "percent" else " points")


def number(value: Any, form: str = "g", gone: str = "not given") -> str:
    """A plain number of the settings as text."""
    return f"{value:{form}}" if real(value) else gone


def table(levels: Mapping[str, Json], names: Sequence[str], unit: Unit | None = None) -> dict[str, Any]:
    """A row of cells for each level; in people of 1,000 and the like where `unit` says so."""
    rows = [
        (level, [cell(table.get(name), unit or MEASURES[name][2]) for name in names])
        for level, table in levels.items()
    ]
    return {"head": [MEASURES[name][0] for name in names], "rows": rows}


def tables(found: Any) -> dict[str, Json]:
    """Name -> table, without what is no table."""
    return {name: table or {} for name, table in found.items()} if isinstance(found, Mapping) else {}


def is_noise(mark: Mark) -> bool:
    """Whether the interval of a difference includes 0."""
    return mark.low is not None and mark.low <= 0 and (mark.high is None or mark.high >= 0)


def reading(mark: Mark | None) -> str:
    """What a difference says, in words."""
    return "" if mark is None else "cannot be told from noise" if is_noise(mark) else "more than noise"


def epsilon(value: Any) -> str:
    """ε to two places; a run without privacy has none to give."""
    return number(value, ".2f", gone="no limit")


def certainty(value: Any) -> str:
    """What ε lets an onlooker reach from an even guess, out of 100: 100 / (1 + exp(-ε)), rounded up."""
    if not real(value):
        return "100 in 100"
    reached = math.ceil(1000 / (1 + math.exp(-value)) - 1e-9) / 10
    return "more than 99.9 in 100" if reached > 99.9 else f"{reached:.1f} in 100"


def of_thousand(overall: Json) -> dict[str, int] | None:
    """1,000 people as found, missed, wrongly flagged and rightly left; they add up. None if one may not be shown."""
    rates = [shown(overall.get(name)) for name in ("base_rate", "tpr", "fpr")]
    if None in rates:
        return None
    base, found, wrong = (min(max(rate.value, 0.0), 1.0) for rate in rates if rate is not None)
    exact = [
        1000 * base * found,
        1000 * base * (1 - found),
        1000 * (1 - base) * wrong,
        1000 * (1 - base) * (1 - wrong),
    ]
    whole = [math.floor(part) for part in exact]
    for at in sorted(range(4), key=lambda i: whole[i] - exact[i])[: 1000 - sum(whole)]:
        whole[at] += 1
    names = ("found", "missed", "wrong", "left")
    return dict(zip(names, whole, strict=True)) | {"flagged": whole[0] + whole[2], "had": whole[0] + whole[1]}


def hundred(mark: Mark) -> Cell:
    """A share as a whole number of 100."""
    if mark.low is None or mark.high is None:
        return Cell(f"{100 * mark.value:.0f}")
    return Cell(f"{100 * mark.value:.0f}", f"{100 * mark.low:.0f} to {100 * mark.high:.0f}")


def join(names: Iterable[str]) -> str:
    """Names as a list in words."""
    *most, last = list(names) or [""]
    return f"{', '.join(most)} and {last}" if most else last


def sentence(words: str) -> str:
    """With a capital letter, and without the dot at its end."""
    return (words[:1].upper() + words[1:]).rstrip(".")


def given(value: Any) -> str:
    """A text of the result, or that it is not given."""
    return "not given" if value is None or value == "" else str(value)
