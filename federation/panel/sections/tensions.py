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
    sentence,
    shown,
    tables,
)
from federation.panel.svg import Mark

SAME = {
    "nobody": "Flags nobody",
    "everybody": "Flags everybody",
    "base_rate": "Gives everyone the same score",
}
MODEL = "This model"
SAME_SCORES: tuple[tuple[str, Unit], ...] = (
    ("accuracy", "thousand"),
    ("tpr", "thousand"),
    ("fpr", "thousand"),
    ("net_benefit", "benefit"),
    ("brier", "decimal"),
)
WHEN = ("before", "after")
RECALIBRATED = ("observed_expected", "ece", "brier")
TRAINING = {
    "group_multipliers": "Groups that the model served worse counted for more in the next round (group multipliers).",
    "qffl": "Agencies that the model served worse counted for more in the next round (q-FFL).",
}


def constant(metrics: Json) -> dict[str, Any] | None:
    """What a predictor would score that says the same of everyone, beside the model; None where not measured."""
    found, overall = tables(metrics.get("constant")), metrics.get("overall") or {}
    if not found:
        return None
    rules = {name: found[name] for name in SAME if name in found}
    return {
        "head": [MODEL, *(SAME[name] for name in rules)],
        "rows": [
            (
                MEASURES[name][0],
                [cell(overall.get(name), unit)]
                + [_score(rule, scores, name, unit) for rule, scores in rules.items()],
            )
            for name, unit in SAME_SCORES
        ],
        "missing": join(words for name, words in SAME.items() if name not in found),
    }


def _score(rule: str, scores: Json, name: str, unit: Unit) -> Cell:
    """A dash where it has no meaning: a flag has no distance from the truth, and a score alone flags nobody."""
    applies = (name == "brier") == (rule == "base_rate")
    return cell(scores.get(name), unit) if applies else Cell("–")


def conflicts(metrics: Json) -> list[str]:
    """A paragraph for each attribute: which wishes cannot all be met here."""
    return [_conflict(name, found) for name, found in tables(metrics.get("conflicts")).items()]


def _conflict(name: str, found: Json) -> str:
    mark = shown(found.get("base_rate_gap"))
    if mark is None:
        differs = "how much the share of people who had the outcome differs between the groups is not shown"
    else:
        gap = of_mark(mark, "points")
        ends = f" ({gap.interval})" if gap.interval else ""
        differs = f"the share of people who had the outcome differs by {gap.text}{ends} between the groups"
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
    return f"By {name}: {differs}. {says}"


# ---- what is tried for the panel's eyes only ----


def analysis(metrics: Json, result: Json) -> dict[str, Any] | None:
    """Recalibration of each agency and cutoffs for each group, before and after; None where it was not done."""
    found = metrics.get("analysis") or result.get("analysis")
    if not found:
        return None
    return {
        "label": sentence(given(found.get("label"))),
        "agencies": [
            (
                name,
                number(fit.get("intercept"), ".2f", UNMEASURED),
                number(fit.get("slope"), ".2f", UNMEASURED),
                [
                    (MEASURES[measure][0], *(_either(_at(fit, when, measure), "decimal") for when in WHEN))
                    for measure in RECALIBRATED
                ],
            )
            for name, fit in tables(found.get("recalibration")).items()
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
    accuracy = (cell(found.get(f"accuracy_{when}"), "percent") for when in WHEN)
    return {
        "name": name,
        "target": MEASURES[str(found["target"])][0].lower()
        if found.get("target") in MEASURES
        else "not given",
        "cutoffs": join(f"{number(value, '.2f')} for “{level}”" for level, value in cutoffs.items())
        or "not given",
        "same": len(cutoffs) > 1 and len({number(value, ".2f") for value in cutoffs.values()}) == 1,
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
        "stopped": str(found["stopped"]).rstrip(".") if found.get("stopped") else None,
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
