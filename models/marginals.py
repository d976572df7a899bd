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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import final

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Attributes = tuple[str, ...]
"""Names of attributes in the order of the domain; () is everybody."""

STEPS = 2**20  # L2 sensitivity of a person with one row, in steps of the grid, but for rounding
MOST_CELLS = 50_000  # in one table, and numbers in one release
MOST_LEVELS = 1_200  # of one attribute: its contrasts are a matrix of as many rows and columns
MOST_PARTS = (
    100_000  # subsets of the asked tables, each counted in every table that has it: what planning takes
)
ROUNDS = 300  # of fitting the tables of so many attributes
LOOSE = 0.2  # how freely residuals of two attributes and more move where more attributes are fitted, to those of all
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
            for axis in range(len(part)):
                table = _contrasted(table, axis)
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

    def __add__(self, other: "Tables") -> "Tables":
        """The tables of both sets of people, by one strategy."""
        return Tables(
            self.strategy,
            {part: values + other.values[part] for part, values in self.values.items()},
            {part: variances + other.variances[part] for part, variances in self.variances.items()},
        )

    def table(self, of: Attributes) -> FloatArray:
        """Counts over the attributes `of`, one axis each; the noise may make them negative."""
        return self.sums(of, self._each(of))

    def variance(self, of: Attributes) -> FloatArray:
        """The noise's variance in each cell of `table`, people squared."""
        return self.covariances(of, self._each(of), self._each(of))

    def sums(self, of: Attributes, rows: Sequence[FloatArray]) -> FloatArray:
        """Sums of cells of the table over `of`: weighted by each row of `rows[i]`, (r_i, levels), along axis i; shape (r_i)."""
        return self._sum(of, self.values, [(row, row) for row in rows], lambda one, _: one)

    def covariances(
        self, of: Attributes, one: Sequence[FloatArray], other: Sequence[FloatArray]
    ) -> FloatArray:
        """The noise's covariance between each of `sums(of, one)` and the one at its place in `sums(of, other)`."""
        return self._sum(of, self.variances, list(zip(one, other, strict=True)), np.multiply)

    def fitted(self, tolerance: float = 0.01) -> "Tables":
        """The nearest tables without a negative cell, from few attributes to many, each with the margins fitted before.

        Everybody first, then the tables of one attribute, of two, and so on, as a census does it (Abowd et al., The 2020
        Census Disclosure Avoidance System TopDown Algorithm, Harvard Data Science Review 2022): all at once, the noise of
        many empty cells would swell the margins. Everybody and the tables of one attribute then stay as they are; tables
        of two may have to move (a little: `LOOSE`) so that tables of three without a negative cell exist. Nearest is least
        squares in units of each number's noise. What changes is each residual, not a cell, so all tables agree in every
        margin. Cells are at least -`tolerance` people, and their sums as many times that.
        Post-processing, so it costs no privacy; intervals stay those of the tables as they came.
        """
        if not self.variances[()].any():
            return self  # exact
        found = self
        for size in range(1 + max(map(len, self.variances))):
            asked = [part for part in self.variances if len(part) == size]
            apart = [[of] for of in asked] if size < 3 else [asked]  # they share no residual that moves
            for tables in apart:
                if any((found.table(of) < -tolerance).any() for of in tables):
                    found = found._projected(tables, tolerance)
        return found

    def _projected(self, asked: Sequence[Attributes], tolerance: float) -> "Tables":
        """By accelerated projected gradients in the dual, one multiplier for each cell (Beck and Teboulle, SIAM Journal on
        Imaging Sciences 2009)."""
        size = len(asked[0])
        free = {part: self.variances[part] for part in asked}
        free |= {part: LOOSE * found for part, found in self.variances.items() if 1 < len(part) < size}
        start = [self.table(of) for of in asked]
        multipliers = [np.zeros_like(table) for table in start]
        ahead, step, momentum = multipliers, 1.0 / self._curvature(asked, free), 1.0
        pushed: dict[Attributes, FloatArray] = {}
        for _ in range(ROUNDS):
            pushed = self._pushed(asked, ahead, free)
            moved = Tables(self.strategy, pushed, free)
            newer = [
                np.maximum(m - step * (table + moved.table(of)), 0.0)
                for m, table, of in zip(ahead, start, asked, strict=True)
            ]
            change = max(float(np.abs(m - new).max()) for m, new in zip(ahead, newer, strict=True))
            if change <= step * tolerance:
                break
            along = zip(ahead, newer, multipliers, strict=True)
            if sum(float(((point - new) * (new - old)).sum()) for point, new, old in along) > 0:
                momentum = 1.0  # it went too far: start afresh (O'Donoghue and Candes, 2015)
            faster = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            push = (momentum - 1) / faster
            ahead = [new + push * (new - old) for new, old in zip(newer, multipliers, strict=True)]
            multipliers, momentum = newer, faster
        values = {part: found + pushed.get(part, 0.0) for part, found in self.values.items()}
        return Tables(self.strategy, values, self.variances)

    def _pushed(
        self,
        asked: Sequence[Attributes],
        multipliers: Sequence[FloatArray],
        free: Mapping[Attributes, FloatArray],
    ) -> dict[Attributes, FloatArray]:
        """By how much `multipliers` on cells move the `free` residuals."""
        found = {part: np.zeros_like(variances) for part, variances in free.items()}
        for of, multiplier in zip(asked, multipliers, strict=True):
            for part in subsets(of):
                if part in free:
                    found[part] += free[part] * self._project(of, part, multiplier)
        return found

    def _curvature(self, asked: Sequence[Attributes], free: Mapping[Attributes, FloatArray]) -> float:
        """The largest eigenvalue of multipliers -> cells: one residual's variance, in each table that it is spread over."""
        sizes = self.strategy.sizes
        spread: dict[Attributes, float] = dict.fromkeys(free, 0.0)
        for of in asked:
            for part in set(subsets(of)) & set(spread):
                spread[part] += 1 / math.prod(sizes[name] for name in of if name not in part)
        return max(float(free[part].max()) * share for part, share in spread.items())

    def _each(self, of: Attributes) -> list[FloatArray]:
        return [np.eye(self.strategy.sizes[name]) for name in of]

    def _sum(
        self,
        of: Attributes,
        parts: Mapping[Attributes, FloatArray],
        rows: Sequence[tuple[FloatArray, FloatArray]],
        joined: Callable[[FloatArray, FloatArray], FloatArray],
    ) -> FloatArray:
        """Over the residuals within `of`: each one's coordinates by what `joined` makes of both weights' projections."""
        sizes = self.strategy.sizes
        total = np.zeros([len(one) for one, _ in rows])
        for part in subsets(of):
            if part not in parts:  # an attribute of one level adds nothing
                continue
            found = parts[part]
            for axis, (name, pair) in enumerate(zip(of, rows, strict=True)):
                if name in part:
                    found = _along(joined(*(each @ basis(sizes[name]).T for each in pair)), found, axis)
                else:
                    means = joined(*(each.sum(1) / sizes[name] for each in pair))
                    found = np.moveaxis(np.multiply.outer(means, found), 0, axis)
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
    steps: float = STEPS,
) -> Strategy:
    """The strategy whose `tables` have the least sum of mean squared errors, each counted `weights` times (1).

    The mean is over a table's cells, so that a large table does not drown a small one. `steps`: by how much a person
    with one row is to move it, L2.

    Raises:
        WorkloadError: no table, an unknown attribute, or more cells, levels or parts than the most.
    """
    asked = tuple(dict.fromkeys(in_order(table, sizes) for table in tables))
    if not asked:
        raise WorkloadError("a workload needs one table at least")
    _must_be_small(sizes, asked)
    every = {part for table in asked for part in subsets(table)}
    numbers = sum(math.prod(sizes[name] - 1 for name in part) for part in every)
    if numbers > MOST_CELLS:
        raise WorkloadError(
            f"the workload needs {numbers:,} numbers, and {MOST_CELLS:,} is the most: ask for fewer tables"
        )
    cost, error = _costs(sizes, asked, weights or {})
    together = math.fsum(math.sqrt(cost[part] * error[part]) for part in cost)
    scales = {}
    for part in cost:
        variance = together * math.sqrt(cost[part] / error[part])  # a person then costs 1 in all
        exact = steps / (math.sqrt(variance) * _lengths(part, sizes))
        scales[part] = np.maximum(np.rint(exact), 1).astype(np.int64)
    return Strategy(dict(sizes), asked, scales, rows)


