"""Everything that a report says about a model at one checkpoint, from the agencies' score tables.

The tables are added first and turned into numbers afterwards. The result is plain JSON: floats, and None where there
is nothing to compute or the disclosure rule withholds the number, with `publishable` False.

Each interval holds for itself at 95%, but for those of gaps, which hold for all pairs of groups (or agencies) at once,
and `worst_gap`, which holds for all attributes as well. Nothing holds for all numbers of a report at once.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

from models import benefit, calibration, fairness, scores
from models.capacity import Capacity
from models.constant import constant
from models.disclosure import UNROUNDED, Disclosure
from models.scores import Estimate, ScoreTable

RATES = ("selection_rate", "tpr", "fpr", "fnr", "ppv")


def summarise(
    tables: Mapping[str, ScoreTable],
    margins: Mapping[str, Mapping[str, Sequence[int]]],
    cutoff: float,
    disclosure: Disclosure = UNROUNDED,
    *,
    capacity: Capacity | None = None,
    per_agency: bool = True,
) -> dict[str, Any]:
    """METRICS of result.json (docs/result.md: schema 1).

    tables:     agency -> its table; same edges and groups everywhere, at least one
    margins:    attribute -> level -> indexes of the groups that belong to it
    cutoff:     people with a score at or above it are selected; one of the edges
    disclosure: the rule of what is published
    capacity:   a second cutoff, one of the edges, for a declared capacity
    per_agency: False where the tables are of sums, of which nobody knows what each agency's part is
    """
    if not tables:
        raise ValueError("there is no score table to summarise: no agency sent one")
    everyone, agencies = reduce(add, tables.values()), tables if per_agency else {}
    attribute, worst = fairness.worst_gap(everyone, margins, cutoff, disclosure=disclosure)
    return {
        "overall": _json(describe(everyone, cutoff, disclosure)),
        "agencies": {name: _json(describe(table, cutoff, disclosure)) for name, table in agencies.items()},
        "groups": {
            name: {
                level: _json(describe(everyone.pick(at), cutoff, disclosure)) for level, at in levels.items()
            }
            for name, levels in margins.items()
        },
        "intersections": {
            name: _json(describe(everyone.pick(at), cutoff, disclosure))
            for name, at in intersections(margins).items()
        },
        "gaps": {
            name: _json(fairness.gaps(everyone, levels, cutoff, disclosure=disclosure))
            for name, levels in margins.items()
        },
        "agency_gaps": {
            name: {
                agency: _json(fairness.gaps(table, levels, cutoff, disclosure=disclosure))
                for agency, table in agencies.items()
            }
            for name, levels in margins.items()
            if agencies
        },
        "between_agencies": _json(fairness.between(list(agencies.values()), cutoff, disclosure=disclosure))
        if agencies
        else {},
        "worst_gap": {
            "attribute": attribute if worst.publishable else None,
            "gap": "equalized_odds",
            **worst.to_dict(),
        },
        "constant": {
            name: _json(found) for name, found in constant(everyone, cutoff, disclosure=disclosure).items()
        },
        "conflicts": {name: _conflict(everyone, levels, disclosure) for name, levels in margins.items()},
        "capacity": None if capacity is None else _capacity(everyone, margins, capacity, disclosure),
        "reliability": [
            {"low": low, "high": high, "mean_score": centre, "observed": observed.to_dict()}
            for low, high, centre, observed in calibration.reliability(everyone, disclosure=disclosure)
        ],
        "cutoff": float(cutoff),
    }


def describe(table: ScoreTable, cutoff: float, disclosure: Disclosure = UNROUNDED) -> dict[str, Estimate]:
    """Every number about everyone in the table, by the name it has in result.json."""
    at_all = {
        "people": scores.people,
        "base_rate": scores.base_rate,
        "auc": scores.auc,
        "auc_bound": scores.auc_bound,
        "brier": calibration.brier,
        "log_loss": calibration.log_loss,
        "observed_expected": calibration.observed_expected,
        "ece": calibration.calibration_error,
    }
    at_cutoff = {
        "selection_rate": scores.selection_rate,
        "tpr": scores.true_positive_rate,
        "fpr": scores.false_positive_rate,
        "fnr": scores.false_negative_rate,
        "ppv": scores.positive_predictive_value,
        "accuracy": scores.accuracy,
        "net_benefit": benefit.net_benefit,
        "net_benefit_all": benefit.net_benefit_all,
        "net_benefit_gain": benefit.net_benefit_gain,
    }
    return {name: measure(table, disclosure=disclosure) for name, measure in at_all.items()} | {
        name: measure(table, cutoff, disclosure=disclosure) for name, measure in at_cutoff.items()
    }


def intersections(margins: Mapping[str, Mapping[str, Sequence[int]]]) -> dict[str, list[int]]:
    """Each combination of the attributes' levels, "sex=female & race=black" -> its group; {} with fewer than two."""
    if len(margins) < 2:
        return {}
    named: dict[int, list[str]] = {}
    for attribute, levels in margins.items():
        for level, groups in levels.items():
            for group in groups:
                named.setdefault(group, []).append(f"{attribute}={level}")
    return {" & ".join(named[group]): [group] for group in sorted(named)}


def _conflict(
    table: ScoreTable, levels: Mapping[str, Sequence[int]], disclosure: Disclosure
) -> dict[str, Any]:
    found = fairness.conflict(table, levels, disclosure=disclosure)
    return {"base_rate_gap": found.base_rate_gap.to_dict(), "conflict": found.conflict}


def _capacity(
    table: ScoreTable,
    margins: Mapping[str, Mapping[str, Sequence[int]]],
    capacity: Capacity,
    disclosure: Disclosure,
) -> dict[str, Any]:
    """Overall, and by level the rates alone: nothing else depends on the cutoff in a way that is not in them."""
    return {
        "share": capacity.share,
        "cutoff": capacity.cutoff,
        "chosen_on": capacity.chosen_on,
        "overall": _json(describe(table, capacity.cutoff, disclosure)),
        "groups": {
            name: {
                level: _json(describe(table.pick(at), capacity.cutoff, disclosure), RATES)
                for level, at in levels.items()
            }
            for name, levels in margins.items()
        },
    }


def _json(
    estimates: Mapping[str, Estimate], names: Iterable[str] | None = None
) -> dict[str, dict[str, float | bool | None]]:
    return {name: estimates[name].to_dict() for name in (estimates if names is None else names)}
