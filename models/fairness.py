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
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from math import hypot
from typing import final

from models.disclosure import UNROUNDED, Disclosure
from models.scores import (
    LEVEL,
    NOTHING,
    Estimate,
    ScoreTable,
    base_rate,
    false_positive_rate,
    positive_predictive_value,
    selection_rate,
    true_positive_rate,
)

Levels = Mapping[str, Sequence[int]]
"""Level of one attribute -> indexes of the table's groups that belong to it."""

Rate = Callable[..., Estimate]
"""A rate of a table: called with the table, and with `disclosure` and `level` by name."""

SLIGHT = 0.02  # a difference of base rates that is called none


def demographic_parity(
    table: ScoreTable,
    levels: Levels,
    cutoff: float,
    *,
    disclosure: Disclosure = UNROUNDED,
    level: float = LEVEL,
) -> Estimate:
    """max - min over levels of P(p >= cutoff | level), in [0, 1]."""
    return largest_gap([_at(selection_rate, cutoff)], _picked(table, levels), disclosure, level)


def equal_opportunity(
    table: ScoreTable,
    levels: Levels,
    cutoff: float,
    *,
    disclosure: Disclosure = UNROUNDED,
    level: float = LEVEL,
) -> Estimate:
    """max - min over levels of P(p >= cutoff | y = 1, level), in [0, 1]; that of the false negative rate is the same."""
    return largest_gap([_at(true_positive_rate, cutoff)], _picked(table, levels), disclosure, level)


def equalized_odds(
    table: ScoreTable,
    levels: Levels,
    cutoff: float,
    *,
    disclosure: Disclosure = UNROUNDED,
    level: float = LEVEL,
) -> Estimate:
    """The larger of the true and the false positive rate's gap, in [0, 1]; nothing unless both exist."""
    rates = [_at(true_positive_rate, cutoff), _at(false_positive_rate, cutoff)]
    return largest_gap(rates, _picked(table, levels), disclosure, level)


def predictive_parity(
    table: ScoreTable,
    levels: Levels,
    cutoff: float,
    *,
    disclosure: Disclosure = UNROUNDED,
    level: float = LEVEL,
) -> Estimate:
    """max - min over levels of P(y = 1 | p >= cutoff, level), in [0, 1]."""
    return largest_gap([_at(positive_predictive_value, cutoff)], _picked(table, levels), disclosure, level)


def gaps(
    table: ScoreTable, levels: Levels, cutoff: float, *, disclosure: Disclosure = UNROUNDED
) -> dict[str, Estimate]:
    """The four gaps of one attribute, by the name they have in result.json. Each holds for all its pairs of levels."""
    return {
        "demographic_parity": demographic_parity(table, levels, cutoff, disclosure=disclosure),
        "equal_opportunity": equal_opportunity(table, levels, cutoff, disclosure=disclosure),
        "equalized_odds": equalized_odds(table, levels, cutoff, disclosure=disclosure),
        "predictive_parity": predictive_parity(table, levels, cutoff, disclosure=disclosure),
    }


def between(
    tables: Sequence[ScoreTable], cutoff: float, *, disclosure: Disclosure = UNROUNDED
) -> dict[str, Estimate]:
    """How far agencies are apart: the largest less the smallest of each rate, whoever has it.

    tables: one for each agency. Each interval holds for all pairs of agencies at once, not over the five rates.
    """
    rates: dict[str, Rate] = {
        "selection_rate": _at(selection_rate, cutoff),
        "tpr": _at(true_positive_rate, cutoff),
        "fpr": _at(false_positive_rate, cutoff),
        "ppv": _at(positive_predictive_value, cutoff),
        "base_rate": base_rate,
    }
    return {name: largest_gap([rate], tables, disclosure, LEVEL) for name, rate in rates.items()}


@final
@dataclass(frozen=True)
class Conflict:
    """Whether criteria exclude each other for an attribute, because its levels' base rates differ.

    Where base rates differ and the model is not perfect, predictive parity and equal error rates cannot both hold
    (Chouldechova, Big Data 2017), nor can calibration and equal mean scores of those with and without the outcome
    (Kleinberg, Mullainathan & Raghavan, ITCS 2017). conflict: True where they differ beyond chance and noise; False
    where they differ by less than `SLIGHT`; None where neither can be told.
    """

    base_rate_gap: Estimate
    conflict: bool | None


def conflict(table: ScoreTable, levels: Levels, *, disclosure: Disclosure = UNROUNDED) -> Conflict:
    """The gap in base rates of an attribute's levels (its interval holds for all pairs at once), and what follows."""
    gap = largest_gap([base_rate], _picked(table, levels), disclosure, LEVEL)
    if not gap.publishable or gap.low is None or gap.high is None:
        return Conflict(gap, None)
    return Conflict(gap, False if gap.high < SLIGHT else True if gap.low > 0 else None)


def worst_gap(
    table: ScoreTable, margins: Mapping[str, Levels], cutoff: float, *, disclosure: Disclosure = UNROUNDED
) -> tuple[str | None, Estimate]:
    """The attribute with the largest equalized odds gap, and the largest gap over attributes.

    Looking for the worst is one more choice that chance can win, so the interval holds for all attributes at
    once and is wider than the attribute's own. Without a publishable gap: (None, nothing).
    """
    level = 1 - (1 - LEVEL) / max(len(margins), 1)
    found = {
        name: equalized_odds(table, levels, cutoff, disclosure=disclosure, level=level)
        for name, levels in margins.items()
    }
    shown = {name: gap for name, gap in found.items() if gap.publishable}
    if not shown:
        return None, NOTHING
    return max(shown, key=lambda name: shown[name].value or 0.0), _largest(list(shown.values()))


def largest_gap(
    rates: Sequence[Rate], tables: Sequence[ScoreTable], disclosure: Disclosure, level: float
) -> Estimate:
    """The largest of the rates' gaps over disjoint `tables`, with one interval for all rates and pairs at once."""
    shown = [[one for one in tables if rate(one, disclosure=disclosure).publishable] for rate in rates]
    if any(len(found) < 2 for found in shown):
        return NOTHING
    pairs = sum(len(found) * (len(found) - 1) // 2 for found in shown)
    strict = 1 - (1 - level) / pairs
    return _largest(
        [
            _gap([rate(one, disclosure=disclosure, level=strict) for one in found])
            for rate, found in zip(rates, shown, strict=True)
        ]
    )


def _at(rate: Callable[..., Estimate], cutoff: float) -> Rate:
    return partial(rate, cutoff=cutoff)


def _picked(table: ScoreTable, levels: Levels) -> list[ScoreTable]:
    return [table.pick(groups) for groups in levels.values()]


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
