"""What a predictor that says the same of everybody would score: the yardstick that any model must beat.

It treats all groups alike: its gaps are 0, and it is of no use. Gaps therefore mean nothing without it beside them.
"""

from models.benefit import net_benefit_all
from models.disclosure import UNROUNDED, Disclosure
from models.scores import NOTHING, Estimate, Noised, ScoreTable, base_rate, classes, proportion


def constant(
    table: ScoreTable, cutoff: float, *, disclosure: Disclosure = UNROUNDED
) -> dict[str, dict[str, Estimate]]:
    """`constant` of result.json, for the people in `table`.

    nobody, everybody: accuracy, tpr, fpr and net benefit (at `cutoff`) of flagging none or all. The last two are
    known without data, but are shown only where there are people to speak of.
    base_rate: the Brier score of saying the base rate r of everybody, r (1 - r).
    """
    negatives, positives = classes(table)
    always, never = (_known(each, negatives + positives, disclosure) for each in (1.0, 0.0))
    return {
        "nobody": {
            "accuracy": proportion(negatives, positives, disclosure=disclosure),
            "tpr": never,
            "fpr": never,
            "net_benefit": never,
        },
        "everybody": {
            "accuracy": base_rate(table, disclosure=disclosure),
            "tpr": always,
            "fpr": always,
            "net_benefit": net_benefit_all(table, cutoff, disclosure=disclosure),
        },
        "base_rate": {"brier": _brier(base_rate(table, disclosure=disclosure))},
    }


def _known(value: float, people: Noised, disclosure: Disclosure) -> Estimate:
    return Estimate(value, value, value, people.reaches(disclosure.minimum))


def _brier(rate: Estimate) -> Estimate:
    """r (1 - r), which rises to 1/2 and falls after: its interval covers wherever that of r does."""
    if rate.value is None or rate.low is None or rate.high is None:
        return NOTHING
    value, *ends = (r * (1 - r) for r in (rate.value, rate.low, rate.high))
    return Estimate(value, min(ends), 0.25 if rate.low <= 0.5 <= rate.high else max(ends), rate.publishable)
