"""Many tables over few attributes from one noised vector: what to ask of people, and how to read every table back.

A table over some attributes counts people by their values of these. Tables overlap: (need, area) says all that (need)
says. So none of them is released. For each set A of attributes within an asked table, what leaves is the part of A's
table that no smaller table has, its residual

    (x_{i in A} H_i) table_A,    H_n the n - 1 Helmert contrasts of n levels: (1, -1, 0, ..), (1, 1, -2, 0, ..), ..,

whole numbers, as the contrasts are. Different residuals are orthogonal, so a table over B follows from the residuals of
all A within B in one way alone, which is the least-squares one: tables agree in every margin, and a part is never a
larger number than the noise made it twice. How much noise each residual gets is ResidualPlanner's closed form (Xiao, He,
Zhang, Kifer, An Optimal and Scalable Matrix Mechanism for Noisy Marginals under Convex Loss Functions, NeurIPS 2023,
arXiv:2305.08175, section 4): with p_A what one person costs residual A and V_A what its variance adds to the error asked
about, the variance is proportional to sqrt(p_A / V_A). No other unbiased linear release of Gaussian noise has a smaller
error over the asked tables together.

The noise is the same on every number that leaves; rows are multiplied by whole numbers instead, `Strategy.scales`. So a
release is a vector of integers of known L2 sensitivity, fit for discrete noise and for masks.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TypeVar, final

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Exact = TypeVar("Exact", np.int64, np.float64)
Attributes = tuple[str, ...]
"""Names of attributes in the order of the domain; () is everybody."""

STEPS = 2**20  # L2 sensitivity of a person with one row, in steps of the grid, but for rounding
MOST_CELLS = 200_000  # in one table, and numbers in one release
ROUNDS = 500  # of fitting
FINEST_ROUNDING = 1 + 1e-9  # float64 sums of squares may be off by less


class WorkloadError(ValueError):
    """Tables that cannot be asked for: what, which rule, what to do."""


@final
@dataclass(frozen=True, eq=False)
class Strategy:
    """What is asked of people so that `tables` can be read back, each cell with known noise.

    sizes:   attribute -> number of its levels, at least 1; the order is the order of axes everywhere
    tables:  the tables asked for
    scales:  residual -> the whole number that each of its rows is multiplied by, shape (n_i - 1 for i in it)
    rows:    how many rows one person has at most, each in a cell of its own choosing
    """

    sizes: Mapping[str, int]
    tables: tuple[Attributes, ...]
    scales: Mapping[Attributes, IntArray]
    rows: int = 1

    @cached_property
    def numbers(self) -> int:
        """How many numbers leave."""
        return sum(scale.size for scale in self.scales.values())

    @cached_property
    def sensitivity(self) -> float:
        """By how much one person moves what leaves, L2, in steps: at most, whichever values the person has.

        The longest column of all residuals together is at most the root of the sum of each one's longest; a person
        with several rows may have them all in the same cells.
        """
        longest = 0.0
        for part, scale in self.scales.items():
            squares = scale.astype(np.float64) ** 2
            for axis, name in enumerate(part):
                squares = _along(contrasts(self.sizes[name]).T.astype(np.float64) ** 2, squares, axis)
            longest += float(squares.max())
        return self.rows * math.sqrt(longest) * FINEST_ROUNDING

    def measure(self, codes: Mapping[str, IntArray], people: int) -> IntArray:
        """What leaves once noise is on it, int64 (numbers,): exact, so it must not leave without.

        codes: attribute -> each row's level, (people,), from 0
        """
        parts = []
        for part, scale in self.scales.items():
            table = count(codes, part, self.sizes, people)
            for axis, name in enumerate(part):
                table = _along(contrasts(self.sizes[name]), table, axis)
            parts.append((table * scale).ravel())
        return np.concatenate(parts)

    def read(self, released: IntArray | FloatArray, variance: float) -> "Tables":
        """The tables that a release, or the sum of several, holds.

        released: (numbers,), in steps.  variance: of the noise on each number, steps squared.
        """
        if released.shape != (self.numbers,):
            raise ValueError(f"a release must have shape ({self.numbers},), got {released.shape}")
        values, variances, start = {}, {}, 0
        for part, scale in self.scales.items():
            unit = scale * _lengths(part, self.sizes)
            values[part] = released[start : start + scale.size].reshape(scale.shape) / unit
            variances[part] = variance / unit**2
            start += scale.size
        return Tables(self, values, variances)


@final
@dataclass(frozen=True, eq=False)
class Tables:
    """Noised tables that agree with each other. `values` and `variances`: of each residual's orthonormal coordinates."""

    strategy: Strategy
    values: Mapping[Attributes, FloatArray]
    variances: Mapping[Attributes, FloatArray]

    def table(self, of: Attributes) -> FloatArray:
        """Counts over the attributes `of`, one axis each; the noise may make them negative."""
        return self._sum(of, self.values, 1)

    def variance(self, of: Attributes) -> FloatArray:
        """The noise's variance in each cell of `table`, people squared."""
        return self._sum(of, self.variances, 2)

    def covariance(self, of: Attributes, one: FloatArray, other: FloatArray) -> float:
        """Between sum(one x table) and sum(other x table), both of the shape of the table over `of`."""
        return math.fsum(
            float(
                (self._project(of, part, one) * self._project(of, part, other) * self.variances[part]).sum()
            )
            for part in subsets(of)
            if part in self.variances
        )

    def fitted(self, tolerance: float = 0.01) -> "Tables":
        """The nearest tables without a negative cell, by least squares in units of each number's noise.

        They still agree in every margin: what changes is each residual, not a cell. Solved in the dual (one multiplier
        for each cell, at least 0) by accelerated projected gradients (Beck and Teboulle, SIAM Journal on Imaging
        Sciences 2009) until no cell is below -`tolerance` people; then so many people are added to all cells alike.
        Post-processing, so it costs no privacy; intervals stay those of the tables as they came.
        """
        asked = self.strategy.tables
        cells = [self.table(of) for of in asked]
        if not self.variances[()].any() or all((table >= 0).all() for table in cells):
            return self  # exact, or nothing to do
        multipliers = [np.zeros_like(table) for table in cells]
        ahead, step, momentum = multipliers, 1.0 / self._curvature(), 1.0
        found = self
        for _ in range(ROUNDS):
            found = self._moved(ahead)
            slack = [found.table(of) for of in asked]
            if min(float(table.min()) for table in slack) >= -tolerance:
                break
            newer = [np.maximum(m - step * table, 0.0) for m, table in zip(ahead, slack, strict=True)]
            faster = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            push = (momentum - 1) / faster
            ahead = [new + push * (new - old) for new, old in zip(newer, multipliers, strict=True)]
            multipliers, momentum = newer, faster
        missing = max(0.0, *(-float(found.table(of).min()) * cells[i].size for i, of in enumerate(asked)))
        everybody = found.values[()] + missing
        return Tables(self.strategy, {**found.values, (): everybody}, self.variances)

    def _moved(self, multipliers: Sequence[FloatArray]) -> "Tables":
        """The residuals that `multipliers` on cells push away from where they came."""
        values = dict(self.values)
        for of, multiplier in zip(self.strategy.tables, multipliers, strict=True):
            for part in subsets(of):
                if part in values:
                    values[part] = values[part] + self.variances[part] * self._project(of, part, multiplier)
        return Tables(self.strategy, values, self.variances)

    def _curvature(self) -> float:
        """The largest eigenvalue of multipliers -> cells, by power iteration, a tenth above."""
        nothing = Tables(self.strategy, {p: np.zeros_like(v) for p, v in self.values.items()}, self.variances)
        vector = [np.ones_like(self.table(of)) for of in self.strategy.tables]
        largest = 1.0
        for _ in range(30):
            moved = nothing._moved(vector)
            vector = [moved.table(of) for of in self.strategy.tables]
            largest = math.sqrt(sum(float((table**2).sum()) for table in vector))
            vector = [table / largest for table in vector]
        return 1.1 * largest

    def _sum(self, of: Attributes, parts: Mapping[Attributes, FloatArray], power: int) -> FloatArray:
        sizes = self.strategy.sizes
        total = np.zeros([sizes[name] for name in of])
        for part in subsets(of):
            if part not in parts:  # an attribute of one level adds nothing
                continue
            found = parts[part]
            for axis, name in enumerate(of):
                if name in part:
                    found = _along(basis(sizes[name]).T ** power, found, axis)
                else:
                    found = np.expand_dims(found / sizes[name] ** power, axis)
            total = total + found
        return total

    def _project(self, of: Attributes, part: Attributes, weights: FloatArray) -> FloatArray:
        """The coordinates of `part` in sum(weights x table over `of`)."""
        sizes, found = self.strategy.sizes, np.asarray(weights, np.float64)
        for axis in reversed(range(len(of))):
            name = of[axis]
            there = name in part
            found = _along(basis(sizes[name]), found, axis) if there else found.sum(axis) / sizes[name]
        return found


