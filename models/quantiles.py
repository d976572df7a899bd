"""Quantiles of a number whose bounds nobody knows, from one noised vector whose cells the protocol fixes.

The bins are public and the same for every column: one for 0, `PER_OCTAVE` to each doubling of the size on
either side of it, from 2^-20 to 2^40, and two for what lies beyond. A person is in one of them, or in the last
cell of all if there is no number. So nothing about the bins was learned from data.

What leaves is not the histogram h itself. Quantiles are read off its running totals M h (M: ones on and below
the diagonal), and totals of noised counts would have the noise of hundreds of empty bins in them. With the root
R of M, R R = M, the agency sends R h / |R|, where |R| is the length of R's longest column, and whoever receives
it multiplies by |R| R: the totals come back, each with noise of at most |R|^2 = 3.3 sigma in place of
sqrt(963) = 31 sigma, at the same sensitivity. R is the Toeplitz matrix of f_0 = 1, f_k = f_{k-1} (2k - 1) / 2k
(Fichtenberger, Henzinger, Upadhyay, Constant matters, ICML 2023, arXiv:2202.11205). A finer grid costs almost
nothing: |R|^2 grows with log(bins) / pi.

Everything below the noise is post-processing: any number of quantiles of one table costs no more than one.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from functools import cached_property, lru_cache
from typing import final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.scores import LEVEL, NOTHING, Estimate, Noised, proportion
from models.scores import quantile as normal_quantile

FloatArray = NDArray[np.float64]

PER_OCTAVE = 8
SMALLEST, LARGEST = -20, 40  # powers of 2: what is closer to 0 counts as 0, what is larger only as larger
_SIZES = 2.0 ** (np.arange(SMALLEST * PER_OCTAVE, LARGEST * PER_OCTAVE + 1) / PER_OCTAVE)
EDGES: FloatArray = np.concatenate([-_SIZES[::-1], _SIZES])
EDGES.flags.writeable = False
BINS = len(EDGES) + 1  # bin b holds EDGES[b - 1] <= x < EDGES[b]
ZERO = len(_SIZES)  # the bin of 0
CELLS = BINS + 1  # the last cell: no number

# What leaves is whole: steps of 1 / STEPS people. One person moves the rounded sums by at most SENSITIVITY steps (L2):
# STEPS; sqrt(CELLS) for rounding both tables to the nearest step; and 2^-14 STEPS for what float64 does to `weighted`.
# That is off by at most 2^-43 of the sums (964 roundings each), whose length is at most the number of people, in each
# of both tables: 2^-42 x 2^28 people.
STEPS = 2**15  # >= 1000 sqrt(CELLS), so rounding costs at most a thousandth
SENSITIVITY = STEPS * (1 + 2.0**-14) + math.sqrt(CELLS)
TAILS = (0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1)  # where the noise hides the tail that was asked for


def tally(values: ArrayLike) -> FloatArray:
    """One value per person (n,) -> how many are in each cell, (CELLS,). NaN is no number, ±inf is beyond the grid."""
    values = np.asarray(values, np.float64)
    known = values[~np.isnan(values)]
    counts = np.bincount(np.searchsorted(EDGES, known, side="right"), minlength=CELLS).astype(np.float64)
    counts[-1] = values.size - known.size
    return counts


def variance_of(sigma: float) -> float:
    """Variance of the noise on one cell, people squared, of a table whose noise multiplier is `sigma`.

    It is 0.2 % above sigma^2, as one person moves a table by SENSITIVITY / STEPS people once it is rounded.
    """
    return (sigma * SENSITIVITY / STEPS) ** 2


def weighted(counts: FloatArray) -> FloatArray:
    """R h / |R| of the bins and the last cell as it is, (CELLS,): what leaves, once noise is on it.

    Linear, and one person more or less moves it by at most 1 in L2, whatever the value.
    """
    return np.append(_root() @ counts[:BINS] / _norm(), counts[-1])


@final
@dataclass(frozen=True, eq=False)
class ValueTable:
    """`weighted` counts of people with independent Gaussian noise of `variance` (people squared) on each cell.

    sums: (CELLS,). Tables of agencies add up: the sums and the variances.
    """

    sums: FloatArray
    variance: float

    def __post_init__(self) -> None:
        if self.sums.shape != (CELLS,) or not np.isfinite(self.sums).all():
            raise ValueError(f"sums must be {CELLS} finite numbers, got shape {self.sums.shape}")
        if not 0 <= self.variance < math.inf:
            raise ValueError(f"variance must be finite and not negative, got {self.variance}")

    def __add__(self, other: "ValueTable") -> "ValueTable":
        return ValueTable(self.sums + other.sums, self.variance + other.variance)

    @cached_property
    def totals(self) -> FloatArray:
        """People with a number below the upper edge of each bin, (BINS,): unbiased, neither whole nor increasing."""
        return np.asarray(_norm() * (_root() @ self.sums[:BINS]))

    @cached_property
    def fitted(self) -> FloatArray:
        """The increasing totals that are nearest to `totals`, (BINS,), within 0 and the number of people."""
        return np.clip(increasing(self.totals), 0.0, max(self.count, 0.0))

    @property
    def count(self) -> float:
        """People with a number, noise included."""
        return float(self.totals[-1])

    def std(self, rows: FloatArray) -> FloatArray:
        """Std of the noise in combinations of totals: rows (..., BINS) of `_root()` -> (...)."""
        return np.asarray(math.sqrt(self.variance) * _norm() * np.linalg.norm(rows, axis=-1))


def people(table: ValueTable, level: float = LEVEL) -> Estimate:
    """How many there are, with a number or without; the interval is of the noise."""
    number = _count(table) + Noised(float(table.sums[-1]), table.variance)
    half = normal_quantile(level) * math.sqrt(number.variance)
    least, most = max(number.count - half, 0.0), max(number.count + half, 0.0)
    return Estimate(max(number.count, 0.0), least, most, number.reaches(0))


def missing(table: ValueTable, level: float = LEVEL) -> Estimate:
    """The share of people without a number, in [0, 1]."""
    return proportion(Noised(float(table.sums[-1]), table.variance), _count(table), level=level)


def quantile(table: ValueTable, share: float, level: float = LEVEL) -> Estimate:
    """The smallest value that at least `share`, (0, 1), of the people who have a number do not exceed.

    The interval covers that value *of the people in the table* about `level` of the time (tests measure it: a bit
    more): it is about noise and bins, not about other people. With D_b = fitted_b - share x count the value is in
    the first bin where D_b >= 0, so bins where D is below 0, or was at least 0 already one bin before, by more
    than its noise, are left out (the inversion of Woodruff, JASA 1952). None: no bound within the grid.

    Publishable where both ends are bounded, and on either side of the value are at least three standard
    deviations of the noise in people: a thinner tail is not to be told from noise. NOTHING where the whole
    count is not.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be in (0, 1), got {share}")
    if not (table.count > 0 and _count(table).reaches(0)):
        return NOTHING
    std = table.std(_root() - share * _root()[-1])
    excess, margin = table.fitted - share * table.count, normal_quantile(level) * std
    first = int(np.argmax(excess + margin >= 0))
    last = max(first, int(np.flatnonzero(np.append(True, excess[:-1] - margin[:-1] < 0))[-1]))
    low, high, value = _lower_edge(first), _upper_edge(last), _value_at(table, share)
    if low is None or high is None or value is None:
        return Estimate(value, low, high, False)
    tail = Noised(min(share, 1 - share) * table.count, float(std[first : last + 1].max()) ** 2)
    return Estimate(min(max(value, low), high), low, high, tail.reaches(0))


