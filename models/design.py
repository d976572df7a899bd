"""A whole workload as one release: what leaves an agency for a demand map, and how every answer is read from it.

A map counts people and, where it says so, rows. Each of the two is a block of residuals (`models.marginals`); together
they are one vector of integers and one charge. With T_b the least error of block b at sensitivity 1 (times k^2 for rows,
of which a person has k at most) and s_b its part of the squared sensitivity, the errors sum to sum_b T_b / s_b: least
for s_b proportional to sqrt(T_b).

Intervals are of the noise alone: the counts are of people whom the agencies know, not of a sample. They are of the
tables as they came; values are of the tables as they were fitted (no negative cell, margins that add up), as far as
these are in their interval. So fitting changes no coverage. An interval that is shown knows that it is: of the many
empty cells of a map a few come out as three standard deviations, and those alone would be seen. Its lower end is that of
a noised count that was at least the smallest that is shown (Fithian, Sun, Taylor, Optimal inference after model
selection, arXiv:1410.2597, section 3), so it covers among the intervals that are seen as well; from five standard
deviations on this is the usual end.
"""

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add
from typing import final

import numpy as np

from models.disclosure import UNROUNDED, Disclosure
from models.marginals import (
    MOST_CELLS,
    STEPS,
    Attributes,
    FloatArray,
    IntArray,
    Strategy,
    Tables,
    WorkloadError,
    in_order,
    least_error,
    plan,
)
from models.scores import LEVEL, NOTHING, Estimate, Noised, between_roots, quantile
from models.workload import COUNTS, OUTSIDE, Counts, Query, Where, Workload

FARTHEST = 5  # standard deviations from a count that is shown to its lower end, at most


@final
@dataclass(frozen=True, eq=False, repr=False)  # repr=False: a traceback or a log must not show records
class Counted:
    """One agency's records as levels. person: attribute -> each person's, (people,); row: each counted row's, (rows,)."""

    person: Mapping[str, IntArray]
    people: int
    row: Mapping[str, IntArray]
    rows: int

    @cached_property
    def digest(self) -> bytes:
        """Another one for other records, 32 bytes."""
        found = hashlib.blake2b(f"{self.people} {self.rows}".encode(), digest_size=32)
        for counts, codes in (("person", self.person), ("row", self.row)):
            for name, levels in codes.items():
                found.update(f"\0{counts}\0{name}\0".encode())
                found.update(np.ascontiguousarray(levels, "<i8").tobytes())
        return found.digest()


@final
@dataclass(frozen=True)
class Least:
    """What a budget can tell. people: the fewest that a cell must have.

    factor: by how much the noise, so about epsilon, would have to change for the disclosure minimum to be told; None
    where it can be.
    """

    people: float
    factor: float | None