def _must_be_small(sizes: Mapping[str, int], tables: Iterable[Attributes]) -> None:
    """`WorkloadError` where a table has too many cells or levels, or all have too many parts, before anything is made of them.

    Whoever proposes a workload could otherwise have an agency's node spend hours, or all its memory, on planning it, and the
    coordinator on fitting it, which takes a table's cells times its subsets.
    """
    parts = 0
    for table in tables:
        cells, most = math.prod(sizes[name] for name in table), min(MOST_CELLS, 8 * MOST_CELLS >> len(table))
        if cells > most:
            of = "" if most == MOST_CELLS else f" over {len(table)} attributes"
            raise WorkloadError(
                f"the table over {' x '.join(table)} has {cells:,} cells, and {most:,} is the most{of}: take fewer or "
                "coarser attributes"
            )
        for name in table:
            if sizes[name] > MOST_LEVELS:
                raise WorkloadError(
                    f"the attribute {name} has {sizes[name]:,} levels, and {MOST_LEVELS:,} is the most: take coarser ones"
                )
        parts += 2 ** len(table)
    if parts > MOST_PARTS:
        raise WorkloadError(
            f"the workload's tables have {parts:,} parts, and {MOST_PARTS:,} is the most: ask for fewer tables, or for "
            "tables over fewer attributes"
        )