def plan(
    sizes: Mapping[str, int],
    tables: Iterable[Sequence[str]],
    weights: Mapping[Attributes, float] | None = None,
    *,
    rows: int = 1,
) -> Strategy:
    """The strategy whose `tables` have the least sum of mean squared errors, each counted `weights` times (1).

    The mean is over a table's cells, so that a large table does not drown a small one.

    Raises:
        WorkloadError: no table, an unknown attribute, or more cells than `MOST_CELLS`.
    """
    asked = tuple(dict.fromkeys(in_order(table, sizes) for table in tables))
    if not asked:
        raise WorkloadError("a workload needs one table at least")
    for table in asked:
        cells = math.prod(sizes[name] for name in table)
        if cells > MOST_CELLS:
            raise WorkloadError(
                f"the table over {' x '.join(table)} has {cells:,} cells, and {MOST_CELLS:,} is the most: take fewer or "
                "coarser attributes"
            )
    parts = sorted({part for table in asked for part in subsets(table)}, key=lambda part: (len(part), part))
    numbers = sum(math.prod(sizes[name] - 1 for name in part) for part in parts)
    if numbers > MOST_CELLS:
        raise WorkloadError(
            f"the workload needs {numbers:,} numbers, and {MOST_CELLS:,} is the most: ask for fewer tables"
        )
    parts = [part for part in parts if all(sizes[name] > 1 for name in part)]
    cost = {part: math.prod((sizes[name] - 1) / sizes[name] for name in part) for part in parts}
    error = dict.fromkeys(parts, 0.0)
    for table in asked:
        weight = (weights or {}).get(table, 1.0) / math.prod(sizes[name] for name in table)
        for part in subsets(table):
            if part in error:
                error[part] += weight * math.prod(
                    sizes[name] - 1 if name in part else 1 / sizes[name] for name in table
                )
    together = math.fsum(math.sqrt(cost[part] * error[part]) for part in parts)
    scales = {}
    for part in parts:
        variance = together * math.sqrt(cost[part] / error[part])  # a person then costs 1 in all
        exact = STEPS / (math.sqrt(variance) * _lengths(part, sizes))
        scales[part] = np.maximum(np.rint(exact), 1).astype(np.int64)
    return Strategy(dict(sizes), asked, scales, rows)