@final
@dataclass(frozen=True)
class Design:
    """How a workload is asked of people with `rows` rows each at most. Make one with `design`, which checks it."""

    workload: Workload
    rows: int = 1

    @cached_property
    def blocks(self) -> dict[Counts, Strategy]:
        """What is asked of people, and of rows."""
        roots = {counts: math.sqrt(error) for counts, error in self._least_errors.items()}
        return {
            counts: plan(
                self.workload.sizes,
                self.workload.tables(counts),
                rows=self._rows[counts],
                steps=STEPS * math.sqrt(root / sum(roots.values())) / self._rows[counts],
            )
            for counts, root in roots.items()
        }

    @property
    def _rows(self) -> dict[Counts, int]:
        return {"person": 1, "row": self.rows}

    @cached_property
    def _least_errors(self) -> dict[Counts, float]:
        """Of each block at sensitivity 1."""
        tables = {counts: self.workload.tables(counts) for counts in COUNTS}
        return {
            counts: self._rows[counts] ** 2 * least_error(self.workload.sizes, asked)
            for counts, asked in tables.items()
            if asked
        }

    @cached_property
    def numbers(self) -> int:
        """How many numbers leave."""
        return sum(strategy.numbers for strategy in self.blocks.values())

    @cached_property
    def sensitivity(self) -> float:
        """By how much one person with `rows` rows moves what leaves, L2, in steps: at most."""
        return math.sqrt(sum(strategy.sensitivity**2 for strategy in self.blocks.values()))

    def measure(self, counted: Counted) -> IntArray:
        """What leaves once noise is on it, int64 (numbers,): exact, so it must not leave without."""
        records = {"person": (counted.person, counted.people), "row": (counted.row, counted.rows)}
        return np.concatenate(
            [strategy.measure(*records[counts]) for counts, strategy in self.blocks.items()]
        )

    def read(self, released: IntArray | FloatArray, variance: float) -> "Reading":
        """What a release, or the sum of several, says.

        released: (numbers,), in steps.  variance: of the noise on each number, steps squared; of a sum, the sum.
        """
        if released.shape != (self.numbers,):
            raise ValueError(f"a release must have shape ({self.numbers},), got {released.shape}")
        tables, start = {}, 0
        for counts, strategy in self.blocks.items():
            tables[counts] = strategy.read(released[start : start + strategy.numbers], variance)
            start += strategy.numbers
        return Reading(self, tables)

    def expected(self, query: Query, variance: float) -> FloatArray:
        """The noise's standard deviation in each cell as `answer` lists them, (cells,), people; of a rate, of its numerator."""
        return np.asarray(np.sqrt(self._noise(query, variance)[0]))

    def least(self, query: Query, variance: float, disclosure: Disclosure = UNROUNDED) -> Least:
        """The fewest people whom a cell must have to be told: of a rate, in its denominator."""
        of = 0 if query.among is None else 1
        noise = 3 * math.sqrt(float(np.median(self._noise(query, variance)[of])))
        factor = noise / disclosure.minimum if noise > disclosure.minimum else None
        return Least(max(noise, float(disclosure.minimum)), factor)

    def _noise(self, query: Query, variance: float) -> FloatArray:
        return variance * _noise(query, self.workload, self._nothing.tables[query.counts])

    @cached_property
    def _nothing(self) -> "Reading":
        """A release of zeros with noise of variance 1: its variances are those of any, but for the factor."""
        return self.read(np.zeros(self.numbers), 1.0)

    @cached_property
    def ratio(self) -> float:
        """Root-mean-square error over the asked tables / that of separate releases, both of the same total epsilon.

        The mean is over a table's cells and then over tables. Separate: each table a Gaussian release of its own
        (Dwork and Roth 2014, section 3.5.3 and appendix A). Under this accountant releases of noise multipliers s_t cost
        what one of (sum_t s_t^-2)^(-1/2) costs, and the error is least for the same s_t at each table: with k_t rows of
        one person in table t, it is (sum_t k_t)^2.
        """
        tables = self._nothing.tables
        error = math.fsum(
            float(found.variance(of).mean()) for found in tables.values() for of in found.strategy.tables
        )
        return self.sensitivity * math.sqrt(error) / self._separate

    @cached_property
    def ratio_bound(self) -> float:
        """What `ratio` cannot be below, whatever is released of people and of rows: `models.marginals.least_error`."""
        return math.fsum(map(math.sqrt, self._least_errors.values())) / self._separate

    @property
    def _separate(self) -> float:
        return sum(self._rows[counts] * len(self.workload.tables(counts)) for counts in COUNTS)


def design(workload: Workload, rows: int = 1) -> Design:
    """The release of the least error for `workload`, its tables counting alike, each by the mean over its cells.

    rows: of one person, `unit.rows` of the contract.

    Raises:
        WorkloadError: no query, or more cells or numbers than `models.marginals.MOST_CELLS`.
    """
    if not workload.queries:
        raise WorkloadError("a workload needs one query at least")
    found = Design(workload, rows)
    if found.numbers > MOST_CELLS:
        raise WorkloadError(
            f"the workload needs {found.numbers:,} numbers, and {MOST_CELLS:,} is the most: ask for fewer tables"
        )
    return found


@final
@dataclass(frozen=True, eq=False)
class Reading:
    """Noised tables of people and of rows, by one design. Readings of one design add up."""

    design: Design
    tables: Mapping[Counts, Tables]

    @cached_property
    def fitted(self) -> dict[Counts, Tables]:
        """The nearest ones without a negative cell."""
        return {counts: tables.fitted() for counts, tables in self.tables.items()}

    def __add__(self, other: "Reading") -> "Reading":
        """The reading of both sets of people; `ValueError` where the designs differ."""
        if self.design != other.design:
            raise ValueError("readings of different designs cannot be added: pass both to answer")
        return Reading(
            self.design, {counts: tables + other.tables[counts] for counts, tables in self.tables.items()}
        )


