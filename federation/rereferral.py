"""What brings a model back before its panel: sentences of a decision, of which a machine can measure some.

    THRESHOLD = WHAT ("below" | "above") NUMBER
    WHAT      = MEASURE | MEASURE "of" ATTRIBUTE "=" LEVEL | MEASURE "at agency" NAME | "gap" GAP "of" ATTRIBUTE

as in `AUC below 0.70`, `tpr of sex=female below 50%`, `selection_rate at agency north above 0.3`,
`gap equalized_odds of race above 0.15`, `people below 500`. Capitals do not matter, and a measure may have spaces in place
of `_`. A decision keeps the sentence as it was written; what does not read as a threshold is judged by people.

A threshold is due where the number itself crosses it, whatever its interval: what may be noise is looked at by people
rather than passed over, and is said to be so.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from models.scores import NOTHING

Json = Mapping[str, Any]
Side = Literal["below", "above"]
Verdict = Literal["due", "not due", "cannot be told", "judged by people"]

SHARES: Mapping[str, str] = {  # names in `models.metrics.describe`, from 0 to 1
    "auc": "The ranking (AUC)",
    "brier": "The distance from the truth (Brier)",
    "ece": "The calibration error (ECE)",
    "base_rate": "The share who had the outcome (base rate)",
    "selection_rate": "The share flagged (selection rate)",
    "tpr": "The share found of those who had the outcome (true positive rate)",
    "fpr": "The share wrongly flagged of those who did not have the outcome (false positive rate)",
    "fnr": "The share missed of those who had the outcome (false negative rate)",
    "ppv": "The share with the outcome of those flagged (positive predictive value)",
    "accuracy": "The share rightly flagged or rightly left (accuracy)",
}
NUMBERS: Mapping[str, str] = {
    "people": "The number of people counted",
    "observed_expected": "The number of outcomes for each one expected (observed over expected)",
    "log_loss": "The surprise (log loss)",
    "net_benefit": "The net benefit",
    "net_benefit_gain": "The net benefit over the better of flagging everybody and flagging nobody",
}
GAPS: Mapping[str, str] = {
    "demographic_parity": "The gap in how many are flagged (demographic parity)",
    "equal_opportunity": "The gap in how many are found of those who had the outcome (equal opportunity)",
    "equalized_odds": "The gap in who is found or wrongly flagged, whichever is larger (equalised odds)",
    "predictive_parity": "The gap in how often a flag is right (predictive parity)",
}
LONGEST = 300  # characters of a threshold
THRESHOLD = re.compile(
    r"(?P<what>.+?) (?P<side>below|above) (?P<number>-?(?:\d+(?:\.\d+)?|\.\d+))(?P<percent> ?%)?\.?",
    re.IGNORECASE,
)
WHAT = re.compile(
    r"(?P<gap>gap )?(?P<measure>[a-z][a-z _]*?)"
    r"(?: at agency (?P<agency>\S+)| of (?P<attribute>[^=]+?)(?: ?= ?(?P<level>.+))?)?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Threshold:
    """`measure` crosses `number`: of everybody, of a group (`attribute`, `level`), at an `agency`, or a gap between groups.

    A gap has an attribute and no level.
    """

    measure: str
    side: Side
    number: float
    attribute: str | None = None
    level: str | None = None
    agency: str | None = None

    def __str__(self) -> str:
        return f"{self.what} {self.side} {self.number:.10g}"

    @property
    def is_gap(self) -> bool:
        return self.measure in GAPS

    @property
    def what(self) -> str:
        """What is measured, as it is written."""
        if self.is_gap:
            return f"gap {self.measure} of {self.attribute}"
        return f"{self.measure}{self._where}"

    @property
    def words(self) -> str:
        """What is measured, in words that begin a sentence."""
        names = {**SHARES, **NUMBERS, **GAPS}
        return f"{names[self.measure]}{f' of {self.attribute}' if self.is_gap else self._where}"

    @property
    def _where(self) -> str:
        if self.agency is not None:
            return f" at agency {self.agency}"
        return "" if self.attribute is None else f" of {self.attribute}={self.level}"

    def crossed_by(self, value: float) -> bool:
        """Whether `value` is on the far side; at the number itself it is not."""
        return value < self.number if self.side == "below" else value > self.number

    def of(self, metrics: Json) -> Json | None:
        """Its estimate in METRICS of a result; None where that has none."""
        if self.agency is not None:
            table = _at(metrics, "agencies", self.agency)
        elif self.is_gap:
            table = _at(metrics, "gaps", str(self.attribute))
        elif self.attribute is not None:
            table = _at(metrics, "groups", self.attribute, str(self.level))
        else:
            table = _at(metrics, "overall")
        found = _at(table, self.measure)
        return found if isinstance(found, Mapping) else None


def read(text: str) -> Threshold | None:
    """The threshold that `text` is; None where it is a sentence for people.

    A number that its measure cannot have (`AUC below 70`) is no threshold either.
    """
    whole = THRESHOLD.fullmatch(" ".join(text.split())) if len(text) <= LONGEST else None
    what = None if whole is None else WHAT.fullmatch(whole["what"])
    if whole is None or what is None:
        return None
    measure = what["measure"].casefold().replace(" ", "_")
    is_gap, share = what["gap"] is not None, measure in SHARES
    known = measure in GAPS if is_gap else share or measure in NUMBERS
    placed = (what["attribute"] is not None, what["level"] is not None)
    if not known or placed not in ([(True, False)] if is_gap else [(False, False), (True, True)]):
        return None
    number = float(whole["number"]) / (100 if whole["percent"] else 1)
    if ((is_gap or share) and not 0 <= number <= 1) or (whole["percent"] and not (is_gap or share)):
        return None
    return Threshold(
        measure=measure,
        side="below" if whole["side"].casefold() == "below" else "above",
        number=number,
        attribute=what["attribute"],
        level=what["level"],
        agency=what["agency"],
    )


def _at(value: object, *names: str) -> Any:
    """What lies at `names` in nested mappings, where capitals differ too if only one name is meant; None where nothing does."""
    for name in names:
        if not isinstance(value, Mapping):
            return None
        alike = [key for key in value if str(key).casefold() == name.casefold()]
        value = value[name] if name in value else value[alike[0]] if len(alike) == 1 else None
    return value


# --- what was found ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """One sentence of a decision held against METRICS. `may_be_noise`: the interval holds the other verdict too."""

    text: str
    verdict: Verdict
    sentence: str
    threshold: Threshold | None = None
    estimate: Json | None = None
    may_be_noise: bool = False


def judge(text: str, metrics: Json) -> Found:
    """Whether `text`, of a decision, says that the model with these METRICS goes back to the panel."""
    threshold = read(text)
    if threshold is None:
        return Found(text, "judged by people", "No number that is measured says whether this is so.")
    estimate = threshold.of(metrics)
    if estimate is None:
        return Found(text, "cannot be told", f"{threshold.words} is not among what was measured.", threshold)
    ends = [estimate.get(name) for name in ("value", "low", "high")]
    if estimate.get("publishable") is not True or not all(isinstance(end, int | float) for end in ends):
        says = f"{threshold.words} cannot be told from noise, or is of too few people."
        return Found(
            text,
            "cannot be told",
            says,
            threshold,
            NOTHING.to_dict(),
        )
    value, low, high = map(float, ends)  # type: ignore[arg-type]
    due = threshold.crossed_by(value)
    favourable, unfavourable = (high, low) if threshold.side == "below" else (low, high)
    noise = threshold.crossed_by(favourable if due else unfavourable) != due
    return Found(
        text,
        "due" if due else "not due",
        _says(threshold, value, low, high, due, noise),
        threshold,
        dict(estimate),
        noise,
    )


def _says(threshold: Threshold, value: float, low: float, high: float, due: bool, noise: bool) -> str:
    """With so many places that no number reads as if it were on the other side."""
    numbers, first = (value, low, high), 0 if threshold.measure == "people" else 3
    reads = (
        d
        for d in range(first, 12)
        if all(threshold.crossed_by(round(n, d)) == threshold.crossed_by(n) for n in numbers)
    )
    places = next(reads, 12)
    shown, least, most = (f"{round(n, places) + 0.0:,.{places}f}" for n in numbers)
    crosses = f"{threshold.side} {threshold.number:.10g}"
    if noise:
        crosses += f" (this may be noise: the interval reaches {'back over' if due else 'past'} it)"
    return f"{threshold.words} is {shown} ({least} to {most}), {'' if due else 'not '}{crosses}."


def due(found: Sequence[Found]) -> bool | None:
    """Whether the model goes back to the panel; None where what could be measured does not tell."""
    measured = [each.verdict for each in found if each.threshold is not None]
    if "due" in measured:
        return True
    return None if not measured or "cannot be told" in measured else False


def conclusion(found: Sequence[Found]) -> str:
    """One sentence or two on all that was found."""
    by = {
        verdict: [each for each in found if each.verdict == verdict]
        for verdict in ("due", "cannot be told", "judged by people")
    }
    is_due = due(found)
    if not found:
        return "No decision says what brings this model back, so nothing says whether re-referral is due."
    if is_due:
        says = f"Re-referral is due because {_listed(by['due'])}."
    elif is_due is False:
        says = "Re-referral is not due: no threshold that can be measured is crossed."
    elif by["cannot be told"]:
        says = f"Whether re-referral is due cannot be told: {_listed(by['cannot be told'])}."
    else:
        says = "Whether re-referral is due is for people to judge: none of the thresholds can be measured."
    if by["judged by people"] and any(each.threshold is not None for each in found):
        says += " Still for people to judge: " + "; ".join(each.text for each in by["judged by people"]) + "."
    return says


def _listed(found: Sequence[Found]) -> str:
    """Their sentences as parts of one."""
    return "; ".join(f"{each.sentence[:1].lower()}{each.sentence[1:].removesuffix('.')}" for each in found)
