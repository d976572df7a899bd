"""`analysis` of result.json: what other thresholds and a recalibration of each agency would change. No score uses it."""

from collections.abc import Mapping
from functools import reduce
from operator import add
from typing import Any

from models import calibration
from models.calibration import recalibration
from models.disclosure import DECIMALS, Disclosure
from models.fairness import Levels
from models.scores import NOTHING, Estimate, ScoreTable, people
from models.thresholds import group_thresholds, recalibrated_table

LABEL = "analysis only, not used in any score"

Tables = Mapping[str, ScoreTable]


def analysis(
    tune: Tables,
    test: Tables,
    margins: Mapping[str, Levels],
    cutoff: float,
    disclosure: Disclosure,
    *,
    per_agency: bool,
) -> dict[str, Any] | None:
    """Fitted on the `tune` tables, judged on the `test` tables of the same weights; None where either is missing.

    per_agency: False where the tables are of sums: then no agency can be recalibrated by itself.
    """
    if not (tune and test):
        return None
    fitted_on, judged_on = (reduce(add, tables.values()) for tables in (tune, test))
    return {
        "label": LABEL,
        "recalibration": {
            name: _recalibration(tune[name], test[name], disclosure) for name in tune if name in test
        }
        if per_agency
        else {},
        "group_thresholds": {
            name: _thresholds(fitted_on, judged_on, levels, cutoff, disclosure)
            for name, levels in margins.items()
        },
    }


def _recalibration(tune: ScoreTable, test: ScoreTable, disclosure: Disclosure) -> dict[str, Any]:
    """Intercept and slope are None, and nothing is known after, where the tune table says too little."""
    found = recalibration(tune) if people(tune, disclosure=disclosure).publishable else None
    after = None if found is None else recalibrated_table(test, found)
    known = found is not None and after is not None
    return {
        "intercept": round(found.intercept, DECIMALS) if found is not None and known else None,
        "slope": round(found.slope, DECIMALS) if found is not None and known else None,
        "before": _calibration(test, disclosure),
        "after": _calibration(after, disclosure),
    }


def _calibration(table: ScoreTable | None, disclosure: Disclosure) -> dict[str, Any]:
    measures = {
        "observed_expected": calibration.observed_expected,
        "ece": calibration.calibration_error,
        "brier": calibration.brier,
    }
    return {
        name: (NOTHING if table is None else measure(table, disclosure=disclosure)).to_dict()
        for name, measure in measures.items()
    }


def _thresholds(
    tune: ScoreTable, test: ScoreTable, levels: Levels, cutoff: float, disclosure: Disclosure
) -> dict[str, Any]:
    found = group_thresholds(tune, test, levels, cutoff, disclosure=disclosure)
    return {
        "target": "tpr",
        "cutoffs": found.cutoffs,
        "before": _json(found.before),
        "after": _json(found.after),
        "accuracy_before": found.accuracy_before.to_dict(),
        "accuracy_after": found.accuracy_after.to_dict(),
    }


def _json(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: estimate.to_dict() for name, estimate in estimates.items()}