def merged(readings: Sequence[Reading]) -> list[Reading]:
    """The readings with those of one design added up: what `answer` is asked of for all agencies together."""
    found: list[list[Reading]] = []
    for reading in readings:
        alike = next((each for each in found if each[0].design == reading.design), None)
        if alike is None:
            found.append([reading])
        else:
            alike.append(reading)
    return [reduce(add, alike) for alike in found]


@final
@dataclass(frozen=True)
class Cell:
    """One number of an answer: of which levels of `Query.by`, with its interval (of the noise), people or a share.

    sd: of the noise in it; of a rate it follows from the counts as well, so one that is not shown has none.
    """

    levels: tuple[str, ...]
    estimate: Estimate
    sd: float | None


def answer(
    query: Query, readings: Sequence[Reading], *, disclosure: Disclosure = UNROUNDED, level: float = LEVEL
) -> list[Cell]:
    """The query's cells of all readings together, in the order of the levels of `by`; `outside` is left out.

    Designs may differ; a reading that lacks the query adds nothing, and `ValueError` where all do. Pass what `merged`
    returns: what is fitted together is closer than the sum of what is fitted apart.
    """
    asked = [reading for reading in readings if query in reading.design.workload.queries]
    if not asked:
        raise ValueError(f"no reading has the query {query.name!r}")
    workload = asked[0].design.workload
    sums = _Sums(*np.sum([_numbers(query, reading) for reading in asked], axis=0))
    make = sums.count if query.among is None else sums.rate
    return [
        Cell(levels, *make(place, disclosure, level))
        for place, levels in enumerate(itertools.product(*_levels(query, workload)))
    ]


def _levels(query: Query, workload: Workload) -> list[list[str]]:
    return [
        [level for level in workload.attributes[name].level_names if level != OUTSIDE] for name in query.by
    ]


@final
@dataclass(frozen=True, eq=False)
class _Sums:
    """A query's numerators (or counts) and denominators by cell, each (cells,): raw, fitted, and the noise's (co)variance."""

    raw: FloatArray
    raw_base: FloatArray
    fitted: FloatArray
    fitted_base: FloatArray
    variance: FloatArray
    variance_base: FloatArray
    covariance: FloatArray

    def count(self, at: int, disclosure: Disclosure, level: float) -> tuple[Estimate, float | None]:
        """How many people are in cell `at`, rounded as the disclosure rule has it, and the noise's sd."""
        found = Noised(float(self.raw[at]), float(self.variance[at]))
        margin = quantile(level) * math.sqrt(found.variance + disclosure.variance)
        shown, low = found.reaches(disclosure.minimum), found.count - margin
        if shown:
            low = min(low, low_of_shown(found, disclosure.minimum, level))
        low, high = disclosure.outward(max(low, 0.0), max(found.count + margin, 0.0))
        best = min(max(disclosure.rounded(float(self.fitted[at])), low), high)
        return Estimate(best, low, high, shown), math.sqrt(found.variance)

    def rate(self, at: int, disclosure: Disclosure, level: float) -> tuple[Estimate, float | None]:
        """F / G by Fieller: the r with (F - r G)^2 <= z^2 (Var F - 2 r Cov + r^2 Var G), within [0, 1]."""
        f, g = (disclosure.rounded(float(each[at])) for each in (self.raw, self.raw_base))
        if not g > 0:
            return NOTHING, None
        exact_base = Noised(float(self.raw_base[at]), float(self.variance_base[at]))
        of_f, of_g = (float(each[at]) + disclosure.variance for each in (self.variance, self.variance_base))
        both, z2, value = float(self.covariance[at]), quantile(level) ** 2, min(max(f / g, 0.0), 1.0)
        low, high = between_roots(g * g - z2 * of_g, f * g - z2 * both, f * f - z2 * of_f)
        low, high = min(max(low, 0.0), value), max(min(high, 1.0), value)
        shown = exact_base.reaches(disclosure.minimum) and high - low < 1
        sd = math.sqrt(max(of_f - 2 * value * both + value**2 * of_g, 0.0)) / g
        best, among = (disclosure.rounded(float(each[at])) for each in (self.fitted, self.fitted_base))
        best = best / among if among > 0 else value
        return Estimate(min(max(best, low), high), low, high, shown), sd if shown else None