@final
@dataclass(frozen=True)
class Bounds:
    """`min` and `max` for a contract's number, and the share of people outside: about, and at most."""

    min: float
    max: float
    clipped: float
    clipped_at_most: float


def bounds(
    table: ValueTable, lowest: float = 0.01, highest: float = 0.99, level: float = LEVEL
) -> Bounds | None:
    """Outer ends of the intervals of the quantiles `lowest` and `highest`, to two significant digits outward.

    Too wide costs a model little, too narrow hides people's values, so the doubt is given to the width, as far
    as it does not double the value or its distance from the median. Where the noise hides so thin a tail, the
    next of `TAILS` that it does not hide. None where it hides them all, or where there is no range (nearly
    everyone has one value).
    """
    low = _end(table, _tails(lowest), level, up=False)
    high = _end(table, (1 - tail for tail in _tails(1 - highest)), level, up=True)
    if low is None or high is None:
        return None
    least, most = outward(low, up=False), outward(high, up=True)
    return Bounds(least, most, *_outside(table, least, most, level)) if least < most else None


def outward(value: float, *, up: bool) -> float:
    """`value` to two significant digits, up or down: 97.3 -> 98 or 97."""
    return float(Context(prec=2, rounding=ROUND_CEILING if up else ROUND_FLOOR).create_decimal(repr(value)))


