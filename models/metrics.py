"""Everything that a report says about a model at one checkpoint, from the agencies' score tables.

The tables are added first and turned into numbers afterwards. The result is plain JSON: floats, and None
where there is nothing to compute. A number that may not be shown is still in it, with `publishable` False.
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

from models import benefit, calibration, fairness, scores
from models.scores import MINIMUM, Estimate, ScoreTable


def summarise(
    tables: Mapping[str, ScoreTable],
    margins: Mapping[str, Mapping[str, Sequence[int]]],
    cutoff: float,
    minimum: float = MINIMUM,
) -> dict[str, Any]:
    """METRICS of result.json (docs: schema 1).

    tables:  agency -> its table; same edges and groups everywhere, at least one
    margins: attribute -> level -> indexes of the groups that belong to it
    cutoff:  people with a score at or above it are selected; one of the edges
    minimum: the smallest noised count behind a publishable number
    """
    if not tables:
        raise ValueError("there is no score table to summarise: no agency sent one")
    everyone = reduce(add, tables.values())
    attribute, worst = fairness.worst_gap(everyone, margins, cutoff, minimum=minimum)
    return {
        "overall": _json(describe(everyone, cutoff, minimum)),
        "agencies": {name: _json(describe(table, cutoff, minimum)) for name, table in tables.items()},
        "groups": {
            name: {level: _json(describe(everyone.pick(at), cutoff, minimum)) for level, at in levels.items()}
            for name, levels in margins.items()
        },
        "gaps": {
            name: _json(fairness.gaps(everyone, levels, cutoff, minimum=minimum))
            for name, levels in margins.items()
        },
        "worst_gap": {"attribute": attribute, "gap": "equalized_odds", **worst.to_dict()},
        "reliability": [
            {"low": low, "high": high, "mean_score": centre, "observed": observed.to_dict()}
            for low, high, centre, observed in calibration.reliability(everyone, minimum=minimum)
        ],
        "cutoff": float(cutoff),
    }


def describe(table: ScoreTable, cutoff: float, minimum: float = MINIMUM) -> dict[str, Estimate]:
    """Every number about everyone in the table, by the name it has in result.json."""
    return {
        "people": scores.people(table, minimum=minimum),
        "base_rate": scores.base_rate(table, minimum=minimum),
        "auc": scores.auc(table, minimum=minimum),
        "auc_bound": scores.auc_bound(table, minimum=minimum),
        "brier": calibration.brier(table, minimum=minimum),
        "log_loss": calibration.log_loss(table, minimum=minimum),
        "observed_expected": calibration.observed_expected(table, minimum=minimum),
        "ece": calibration.calibration_error(table, minimum=minimum),
        "selection_rate": scores.selection_rate(table, cutoff, minimum=minimum),
        "tpr": scores.true_positive_rate(table, cutoff, minimum=minimum),
        "fpr": scores.false_positive_rate(table, cutoff, minimum=minimum),
        "ppv": scores.positive_predictive_value(table, cutoff, minimum=minimum),
        "accuracy": scores.accuracy(table, cutoff, minimum=minimum),
        "net_benefit": benefit.net_benefit(table, cutoff, minimum=minimum),
        "net_benefit_all": benefit.net_benefit_all(table, cutoff, minimum=minimum),
        "net_benefit_gain": benefit.net_benefit_gain(table, cutoff, minimum=minimum),
    }


def _json(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, float | bool | None]]:
    return {name: estimate.to_dict() for name, estimate in estimates.items()}
