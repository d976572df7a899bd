"""Gaps between groups, from counts.

A gap is the largest minus the smallest rate over the levels of one attribute, as in `fairlearn.metrics`
(https://fairlearn.org). Only levels whose rate is publishable take part; with fewer than two there is no gap
to speak of. Levels are taken as disjoint groups of people.

Both chance and privacy noise push a largest-minus-smallest UPWARDS: with equal true rates the value is above
0, the further the more levels and the fewer people. So read the interval. It holds for all pairs of levels at
once (Newcombe's square-and-add over noise-aware limits, Statistics in Medicine 1998, with Bonferroni over
pairs) and its low end stops at 0: only a low end above 0 says that the groups differ.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from math import hypot

from models.scores import (
    LEVEL,
    MINIMUM,
    NOTHING,
    Estimate,
    ScoreTable,
    false_positive_rate,
    positive_predictive_value,
    selection_rate,
    true_positive_rate,
)

Levels = Mapping[str, Sequence[int]]
"""Level of one attribute -> indexes of the table's groups that belong to it."""


def demographic_parity(
    table: ScoreTable, levels: Levels, cutoff: float, *, minimum: float = MINIMUM, level: float = LEVEL
) -> Estimate:
    """max - min over levels of P(p >= cutoff | level), in [0, 1]."""
    return _largest_gap((selection_rate,), table, levels, cutoff, minimum, level)


def equal_opportunity(
    table: ScoreTable, levels: Levels, cutoff: float, *, minimum: float = MINIMUM, level: float = LEVEL
) -> Estimate:
    """max - min over levels of P(p >= cutoff | y = 1, level), in [0, 1]."""
    return _largest_gap((true_positive_rate,), table, levels, cutoff, minimum, level)


def equalized_odds(
    table: ScoreTable, levels: Levels, cutoff: float, *, minimum: float = MINIMUM, level: float = LEVEL
) -> Estimate:
    """The larger of the true and the false positive rate's gap, in [0, 1]; nothing unless both exist."""
    return _largest_gap((true_positive_rate, false_positive_rate), table, levels, cutoff, minimum, level)


def predictive_parity(
    table: ScoreTable, levels: Levels, cutoff: float, *, minimum: float = MINIMUM, level: float = LEVEL
) -> Estimate:
    """max - min over levels of P(y = 1 | p >= cutoff, level), in [0, 1]."""
    return _largest_gap((positive_predictive_value,), table, levels, cutoff, minimum, level)


def gaps(
    table: ScoreTable, levels: Levels, cutoff: float, *, minimum: float = MINIMUM
) -> dict[str, Estimate]:
    """The four gaps of one attribute, by the name they have in result.json."""
    return {
        "demographic_parity": demographic_parity(table, levels, cutoff, minimum=minimum),
        "equal_opportunity": equal_opportunity(table, levels, cutoff, minimum=minimum),
        "equalized_odds": equalized_odds(table, levels, cutoff, minimum=minimum),
        "predictive_parity": predictive_parity(table, levels, cutoff, minimum=minimum),
    }


def worst_gap(
    table: ScoreTable, margins: Mapping[str, Levels], cutoff: float, *, minimum: float = MINIMUM
) -> tuple[str | None, Estimate]:
    """The attribute with the largest equalized odds gap, and the largest gap over attributes.

    Looking for the worst is one more choice that chance can win, so the interval holds for all attributes at
    once and is wider than the attribute's own. Without a publishable gap: (None, nothing).
    """
    level = 1 - (1 - LEVEL) / max(len(margins), 1)
    found = {
        name: equalized_odds(table, levels, cutoff, minimum=minimum, level=level)
        for name, levels in margins.items()
    }
    shown = {name: gap for name, gap in found.items() if gap.publishable}
    if not shown:
        return None, NOTHING
    return max(shown, key=lambda name: shown[name].value or 0.0), _largest(list(shown.values()))


def _largest_gap(
    rates: Sequence[Callable[..., Estimate]],
    table: ScoreTable,
    levels: Levels,
    cutoff: float,
    minimum: float,
    level: float,
) -> Estimate:
    """The largest of the rates' gaps, with one interval that holds for all rates and pairs at once."""
    picked = [table.pick(groups) for groups in levels.values()]
    shown = [[one for one in picked if rate(one, cutoff, minimum=minimum).publishable] for rate in rates]
    if any(len(tables) < 2 for tables in shown):
        return NOTHING
    pairs = sum(len(tables) * (len(tables) - 1) // 2 for tables in shown)
    strict = 1 - (1 - level) / pairs
    return _largest(
        [
            _gap([rate(one, cutoff, minimum=minimum, level=strict) for one in tables])
            for rate, tables in zip(rates, shown, strict=True)
        ]
    )


def _gap(rates: Sequence[Estimate]) -> Estimate:
    """max - min of independent rates. For each ordered pair (i, j), with d = p_i - p_j and limits l and u:

    d - sqrt((p_i - l_i)^2 + (u_j - p_j)^2)  <=  true difference  <=  d + sqrt((u_i - p_i)^2 + (p_j - l_j)^2).

    The largest true difference is at least the largest lower end and at most the largest upper end.
    """
    low, high, value = 0.0, 0.0, 0.0
    for (p, p_low, p_high), (q, q_low, q_high) in permutations(map(_limits, rates), 2):
        value = max(value, p - q)
        low = max(low, p - q - hypot(p - p_low, q_high - q))
        high = max(high, p - q + hypot(p_high - p, q - q_low))
    high = min(high, 1.0)
    return Estimate(value, low, high, high - low < 1)


def _largest(found: Sequence[Estimate]) -> Estimate:
    """The largest of several gaps whose intervals hold at once."""
    value, low, high = map(max, zip(*map(_limits, found), strict=True))
    return Estimate(value, low, high, high - low < 1)


def _limits(estimate: Estimate) -> tuple[float, float, float]:
    value, low, high = estimate.value, estimate.low, estimate.high
    if value is None or low is None or high is None:
        raise ValueError("a gap needs rates that could be computed")
    return value, low, high