def count(codes: Mapping[str, IntArray], of: Attributes, sizes: Mapping[str, int], people: int) -> IntArray:
    """Exact counts over `of`, int64, one axis each; () counts everybody."""
    shape = tuple(sizes[name] for name in of)
    if not of:
        return np.asarray(people, np.int64)
    at = np.ravel_multi_index([codes[name] for name in of], shape)
    return np.bincount(at, minlength=math.prod(shape)).reshape(shape).astype(np.int64)


def in_order(names: Iterable[str], sizes: Mapping[str, int]) -> Attributes:
    """The attributes in the order of the domain, each once; `WorkloadError` for one that is not in it."""
    wanted = set(names)
    unknown = sorted(wanted - set(sizes))
    if unknown:
        raise WorkloadError(f"no attribute {unknown[0]!r} is known: known are {', '.join(sizes)}")
    return tuple(name for name in sizes if name in wanted)


def subsets(of: Attributes) -> list[Attributes]:
    """Every subset, the empty one first, in the order of `of`."""
    return [part for size in range(len(of) + 1) for part in itertools.combinations(of, size)]


@cache
def contrasts(levels: int) -> IntArray:
    """Helmert's, (levels - 1, levels): row r is r + 1 ones, then -(r + 1), then zeros. Orthogonal, each sums to 0."""
    found = np.tril(np.ones((levels - 1, levels), np.int64))
    rows = np.arange(levels - 1)
    found[rows, rows + 1] = -(rows + 1)
    found.flags.writeable = False
    return found


@cache
def basis(levels: int) -> FloatArray:
    """`contrasts` with rows of length 1."""
    found = contrasts(levels).astype(np.float64)
    found = np.asarray(found / np.sqrt((found**2).sum(1, keepdims=True)))
    found.flags.writeable = False
    return found


def _lengths(part: Attributes, sizes: Mapping[str, int]) -> FloatArray:
    """Length of each row of a residual, shape (n_i - 1 for i in part)."""
    found = np.ones(())
    for name in part:
        rows = np.arange(1, sizes[name], dtype=np.float64)
        found = np.multiply.outer(found, np.sqrt(rows * (rows + 1)))
    return np.asarray(found)


def _along(matrix: NDArray[Exact], values: NDArray[Exact], axis: int) -> NDArray[Exact]:
    """`matrix` applied along one axis."""
    return np.moveaxis(np.tensordot(matrix, values, axes=(1, axis)), 0, axis)
