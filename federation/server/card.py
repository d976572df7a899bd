"""The scorecard of a finished run, from its noised tables: bands with observed rates, and a recalibration.

The bands and the map are chosen on tune people and the rates are measured on test people, so no number that is
shown was chosen to look good. All of it follows from what the agencies had released before: it costs no ε.
"""

from collections.abc import Mapping
from functools import reduce
from itertools import pairwise
from operator import add
from typing import Any

import numpy as np

from federation.experiment import Experiment
from federation.plan import TrainPlan
from federation.scorecard import Band, Measure, Rate, RecalibrationMap, ScoreCard
from federation.server.masked import noise_variance
from models.calibration import recalibration
from models.disclosure import DECIMALS, Disclosure
from models.scores import Estimate, ScoreTable, base_rate, people
from models.spec import ModelSpec

CUTS = (
    0.5,
    0.75,
    0.9,
    0.97,
)  # of tune people, from the lowest score: the band above is small, for short lists
NAMES = {
    1: ("everyone",),
    2: ("lower", "higher"),
    3: ("low", "middle", "high"),
    4: ("low", "middle", "high", "highest"),
    5: ("lowest", "low", "middle", "high", "highest"),
}
PERFORMANCE = ("people", "base_rate", "auc", "brier", "observed_expected", "ece")


def scoring(
    experiment: Experiment, plan: TrainPlan, measured: int, tables: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """`scoring` of result.json: what the weights after round `measured` need beside them to score with."""
    sums = {part: _sum(plan, part, measured, tables) for part in ("tune", "test")}
    tune, test = sums["tune"], sums["test"]
    rule = experiment.settings.evaluation.rule
    found = () if test is None else bands(test if tune is None else tune, test, rule)
    recalibrating = None if tune is None else recalibration_map(tune, rule)
    label = experiment.data_contract.label
    return {
        "outcome": label.description or label.column,
        "tune_fraction": plan.tune_fraction,
        "test_fraction": plan.test_fraction,
        "bands": [band.model_dump(mode="json") for band in found],
        "recalibration": None if recalibrating is None else recalibrating.model_dump(mode="json"),
    }


def score_card(result: Mapping[str, Any], weights_sha256: str) -> ScoreCard:
    """The card of the weights that `result` (result.json) is about."""
    contract, model, scored = result["contract"], result["model"], result["scoring"]
    trained = [facts for facts in result["agencies"].values() if facts["status"] == "trained"]
    same = ("run_id", "created", "fedrisk_version", "experiment", "purpose", "simulation", "plan_sha256")
    return ScoreCard(
        **{name: result[name] for name in same},
        **scored,
        contract_sha256=contract["sha256"],
        contract_name=contract["name"],
        weights_sha256=weights_sha256,
        model=ModelSpec(model["name"], tuple(model["hidden"])),
        horizon=contract["horizon"],
        kinds=tuple(sorted({facts["kind"] for facts in trained}, key=str)),
        agencies=len(trained),
        performance=_performance(result["final"]["metrics"]),
    )


def bands(tune: ScoreTable, test: ScoreTable, disclosure: Disclosure) -> tuple[Band, ...]:
    """Bands cut where `tune` has its `CUTS`, with the rates in `test`; () where not even everyone's may be shown.

    Neighbours whose rates may not be published, or are not in order, are one band: the evidence does not tell
    them apart.
    """
    at = [0, *_cuts(tune), len(test.edges) - 1]
    while True:
        rates = [base_rate(_between(test, low, high), disclosure=disclosure) for low, high in pairwise(at)]
        wrong = _cut_to_drop(rates)
        if wrong is None:
            break
        if len(rates) == 1:
            return ()
        del at[wrong]
    sizes = [
        people(_between(test, low, high), disclosure=disclosure).value or 0.0 for low, high in pairwise(at)
    ]
    everyone = max(sum(sizes), 1.0)
    return tuple(
        Band(
            name=name,
            low=float(test.edges[low]),
            high=float(test.edges[high]),
            observed=_rate(rate),
            share=size / everyone,
        )
        for name, rate, size, (low, high) in zip(NAMES[len(rates)], rates, sizes, pairwise(at), strict=True)
    )


def _cuts(tune: ScoreTable) -> list[int]:
    """The edges (by place) nearest below which `CUTS` of the people are; each once, none at the ends."""
    counts = np.maximum(tune.counts.sum((0, 2)), 0.0)
    below = np.concatenate([[0.0], np.cumsum(counts)]) / max(float(counts.sum()), 1.0)
    inner = {int(np.abs(below - cut).argmin()) for cut in CUTS}
    return sorted(inner - {0, len(below) - 1})


def _cut_to_drop(rates: list[Estimate]) -> int | None:
    """Place in the list of edges of the cut to take away; None where every band stands."""
    for i, rate in enumerate(rates):
        if not rate.publishable:
            return max(i, 1)
    for i, (lower, higher) in enumerate(pairwise(rates), start=1):
        if (lower.value or 0.0) >= (higher.value or 0.0):
            return i
    return None


def _between(table: ScoreTable, low: int, high: int) -> ScoreTable:
    """The people in the bins from `low` to before `high`, in a table of one bin."""
    cells = slice(low, high)
    return ScoreTable(
        [0.0, 1.0],
        table.counts[:, cells].sum(1, keepdims=True),
        table.variance[:, cells].sum(1, keepdims=True),
    )


def _sum(plan: TrainPlan, part: str, measured: int, tables: Mapping[str, np.ndarray]) -> ScoreTable | None:
    found = score_tables(plan, part, measured, tables)
    return reduce(add, found.values()) if found else None


def recalibration_map(tune: ScoreTable, disclosure: Disclosure) -> RecalibrationMap | None:
    """The map that `tune` fits; None where the table says too little, or of too few people to be published.

    Where counts are rounded it has few digits, for the reason that `models.disclosure` gives: `DECIMALS` places, and
    three digits of each variance, raised by a hundredth so that rounding makes no interval narrower.
    """
    found = recalibration(tune)
    if found is None or not people(tune, disclosure=disclosure).publishable:
        return None
    a, b, covariance = found.intercept, found.slope, found.covariance
    if disclosure.rounding > 1:
        (aa, ab, bb), (a, b) = covariance, (round(a, DECIMALS), round(b, DECIMALS))
        covariance = float(f"{1.01 * aa:.3g}"), float(f"{ab:.3g}"), float(f"{1.01 * bb:.3g}")
    return RecalibrationMap(intercept=a, slope=b, covariance=covariance)


def _rate(estimate: Estimate) -> Rate:
    return Rate(**{key: value for key, value in estimate.to_dict().items() if key != "publishable"})


def _performance(metrics: Mapping[str, Any] | None) -> dict[str, Measure]:
    overall = (metrics or {}).get("overall", {})
    return {
        name: Measure(**{key: overall[name][key] for key in ("value", "low", "high")})
        for name in PERFORMANCE
        if name in overall and overall[name]["publishable"]
    }


def score_tables(
    plan: TrainPlan, part: str, measured: int, tables: Mapping[str, np.ndarray]
) -> dict[str, ScoreTable]:
    """The tables of `part` for the weights after round `measured`, by agency (or sum), with their noise's variance."""
    edges, prefix = np.asarray(plan.edges), f"{part}/{measured}/"
    found = {name.removeprefix(prefix): t for name, t in sorted(tables.items()) if name.startswith(prefix)}
    return {
        whose: ScoreTable(edges, counts, np.full(counts.shape, noise_variance(plan, part, whose)))
        for whose, counts in found.items()
    }