def least_error(
    sizes: Mapping[str, int],
    tables: Iterable[Attributes],
    weights: Mapping[Attributes, float] | None = None,
) -> float:
    """The sum of mean squared errors that `plan` makes least, for one row a person and noise of its sensitivity.

    (sum_A sqrt(p_A V_A))^2. p_A V_A = m_A^2 sum_{T with A} w_T / |T|^2, with |T| cells of table T and m_A numbers of
    residual A, is m_A^2 times an eigenvalue of the workload's Gram over the size n of the domain: so this is the bound
    (sum of singular values)^2 / n, below which no linear release gets (Li and Miklau, Optimal error of query sets under
    the differentially-private matrix mechanism, ICDT 2013, arXiv:1202.3399).

    Raises:
        WorkloadError: a table has more cells than `MOST_CELLS`.
    """
    asked = tuple(tables)
    _must_be_small(sizes, asked)
    cost, error = _costs(sizes, asked, weights or {})
    return math.fsum(math.sqrt(cost[part] * error[part]) for part in cost) ** 2


def _costs(
    sizes: Mapping[str, int], tables: Sequence[Attributes], weights: Mapping[Attributes, float]
) -> tuple[dict[Attributes, float], dict[Attributes, float]]:
    """p_A, what a person costs each residual at variance 1; V_A, what variance 1 of it adds to the error."""
    every = {part for table in tables for part in subsets(table)}
    parts = sorted(
        (part for part in every if all(sizes[name] > 1 for name in part)), key=lambda part: (len(part), part)
    )
    cost = {part: math.prod((sizes[name] - 1) / sizes[name] for name in part) for part in parts}
    error = dict.fromkeys(parts, 0.0)
    for table in tables:
        weight = weights.get(table, 1.0) / math.prod(sizes[name] for name in table)
        for part in subsets(table):
            if part in error:
                error[part] += weight * math.prod(
                    sizes[name] - 1 if name in part else 1 / sizes[name] for name in table
                )
    return cost, error


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


def _contrasted(values: IntArray, axis: int) -> IntArray:
    """`contrasts` applied along one axis, by running sums."""
    table = np.moveaxis(values, axis, 0)
    rows = np.arange(1, len(table)).reshape(-1, *[1] * (table.ndim - 1))
    return np.moveaxis(np.cumsum(table, 0)[:-1] - rows * table[1:], 0, axis)


def _along(matrix: FloatArray, values: FloatArray, axis: int) -> FloatArray:
    """`matrix` applied along one axis."""
    before, after = values.shape[:axis], values.shape[axis + 1 :]
    found = matrix @ values.reshape(math.prod(before), values.shape[axis], math.prod(after))
    return np.asarray(found.reshape(*before, len(matrix), *after))
