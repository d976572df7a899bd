"""Counts by group, score bin and outcome, and the rates that follow from their sum.

A `ScoreTable` is all that an evaluation says about people. Tables add up: over agencies, over groups, over
releases. A rate is a function of the *sum* and nobody averages averages.

Every count may carry Gaussian noise of known variance, added by the agency for privacy. A rate of noised
counts is returned as an `Estimate` whose interval covers both kinds of uncertainty, the sample's and the
noise's. With p = A / n, n = A + B and noise variances vA and vB,

    Var(p) = p (1 - p) / n + [(1 - p)^2 vA + p^2 vB] / n^2.

`proportion` inverts the test that belongs to this variance: Wilson's interval when there is no noise,
Fieller's when there is nothing else.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Self, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.disclosure import UNROUNDED, Disclosure

FloatArray = NDArray[np.float64]

LEVEL = 0.95  # of every interval, two-sided


@final
@dataclass(frozen=True)
class Estimate:
    """A value with its interval. `None` where there is nothing to compute it from: never NaN, never infinite.

    `publishable` needs three things: the noised count behind the value (a rate's denominator) is at least the
    minimum of the disclosure rule, it is at least three standard deviations of its own noise, and the interval says
    something (it is bounded, and narrower than the whole range of a probability). Otherwise the value is a handful
    of people, or noise: it may be computed with, and is in nothing that is written.
    """

    value: float | None
    low: float | None
    high: float | None
    publishable: bool

    def to_dict(self) -> dict[str, float | bool | None]:
        """The form in result.json: the one way out, which no number takes that may not be published."""
        ends = (self.value, self.low, self.high) if self.publishable else (None, None, None)
        return {**dict(zip(("value", "low", "high"), ends, strict=True)), "publishable": self.publishable}


NOTHING = Estimate(None, None, None, False)


@final
@dataclass(frozen=True)
class Noised:
    """A count of people, noise included, and the variance of that noise. Independent counts add."""

    count: float
    variance: float

    def __add__(self, other: "Noised") -> "Noised":
        return Noised(self.count + other.count, self.variance + other.variance)

    def reaches(self, minimum: float) -> bool:
        """At least `minimum`, and not mistakable for noise: at least three of its standard deviations."""
        return self.count >= max(minimum, 3 * math.sqrt(self.variance))

    def rounded(self, disclosure: Disclosure) -> "Noised":
        """The count as it may be published, and the variance of its noise and of the rounding."""
        return Noised(disclosure.rounded(self.count), self.variance + disclosure.variance)


@final
@dataclass(frozen=True, eq=False, init=False)
class ScoreTable:
    """People by (group, score bin, outcome).

    edges:    (B+1,) strictly increasing from 0 to 1; bin b holds edges[b] <= p < edges[b+1], the last also 1
    counts:   (G, B, 2) people with outcome 0 and 1; with noise neither whole nor positive
    variance: (G, B, 2) or what broadcasts to it: variance of the noise in each count, 0 without noise
    """

    edges: FloatArray
    counts: FloatArray
    variance: FloatArray

    def __init__(self, edges: ArrayLike, counts: ArrayLike, variance: ArrayLike = 0.0) -> None:
        edges, counts = _checked_edges(edges), np.array(counts, np.float64)
        if counts.ndim != 3 or counts.shape[1:] != (edges.size - 1, 2):
            raise ValueError(f"counts must have shape (groups, {edges.size - 1}, 2), got {counts.shape}")
        try:
            noise = np.broadcast_to(np.array(variance, np.float64), counts.shape)
        except ValueError:
            raise ValueError(f"variance must broadcast to {counts.shape}, got {np.shape(variance)}") from None
        if not np.isfinite(counts).all():
            raise ValueError("counts must be finite")
        if not np.isfinite(noise).all() or (noise < 0).any():
            raise ValueError("variance must be finite and not negative")
        counts.flags.writeable = False
        for name, value in (("edges", edges), ("counts", counts), ("variance", noise)):
            object.__setattr__(self, name, value)

    @classmethod
    def zeros(cls, edges: ArrayLike, n_groups: int) -> Self:
        """The table of nobody: the zero of `+`."""
        return cls(edges, np.zeros((n_groups, np.size(edges) - 1, 2)))

    def __add__(self, other: "ScoreTable") -> "ScoreTable":
        """The table of both sets of people; edges and number of groups must agree."""
        if not np.array_equal(self.edges, other.edges):
            raise ValueError("tables with different bin edges cannot be added")
        if self.counts.shape != other.counts.shape:
            raise ValueError("tables with different numbers of groups cannot be added")
        return ScoreTable(self.edges, self.counts + other.counts, self.variance + other.variance)

    def pick(self, groups: Sequence[int]) -> "ScoreTable":
        """One group (G' = 1) that holds everyone in `groups`, indexes into the first axis."""
        index = np.asarray(groups, np.intp)
        if index.size and (index.min() < 0 or index.max() >= len(self.counts)):
            raise ValueError(f"groups must be between 0 and {len(self.counts) - 1}, got {list(groups)}")
        if len(set(index.tolist())) != index.size:
            raise ValueError(f"a group may be picked once, got {list(groups)}")
        return ScoreTable(
            self.edges, self.counts[index].sum(0, keepdims=True), self.variance[index].sum(0, keepdims=True)
        )

    def total(self) -> "ScoreTable":
        """One group that holds everyone."""
        return self.pick(range(len(self.counts)))


def _checked_edges(edges: ArrayLike) -> FloatArray:
    values = np.array(edges, np.float64)
    if values.ndim != 1 or values.size < 2:
        raise ValueError(f"edges must be a list of at least two numbers, got shape {values.shape}")
    if values[0] != 0 or values[-1] != 1 or not (np.diff(values) > 0).all():
        raise ValueError("edges must increase strictly from 0 to 1")
    values.flags.writeable = False
    return values


def default_edges(bins: int = 20, cutoffs: Sequence[float] = (0.5,)) -> FloatArray:
    """Edges of `bins` score bins, shape (bins + 1,): 0, logit-spaced from 0.02 to 0.98, and 1.

    Each cutoff takes the place of the edge nearest to it, so that rates at the cutoffs are exact.
    """
    wanted = sorted(set(cutoffs))
    if bins < 2 or len(wanted) > bins - 1:
        raise ValueError(f"{len(wanted)} cutoffs need at least {max(len(wanted), 1) + 1} bins, got {bins}")
    if wanted and not 0 < wanted[0] <= wanted[-1] < 1:
        raise ValueError(f"cutoffs must be between 0 and 1, got {wanted}")
    inner = 1 / (1 + np.exp(-np.linspace(-1, 1, bins - 1) * math.log(0.98 / 0.02)))
    free = np.ones(bins - 1, bool)
    for cutoff in wanted:
        nearest = np.where(free, np.abs(inner - cutoff), np.inf).argmin()
        inner[nearest], free[nearest] = cutoff, False
    return np.concatenate([[0.0], np.sort(inner), [1.0]])


def tally(edges: ArrayLike, group: ArrayLike, score: ArrayLike, y: ArrayLike, n_groups: int) -> ScoreTable:
    """Exact counts of people.

    group: (n,) whole numbers from 0 to n_groups - 1;  score: (n,) in [0, 1];  y: (n,) of 0 and 1
    ValueError otherwise, NaN included. Nothing here is private yet: the result must not leave the agency
    without noise.
    """
    edges = _checked_edges(edges)
    groups, scores, outcomes = np.asarray(group), np.asarray(score, np.float64), np.asarray(y, np.float64)
    if not (groups.shape == scores.shape == outcomes.shape) or scores.ndim != 1:
        raise ValueError("group, score and y must have the same shape (n,)")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError("every score must be a number between 0 and 1 (NaN is not)")
    if not ((outcomes == 0) | (outcomes == 1)).all():
        raise ValueError("every y must be 0 or 1")
    if scores.size and not np.issubdtype(groups.dtype, np.integer):
        raise ValueError(f"group must be whole numbers, got {groups.dtype}")
    if not ((groups >= 0) & (groups < n_groups)).all():
        raise ValueError(f"every group must be between 0 and {n_groups - 1}")
    bins = edges.size - 1
    place = np.minimum(np.searchsorted(edges, scores, side="right") - 1, bins - 1)
    cell = (groups.astype(np.intp) * bins + place) * 2 + outcomes.astype(np.intp)
    return ScoreTable(edges, np.bincount(cell, minlength=n_groups * bins * 2).reshape(n_groups, bins, 2))


# Rates. Each is that of everyone in the table; `table.pick(...)` first for one group.


@final
@dataclass(frozen=True)
class Confusion:
    """People by (score at or above the cutoff, outcome)."""

    tp: Noised
    fp: Noised
    fn: Noised
    tn: Noised


def confusion(table: ScoreTable, cutoff: float) -> Confusion:
    """Confusion counts of everyone in `table`. Selected is p >= cutoff; the cutoff must be an edge."""
    first = cutoff_bin(table.edges, cutoff)
    counts, noise = table.counts.sum(0), table.variance.sum(0)
    (fn_tn, tp_fp), (v_unselected, v_selected) = (
        (cells[:first].sum(0).tolist(), cells[first:].sum(0).tolist()) for cells in (counts, noise)
    )
    return Confusion(
        tp=Noised(tp_fp[1], v_selected[1]),
        fp=Noised(tp_fp[0], v_selected[0]),
        fn=Noised(fn_tn[1], v_unselected[1]),
        tn=Noised(fn_tn[0], v_unselected[0]),
    )


def cutoff_bin(edges: FloatArray, cutoff: float) -> int:
    """The bin that starts at `cutoff`; ValueError when none does.

    A cutoff of 1 is refused as well: the last bin does not tell who is exactly 1.
    """
    starts = edges[:-1]
    nearest = int(np.abs(starts - cutoff).argmin())
    if not abs(starts[nearest] - cutoff) < 1e-12:
        raise ValueError(f"cutoff {cutoff} is not a bin edge; the nearest edge is {starts[nearest]:.6g}")
    return nearest


def people(table: ScoreTable, *, disclosure: Disclosure = UNROUNDED, level: float = LEVEL) -> Estimate:
    """How many people are in the table, >= 0; the interval is that of the noise and of the rounding."""
    everyone = Noised(float(table.counts.sum()), float(table.variance.sum()))
    found = everyone.rounded(disclosure)
    margin = quantile(level) * math.sqrt(found.variance)
    ends = disclosure.outward(found.count - margin, found.count + margin)
    low, value, high = (max(float(count), 0.0) for count in (ends[0], found.count, ends[1]))
    return Estimate(value, low, high, everyone.reaches(disclosure.minimum))


def base_rate(table: ScoreTable, *, disclosure: Disclosure = UNROUNDED, level: float = LEVEL) -> Estimate:
    """P(y = 1)."""
    negatives, positives = classes(table)
    return proportion(positives, negatives, disclosure=disclosure, level=level)


def classes(table: ScoreTable) -> tuple[Noised, Noised]:
    """Everyone with outcome 0, and with outcome 1."""
    counts, noise = table.counts.sum((0, 1)).tolist(), table.variance.sum((0, 1)).tolist()
    return Noised(counts[0], noise[0]), Noised(counts[1], noise[1])


def selection_rate(
    table: ScoreTable, cutoff: float, *, disclosure: Disclosure = UNROUNDED, level: float = LEVEL
) -> Estimate:
    """P(p >= cutoff)."""
    c = confusion(table, cutoff)
    return proportion(c.tp + c.fp, c.fn + c.tn, disclosure=disclosure, level=level)


def true_positive_rate(
    table: ScoreTable, cutoff: float, *, disclosure: Disclosure = UNROUNDED, level: float = LEVEL
) -> Estimate:
    """P(p >= cutoff | y = 1), also called recall or sensitivity."""
    c = confusion(table, cutoff)
    return proportion(c.tp, c.fn, disclosure=disclosure, level=level)


def false_negative_rate(
    table: ScoreTable, cutoff: float, *, disclosure: Disclosure = UNROUNDED, level: float = LEVEL
) -> Estimate:
    """P(p < cutoff | y = 1): those whom the model misses."""
    c = confusion(table, cutoff)
    return proportion(c.fn, c.tp, disclosure=disclosure, level=level)


def false_positive_rate(
    table: ScoreTable, cutoff: float, *, disclosure: Disclosure = UNROUNDED, level: float = LEVEL
) -> Estimate:
    """P(p >= cutoff | y = 0)."""
    c = confusion(table, cutoff)
    return proportion(c.fp, c.tn, disclosure=disclosure, level=level)


def positive_predictive_value(
    table: ScoreTable, cutoff: float, *, disclosure: Disclosure = UNROUNDED, level: float = LEVEL
) -> Estimate:
    """P(y = 1 | p >= cutoff), also called precision."""
    c = confusion(table, cutoff)
    return proportion(c.tp, c.fp, disclosure=disclosure, level=level)


def accuracy(
    table: ScoreTable, cutoff: float, *, disclosure: Disclosure = UNROUNDED, level: float = LEVEL
) -> Estimate:
    """P((p >= cutoff) = y)."""
    c = confusion(table, cutoff)
    return proportion(c.tp + c.tn, c.fp + c.fn, disclosure=disclosure, level=level)


def proportion(
    hits: Noised, misses: Noised, *, disclosure: Disclosure = UNROUNDED, level: float = LEVEL
) -> Estimate:
    """p = A / n, n = A + B, with the p for which (A - p n)^2 <= z^2 [n p (1 - p) + (1 - p)^2 vA + p^2 vB].

    Wilson (JASA 1927) with the noise's variance beside the sample's; its first-order form is Var(p) above.
    A below 0 or above n counts as 0 or n. When n cannot be told from noise every p fits: [0, 1], not
    publishable. No people (n <= 0): nothing. Both counts are rounded first as the disclosure rule has it, and the
    variance of that is part of vA and vB: a published rate times its count is a rounded count.
    """
    everyone = hits + misses
    hits, misses = hits.rounded(disclosure), misses.rounded(disclosure)
    n = hits.count + misses.count
    if not n > 0:
        return NOTHING
    a, z2 = min(max(hits.count, 0.0), n), quantile(level) ** 2
    low, high = between_roots(
        n * n + z2 * (n - hits.variance - misses.variance),
        a * n + z2 * (n / 2 - hits.variance),
        a * a - z2 * hits.variance,
    )
    low, high = max(low, 0.0), min(high, 1.0)
    value = a / n
    shown = everyone.reaches(disclosure.minimum) and high - low < 1
    return Estimate(value, min(low, value), max(high, value), shown)


def between_roots(square: float, half_linear: float, constant: float) -> tuple[float, float]:
    """Where square x^2 - 2 half_linear x + constant <= 0; everywhere if the parabola opens downwards."""
    if not square > 0:
        return -math.inf, math.inf
    root = math.sqrt(max(half_linear**2 - square * constant, 0.0))
    return (half_linear - root) / square, (half_linear + root) / square


@lru_cache(maxsize=64)
def quantile(level: float) -> float:
    """Two-sided normal quantile: 1.96 for 0.95."""
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    return NormalDist().inv_cdf(0.5 + level / 2)


def auc(table: ScoreTable, *, disclosure: Disclosure = UNROUNDED, level: float = LEVEL) -> Estimate:
    """Area under the ROC curve of the bins: P(a positive's bin is above a negative's) + P(same bin) / 2.

    The AUC of the people's exact scores is within `auc_bound` of it; the interval is about the binned one.
    With F_b the share of negatives below bin b and S_b that of positives above it (ties count half),

        Var_sample = sum_b n+_b (F_b - A)^2 / [N+ (N+ - 1)] + sum_b n-_b (S_b - A)^2 / [N- (N- - 1)]
        Var_noise  = sum_b v+_b (F_b - A)^2 / N+^2          + sum_b v-_b (S_b - A)^2 / N-^2:

    DeLong et al. (Biometrics 1988) and the delta method. As in `proportion` the interval holds the areas t
    with (A - t)^2 <= z^2 [t (1 - t) Var_sample / (A (1 - A)) + Var_noise], so it stays wide near 0 and 1.
    """
    (negative, positive), (v_negative, v_positive) = table.counts.sum(0).T, table.variance.sum(0).T
    negatives, positives = classes(table)
    n_negative, n_positive = negatives.count, positives.count
    if not (n_negative > 0 and n_positive > 0):
        return NOTHING
    below = (np.cumsum(negative) - negative / 2) / n_negative
    above = (n_positive - np.cumsum(positive) + positive / 2) / n_positive
    area = float(positive @ below) / n_positive
    of_positive, of_negative = (below - area) ** 2 / n_positive, (above - area) ** 2 / n_negative
    sample = float(np.maximum(positive, 0) @ of_positive) / max(n_positive - 1, 1)
    sample += float(np.maximum(negative, 0) @ of_negative) / max(n_negative - 1, 1)
    noise = float(v_positive @ of_positive / n_positive + v_negative @ of_negative / n_negative)
    area, fewest, z2 = min(max(area, 0.0), 1.0), min(n_negative, n_positive), quantile(level) ** 2
    per_person = sample / (area * (1 - area)) if 0 < area < 1 and sample > 0 else 1 / fewest
    low, high = between_roots(1 + z2 * per_person, area + z2 * per_person / 2, area * area - z2 * noise)
    low, high = min(max(low, 0.0), area), max(min(high, 1.0), area)
    shown = negatives.reaches(disclosure.minimum) and positives.reaches(disclosure.minimum) and high - low < 1
    return Estimate(*disclosure.coarse(area, low, high), shown)


def spread(table: ScoreTable) -> FloatArray:
    """Variance of everyone's counts by bin, shape (B, 2): sample's (the count itself) plus noise's."""
    return np.asarray(np.maximum(table.counts.sum(0), 0.0) + table.variance.sum(0))


def auc_bound(table: ScoreTable, *, disclosure: Disclosure = UNROUNDED) -> Estimate:
    """How far the exact scores' AUC can be from the binned one: sum_b n+_b n-_b / (2 N+ N-), in [0, 1/2].

    Pairs in different bins are ordered by their bins; a pair in one bin was counted as half and is 0 or 1.
    It has no interval; with noise it estimates the bound, without bias, rather than being one.
    """
    negative, positive = table.counts.sum(0).T
    negatives, positives = classes(table)
    if not (negatives.count > 0 and positives.count > 0):
        return NOTHING
    value = min(max(float(negative @ positive) / (2 * negatives.count * positives.count), 0.0), 0.5)
    shown = negatives.reaches(disclosure.minimum) and positives.reaches(disclosure.minimum)
    return Estimate(disclosure.coarse(value, value, value)[0], None, None, shown)