def increasing(values: FloatArray) -> FloatArray:
    """The increasing sequence nearest to `values` in least squares (n,): pool adjacent violators."""
    means: list[float] = []
    sizes: list[int] = []
    for value in values.tolist():
        mean, size = value, 1
        while means and means[-1] > mean:
            before, n = means.pop(), sizes.pop()
            mean, size = (mean * size + before * n) / (size + n), size + n
        means.append(mean)
        sizes.append(size)
    return np.repeat(np.asarray(means, np.float64), sizes)


# --- the root of the running totals -------------------------------------------------------------------


@lru_cache(maxsize=1)
def _root() -> FloatArray:
    """R, (BINS, BINS), lower triangular, R R = M."""
    k = np.arange(1, BINS)
    f = np.cumprod(np.append(1.0, (2 * k - 1) / (2 * k)))
    root = np.tril(f[np.abs(np.subtract.outer(np.arange(BINS), np.arange(BINS)))])
    root.flags.writeable = False
    return root


@lru_cache(maxsize=1)
def _norm() -> float:
    """|R|: the length of its first column, the longest."""
    return float(np.linalg.norm(_root()[:, 0]))


def _count(table: ValueTable) -> Noised:
    return Noised(table.count, float(table.std(_root()[-1])) ** 2)


# --- values and bins ----------------------------------------------------------------------------------


def _lower_edge(b: int) -> float | None:
    return None if b == 0 else 0.0 if b == ZERO else float(EDGES[b - 1])


def _upper_edge(b: int) -> float | None:
    return None if b == BINS - 1 else 0.0 if b == ZERO else float(EDGES[b])


def _value_at(table: ValueTable, share: float) -> float | None:
    """Where `fitted` reaches the share, evenly by ratio within a bin; None beyond the grid."""
    target = share * table.count
    b = min(int(np.searchsorted(table.fitted, target)), BINS - 1)
    low, high = _lower_edge(b), _upper_edge(b)
    if low is None or high is None or b == ZERO:
        return 0.0 if b == ZERO else None
    before = float(table.fitted[b - 1])
    part = (target - before) / (float(table.fitted[b]) - before)
    return float(low * (high / low) ** part)


def _tails(share: float) -> Iterator[float]:
    yield share
    yield from (tail for tail in TAILS if tail > share)


def _end(table: ValueTable, shares: Iterable[float], level: float, *, up: bool) -> float | None:
    """The outer end of the first quantile whose interval is narrow enough to be a bound."""
    middle = quantile(table, 0.5, level).value
    for found in (quantile(table, share, level) for share in shares):
        value, end = found.value, found.high if up else found.low
        if not found.publishable or value is None or end is None or middle is None:
            continue
        if abs(end - value) <= max(abs(value - middle), abs(value)):
            return end
    return None


def _outside(table: ValueTable, least: float, most: float, level: float) -> tuple[float, float]:
    """The share of people below `least` or above `most`: about, and at most (whole bins, and the noise)."""
    inside = _below(table, most, at_ends=1.0) - _below(table, least, at_ends=0.0)
    root = np.vstack([_root(), np.zeros(BINS)])  # row -1: no bin at all
    totals = np.append(table.totals, 0.0)
    below = int(np.searchsorted(EDGES, least)) - (least == 0)  # the last bin with anyone below `least`
    above = int(np.searchsorted(EDGES, most, side="right")) - (most != 0)  # the last with nobody above `most`
    share = min(max((totals[below] + table.count - totals[above]) / table.count, 0.0), 1.0)
    noise = float(table.std(root[below] - root[above] + (1 - share) * _root()[-1])) / table.count
    about = min(max(1 - inside / table.count, 0.0), 1.0)
    return about, float(max(about, min(share + normal_quantile(level) * noise, 1.0)))


def _below(table: ValueTable, x: float, *, at_ends: float) -> float:
    """People below x by `fitted`, evenly by ratio within its bin; `at_ends` of those at 0 or beyond the grid."""
    b = int(np.searchsorted(EDGES, x, side="right"))
    before = float(table.fitted[b - 1]) if b else 0.0
    low, high = _lower_edge(b), _upper_edge(b)
    part = math.log(x / low) / math.log(high / low) if low and high else at_ends
    return before + part * (float(table.fitted[b]) - before)