def low_of_shown(found: Noised, minimum: int, level: float) -> float:
    """The lower end t of a count that is shown: P(a count as large as this | t, shown) = (1 - level) / 2.

    Not below `FARTHEST` standard deviations: a smaller number of people is shown less than once in three million times.
    """
    sd = math.sqrt(found.variance)
    low, high = found.count - FARTHEST * sd, found.count
    least = max(float(minimum), 3 * sd)
    for _ in range(40 if sd else 0):
        middle = (low + high) / 2
        seen, shown = (math.erfc((edge - middle) / (sd * math.sqrt(2))) for edge in (found.count, least))
        low, high = (low, middle) if seen > (1 - level) * shown / 2 else (middle, high)
    return low


def _numbers(query: Query, reading: Reading) -> FloatArray:
    """The fields of `_Sums` of one reading, (7, cells)."""
    workload, counts = reading.design.workload, query.counts
    both = [_sums(query, workload, tables[counts]) for tables in (reading.tables, reading.fitted)]
    return np.concatenate([*both, _noise(query, workload, reading.tables[counts])])


def _sums(query: Query, workload: Workload, tables: Tables) -> FloatArray:
    """Numerators and denominators of the query's cells, (2, cells)."""
    of, order, counted, base = _asked(query, workload)
    return np.stack([tables.sums(of, rows).transpose(order).ravel() for rows in (counted, base)])


def _noise(query: Query, workload: Workload, tables: Tables) -> FloatArray:
    """Variance of the query's numerators, of its denominators, and their covariance, (3, cells)."""
    of, order, counted, base = _asked(query, workload)
    pairs = ((counted, counted), (base, base), (counted, base))
    found = [tables.covariances(of, *pair).transpose(order).ravel() for pair in pairs]
    return np.stack([*np.maximum(found[:2], 0.0), found[2]])


def _asked(
    query: Query, workload: Workload
) -> tuple[Attributes, tuple[int, ...], list[FloatArray], list[FloatArray]]:
    """The table that a query reads, the order of its axes in an answer, and the weights of numerators and denominators."""
    of, among = in_order(query.table, workload.sizes), query.among or {}
    axes = tuple(of.index(name) for name in query.by)
    rest = tuple(axis for axis in range(len(of)) if axis not in axes)
    counted = _weights(workload, of, query.by, query.where, among)
    return of, (*axes, *rest), counted, _weights(workload, of, query.by, among)


def _weights(workload: Workload, of: Attributes, by: Attributes, *conditions: Where) -> list[FloatArray]:
    """For each axis of the table over `of`: a row for each level of an answer's axis, or one for all; 1 where it counts."""
    found = []
    for name in of:
        names = workload.attributes[name].level_names
        here = np.array([all(level in each.get(name, names) for each in conditions) for level in names])
        own = np.array([level != OUTSIDE for level in names])
        found.append((np.eye(len(names))[own] if name in by else np.ones((1, len(names)))) * here)
    return found


def noised(query: Query, readings: Sequence[Reading]) -> tuple[FloatArray, FloatArray]:
    """Counts of the query's cells as they came, and the noise's standard deviation, each (cells,), in the order of `answer`."""
    asked = [reading for reading in readings if query in reading.design.workload.queries]
    sums = _Sums(*np.sum([_numbers(query, reading) for reading in asked], axis=0))
    return sums.raw, np.sqrt(sums.variance)


def everybody(
    readings: Sequence[Reading], *, disclosure: Disclosure = UNROUNDED, level: float = LEVEL
) -> Estimate:
    """How many people the readings counted; nothing where they counted rows alone."""
    counted = [reading for reading in readings if "person" in reading.tables]
    if not counted:
        return NOTHING
    variance = math.fsum(float(each.tables["person"].variance(())) for each in counted)
    found = Noised(math.fsum(float(each.tables["person"].table(())) for each in counted), variance)
    fitted = math.fsum(float(each.fitted["person"].table(())) for each in counted)
    margin = quantile(level) * math.sqrt(variance + disclosure.variance)
    low, high = disclosure.outward(max(found.count - margin, 0.0), max(found.count + margin, 0.0))
    return Estimate(
        min(max(disclosure.rounded(fitted), low), high), low, high, found.reaches(disclosure.minimum)
    )
