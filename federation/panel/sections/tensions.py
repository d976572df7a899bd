"""Section 3, what fairness costs: a predictor that says the same of everyone, criteria that conflict, analysis, training."""

from typing import Any

from federation.panel.sections.fair import GAPS
from federation.panel.sections.numbers import (
    MEASURES,
    UNMEASURED,
    Cell,
    Json,
    Unit,
    cell,
    given,
    join,
    number,
    of_mark,
    real,
    say,
    shown,
    tables,
)
from federation.panel.svg import Mark

SAME = {
    "nobody": "flags nobody",
    "everybody": "flags everybody",
    "base_rate": "gives everyone the same score, the share who had the outcome",
}
MODEL = "this model"
SAME_SCORES: tuple[tuple[str, Unit], ...] = (
    ("accuracy", "thousand"),
    ("tpr", "thousand"),
    ("fpr", "thousand"),
    ("net_benefit", "benefit"),
    ("brier", "decimal"),
)
RECALIBRATED = ("observed_expected", "ece", "brier")
TRAINING = {
    "group_multipliers": "Groups that the model served worse counted for more in the next round (group multipliers).",
    "qffl": "Agencies that the model served worse counted for more in the next round (q-FFL).",
}


def constant(metrics: Json) -> dict[str, Any] | None:
    """What a predictor would score that says the same of everyone, beside the model; None where not measured."""
    found = tables(metrics.get("constant"))
    if not found:
        return None
    named = [(MODEL, metrics.get("overall") or {})]
    named += [(words, found[name]) for name, words in SAME.items() if name in found]
    return {
        "head": [MEASURES[name][0] for name, _ in SAME_SCORES],
        "rows": [
            (words, [cell(scores.get(name), unit, "") for name, unit in SAME_SCORES])
            for words, scores in named
        ],
        "missing": join(words for name, words in SAME.items() if name not in found),
    }


def _score(words: str, scores: Json, name: str, unit: Unit) -> Cell:
    """A score of one of the rows; a dash where it has no meaning: nobody is flagged by a score, or has one by a flag."""
    applies = words == MODEL or (name == "brier") == (words == SAME["base_rate"])
    return cell(scores.get(name), unit) if applies else Cell("–")


def conflicts(metrics: Json) -> list[str]:
    """A paragraph for each attribute: which wishes cannot all be met here."""
    return [_conflict(name, found) for name, found in tables(metrics.get("conflicts")).items()]


def _conflict(name: str, found: Json) -> str:
    mark = shown(found.get("base_rate_gap"))
    if mark is None:
        differs = "How much the share of people who had the outcome differs between the groups is not shown"
    else:
        gap = of_mark(mark, "points")
        ends = f" ({gap.interval})" if gap.interval else ""
        differs = f"The share of people who had the outcome differs by {gap.text}{ends} between the groups"
    verdict = found.get("conflict")
    if verdict is True:
        says = (
            "So two wishes conflict here: that a flag, or a score, means the same in every group; and that every group "
            "has the same share found and the same share wrongly flagged. No model that makes mistakes can do both. "
            "Which of them matters more is for people to say."
        )
    elif verdict is False:
        says = (
            "That is so little that the wishes need not conflict here: a flag can mean nearly the same in every group "
            "while every group has nearly the same share found and wrongly flagged."
        )
    else:
        says = (
            "Whether it differs beyond noise cannot be told, so it is not known whether the wishes conflict here: that "
            "a flag means the same in every group, and that every group has the same share found and wrongly flagged."
        )
    return f"By {name}: {differs[0].lower()}{differs[1:]}. {says}"


# ---- what is tried for the panel's eyes only ----


def analysis(metrics: Json, result: Json) -> dict[str, Any] | None:
    """Recalibration of each agency and cutoffs for each group, before and after; None where it was not done."""
    found = metrics.get("analysis") or result.get("analysis")
    if not found:
        return None
    return {
        "label": given(found.get("label")),
        "agencies": [
            (
                name,
                number(fit.get("intercept"), ".2f"),
                number(fit.get("slope"), ".2f"),
                [
                    _either((fit.get(when) or {}).get(measure), "decimal")
                    for measure in RECALIBRATED
                    for when in ("before", "after")
                ],
            )
            for name, fit in tables(found.get("recalibration")).items()
        ],
        "agencies_head": [
            f"{MEASURES[measure][0]}, {when}" for measure in RECALIBRATED for when in ("before", "after")
        ],
        "groups": [_cutoffs(name, each) for name, each in tables(found.get("group_thresholds")).items()],
    }


def _cutoffs(name: str, found: Json) -> dict[str, Any]:
    cutoffs = found.get("cutoffs") or {}
    rows = [
        (GAPS[gap][0], cell(_at(found, "before", gap), "points"), cell(_at(found, "after", gap), "points"))
        for gap in GAPS
        if gap in {**(found.get("before") or {}), **(found.get("after") or {})}
    ]
    accuracy = (cell(found.get(f"accuracy_{when}"), "percent") for when in ("before", "after"))
    return {
        "name": name,
        "target": MEASURES[str(found["target"])][0].lower()
        if found.get("target") in MEASURES
        else "not given",
        "cutoffs": join(f"{level} {number(value, '.2f')}" for level, value in cutoffs.items()) or "not given",
        "rows": [*rows, (MEASURES["accuracy"][0], *accuracy)],
    }


def _at(found: Json, when: str, gap: str) -> Json | None:
    estimate: Json | None = (found.get(when) or {}).get(gap)
    return estimate


def _either(value: Any, unit: Unit) -> Cell:
    """An estimate through its gate, or a number that was fitted and is the same for everyone who sees it."""
    return of_mark(Mark(float(value)), unit) if real(value) else cell(value, unit)


# ---- fairness while it was trained ----


def training(result: Json) -> dict[str, Any] | None:
    """How groups or agencies were weighted round by round; None where nothing was."""
    found = result.get("fairness_training")
    if not found:
        return None
    history = list(found.get("history") or ())
    names = list(dict.fromkeys(name for record in history for name in record.get("multipliers") or {}))
    return {
        "method": TRAINING.get(str(found.get("method")), given(found.get("method"))),
        "settings": [
            (str(name).replace("_", " "), say_setting(value))
            for name, value in (found.get("settings") or {}).items()
        ],
        "names": names,
        "rows": [
            (
                given(record.get("round")),
                [number((record.get("multipliers") or {}).get(name), ".2f", UNMEASURED) for name in names],
            )
            for record in history
        ],
        "stopped": found.get("stopped"),
    }


def say_setting(value: Any) -> str:
    """A setting as a person would write it."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if real(value):
        return f"{value:g}" if isinstance(value, float) else f"{value:,}"
    if isinstance(value, list | tuple):
        return join(say_setting(each) for each in value) or "none"
    if isinstance(value, dict):
        return join(f"{name} {say_setting(each)}" for name, each in value.items()) or "none"
    return str(value)


def share(estimate: Json | None) -> Cell:
    """A share as people of 1,000."""
    return cell(estimate, "thousand", UNMEASURED) if estimate is not None else Cell(UNMEASURED, hidden=True)


def share_said(estimate: Json | None) -> str:
    """The same in a sentence: "310 of 1,000 (between 280 and 340)"."""
    mark = shown(estimate)
    if mark is None:
        return cell(estimate, "thousand", UNMEASURED).text
    ends = "" if mark.low is None or mark.high is None else f" ({of_mark(mark, 'thousand').interval})"
    return f"{say(mark.value, 'thousand')} of 1,000{ends}"
