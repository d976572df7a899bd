"""A workload of a demand map: queries over levels of columns, and their answers from noised tables.

A query is a count, a rate of some among others, a histogram, a cross-tab or a series by month. Every one of them reads
one table (`models.marginals`); all tables of a workload are one release. A workload is YAML, checked against a contract:
every problem is a sentence.

Intervals are of the noise alone: the counts are of people whom the agencies know, not of a sample.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, final

import numpy as np

from models.contract import FLAG_LEVELS, Category, Contract, Flag, Group, Level, Number, Ordinal
from models.disclosure import UNROUNDED, Disclosure
from models.marginals import Attributes, FloatArray, IntArray, Tables, WorkloadError, in_order
from models.scores import LEVEL, NOTHING, Estimate, Noised, between_roots, quantile
from models.section import Section
from models.table import Table, canonical

Kind = Literal["count", "rate", "histogram", "crosstab", "series"]
KINDS: tuple[Kind, ...] = ("count", "rate", "histogram", "crosstab", "series")
OUTSIDE = "outside"  # of the months, or no date
_MONTH = re.compile(r"(\d{4})-(\d{2})")
MOST_MONTHS = 600


@final
@dataclass(frozen=True)
class Months:
    """The column of dates as months: `months` of them from `first` (a year and a month), and `outside`."""

    name: str
    column: str
    first: tuple[int, int]
    months: int

    @cached_property
    def level_names(self) -> tuple[str, ...]:
        """2024-01, 2024-02, ..., outside."""
        at = [self.first[0] * 12 + self.first[1] - 1 + i for i in range(self.months)]
        return (*(f"{month // 12:04d}-{month % 12 + 1:02d}" for month in at), OUTSIDE)

    def codes(self, values: np.ndarray) -> IntArray:
        """Each cell's place in `level_names`, int64 (n,). What is no date, or another month, is outside."""
        place = {name: i for i, name in enumerate(self.level_names[:-1])}
        found = np.full(len(values), self.months, np.int64)
        for i, value in enumerate(values.tolist()):
            if isinstance(value, str):
                found[i] = place.get(value[:7], self.months)
        return found


Attribute = Group | Months
Where = Mapping[str, tuple[str, ...]]
"""Attribute -> the levels that count; {} is everybody."""


@final
@dataclass(frozen=True)
class Query:
    """One question. Its answer has a cell for each combination of levels of `by`.

    where: whom it counts.  among: of a rate, those of whom `where` are a share.
    """

    name: str
    kind: Kind
    by: Attributes
    where: Where
    among: Where | None = None

    @property
    def table(self) -> frozenset[str]:
        """The attributes of the table that it reads."""
        return frozenset((*self.by, *self.where, *(self.among or {})))


@final
@dataclass(frozen=True)
class Cell:
    """One number of an answer: of which levels of `Query.by`, with its interval (of the noise), people or a share."""

    levels: tuple[str, ...]
    estimate: Estimate
    sd: float | None


@final
@dataclass(frozen=True)
class Workload:
    """Queries over attributes; `attributes` are those that the queries use, in the order of every table's axes."""

    name: str
    attributes: Mapping[str, Attribute]
    queries: tuple[Query, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """Attribute -> number of levels."""
        return {name: len(attribute.level_names) for name, attribute in self.attributes.items()}

    @cached_property
    def tables(self) -> tuple[Attributes, ...]:
        """The table of each query, each once."""
        return tuple(dict.fromkeys(in_order(query.table, self.sizes) for query in self.queries))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that an agency needs, and a policy must permit."""
        return tuple(dict.fromkeys(attribute.column for attribute in self.attributes.values()))

    def codes(self, table: Table) -> dict[str, IntArray]:
        """attribute -> each row's level, (rows,)."""
        return {name: found.codes(table[found.column]) for name, found in self.attributes.items()}

    def answer(
        self,
        query: Query,
        tables: Tables,
        fitted: Tables | None = None,
        *,
        disclosure: Disclosure = UNROUNDED,
        level: float = LEVEL,
    ) -> list[Cell]:
        """The query's cells, in the order of the levels of `by`; `outside` is left out.

        Intervals are of `tables` as they came; values are of `fitted`, as far as they are in their interval.
        """
        of = in_order(query.table, self.sizes)
        reading = _Reading(tables, of, tables.table(of), (fitted or tables).table(of), disclosure, level)
        cells = []
        for levels in self._levels(query):
            own = {name: (value,) for name, value in zip(query.by, levels, strict=True)}
            counted = self._picked(of, own, query.where, query.among or {})
            among = query.among
            found = (
                reading.count(counted)
                if among is None
                else reading.rate(counted, self._picked(of, own, among))
            )
            cells.append(Cell(levels, *found))
        return cells

    def _levels(self, query: Query) -> Iterator[tuple[str, ...]]:
        names = [
            [level for level in self.attributes[name].level_names if level != OUTSIDE] for name in query.by
        ]
        return itertools.product(*names)

    def _picked(self, of: Attributes, *conditions: Where) -> FloatArray:
        """1 where a cell of the table fulfils every condition, else 0."""
        found = np.ones([self.sizes[name] for name in of])
        for where in conditions:
            for name, wanted in where.items():
                names = self.attributes[name].level_names
                mask = np.array([level in wanted for level in names], np.float64)
                axis = of.index(name)
                found = found * mask.reshape([-1 if i == axis else 1 for i in range(len(of))])
        return found


@final
@dataclass(frozen=True)
class _Reading:
    """One table as it came and as it was fitted, and sums of its cells."""

    tables: Tables
    of: Attributes
    raw: FloatArray
    fitted: FloatArray
    disclosure: Disclosure
    level: float

    def count(self, counted: FloatArray) -> tuple[Estimate, float | None]:
        """How many people are in the cells that `counted` marks with 1, rounded as the disclosure rule has it."""
        variance = max(self.tables.covariance(self.of, counted, counted), 0.0)
        found, sd = Noised(float((self.raw * counted).sum()), variance), math.sqrt(variance)
        margin = quantile(self.level) * math.sqrt(variance + self.disclosure.variance)
        low, high = self.disclosure.outward(max(found.count - margin, 0.0), max(found.count + margin, 0.0))
        best = min(max(self.disclosure.rounded(float((self.fitted * counted).sum())), low), high)
        return Estimate(best, low, high, found.reaches(self.disclosure.minimum)), sd

    def rate(self, counted: FloatArray, base: FloatArray) -> tuple[Estimate, float | None]:
        """F / G by Fieller: the r with (F - r G)^2 <= z^2 (Var F - 2 r Cov + r^2 Var G), within [0, 1]."""
        f, g = (self.disclosure.rounded(float((self.raw * cells).sum())) for cells in (counted, base))
        if not g > 0:
            return NOTHING, None
        of_f, of_g, both = (
            self.tables.covariance(self.of, *pair)
            for pair in ((counted, counted), (base, base), (counted, base))
        )
        exact_base = Noised(float((self.raw * base).sum()), max(of_g, 0.0))
        of_f, of_g = of_f + self.disclosure.variance, of_g + self.disclosure.variance
        z2, value = quantile(self.level) ** 2, min(max(f / g, 0.0), 1.0)
        low, high = between_roots(g * g - z2 * of_g, f * g - z2 * both, f * f - z2 * of_f)
        low, high = min(max(low, 0.0), value), max(min(high, 1.0), value)
        shown = exact_base.reaches(self.disclosure.minimum) and high - low < 1
        sd = math.sqrt(max(of_f - 2 * value * both + value**2 * of_g, 0.0)) / g
        best, among = (
            self.disclosure.rounded(float((self.fitted * cells).sum())) for cells in (counted, base)
        )
        best = best / among if among > 0 else value
        return Estimate(min(max(best, low), high), low, high, shown), sd


# --- reading ------------------------------------------------------------------------------------------


def read(values: Mapping[str, Any], contract: Contract) -> Workload:
    """The workload in `values` (its YAML form); `WorkloadError` has every problem, a line each."""
    top = Section(values, "", [])
    name = top.slug("name")
    known: dict[str, Attribute] = dict(_of_contract(contract))
    for own, value, path in top.named("attributes") if "attributes" in top else ():
        known[own] = _attribute(own, Section(value, path, top.problems), contract)
    queries = tuple(_queries(top, known))
    top.close()
    if top.problems:
        raise WorkloadError("\n".join(dict.fromkeys(top.problems)))
    used = {each for query in queries for each in query.table}
    return Workload(name, {each: found for each, found in known.items() if each in used}, queries)


def _of_contract(contract: Contract) -> Iterator[tuple[str, Attribute]]:
    """What can be asked about without a word: columns with levels, and the audit's groups."""
    for column in contract.columns:
        match column:
            case Category() | Ordinal():
                levels = tuple(Level(level, (level,)) for level in column.levels)
                yield column.name, Group(column.name, column.name, levels)
            case Flag():
                spelled = [
                    tuple(text for text, code in FLAG_LEVELS.items() if code == place) for place in (0, 1)
                ]
                levels = (Level("no", spelled[0]), Level("yes", spelled[1]))
                yield column.name, Group(column.name, column.name, levels)
            case Number():
                pass  # has no levels: the workload says where it is cut
    for group in contract.groups:
        yield group.name, group


def _attribute(name: str, section: Section, contract: Contract) -> Attribute:
    column = section.text("column")
    if "first" in section or "months" in section:
        found: Attribute = _months(name, column, section, contract)
    else:
        edges = section.numbers("edges")
        if column and not any(isinstance(each, Number) and each.name == column for each in contract.columns):
            section.say("column", f"must be a number of the contract to be cut at edges, got {column!r}")
        if not edges or list(edges) != sorted(set(edges)):
            section.say("edges", "must be numbers in ascending order")
        ends = [f"{edge:g}" for edge in edges]
        names = (
            [
                f"under {ends[0]}",
                *(f"{a} to under {b}" for a, b in itertools.pairwise(ends)),
                f"{ends[-1]} or more",
            ]
            if ends
            else []
        )
        found = Group(name, column, tuple(Level(each) for each in names), tuple(edges))
    section.close()
    return found


def _months(name: str, column: str, section: Section, contract: Contract) -> Months:
    first, months = _MONTH.fullmatch(section.text("first")), section.whole("months", 1)
    if first is None or not 1 <= int(first[2]) <= 12:
        section.say("first", 'must be a month as "2024-01", in quotes')
    if not 1 <= months <= MOST_MONTHS:
        section.say("months", f"must be from 1 to {MOST_MONTHS}")
    if column != contract.unit.order_by:
        section.say(
            "column",
            f"must be the contract's column of dates, unit.order_by ({contract.unit.order_by}), got {column!r}",
        )
    return Months(name, column, (int(first[1]), int(first[2])) if first else (2000, 1), months)


def _queries(top: Section, known: Mapping[str, Attribute]) -> Iterator[Query]:
    value = top.take("queries")
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        top.say("queries", "must be a list of queries, one at least")
        return
    seen: set[str] = set()
    for at, item in enumerate(value):
        section = Section(item, f"queries[{at}]", top.problems)
        query = _query(section, known)
        section.close()
        if query is None:
            continue
        if query.name in seen:
            section.say("name", f"{query.name!r} is there twice: name each query")
        seen.add(query.name)
        yield query


def _query(section: Section, known: Mapping[str, Attribute]) -> Query | None:
    asked = [kind for kind in KINDS if kind in section]
    name = section.optional_text("name")
    if len(asked) != 1:
        section.problems.append(f"{section.where} must have exactly one of {', '.join(KINDS)}")
        return None
    kind = asked[0]
    match kind:
        case "count":
            where = _where(section, kind, known)
            found = Query(name or _words(where), kind, _by(section, known), where)
        case "rate":
            inner = section.section(kind)
            where, among = _where(inner, "of", known), _where(inner, "among", known)
            inner.close()
            found = Query(
                name or f"{_words(where)} among {_words(among)}", kind, _by(section, known), where, among
            )
        case "histogram" | "crosstab":
            by = section.texts(kind) if kind == "crosstab" else (section.text(kind),)
            where = _where(section, "where", known)
            found = Query(name or " by ".join(by), kind, _known(section, kind, by, known), where)
        case "series":
            inner = section.section(kind)
            by, where = (inner.text("by"),), _where(inner, "of", known)
            inner.close()
            if by[0] in known and not isinstance(known[by[0]], Months):
                section.say(kind, f"by must be an attribute of months, got {by[0]!r}")
            found = Query(
                name or f"{_words(where)} by {by[0]}", kind, _known(section, kind, by, known), where
            )
    return found


def _by(section: Section, known: Mapping[str, Attribute]) -> Attributes:
    return _known(section, "by", section.texts("by"), known) if "by" in section else ()


def _known(section: Section, key: str, names: Sequence[str], known: Mapping[str, Attribute]) -> Attributes:
    for name in names:
        if name not in known:
            section.say(key, f"names {name!r}, which is no attribute here: known are {', '.join(known)}")
    if len(set(names)) < len(names):
        section.say(key, "names an attribute twice")
    return tuple(dict.fromkeys(name for name in names if name in known))


def _where(section: Section, key: str, known: Mapping[str, Attribute]) -> Where:
    """{attribute: level or levels}; absent or {} is everybody."""
    value = section.take(key)
    if value in (None, "everybody"):
        return {}
    if not isinstance(value, Mapping):
        section.say(key, "must be a mapping from an attribute to a level, or everybody")
        return {}
    found = {}
    for name, levels in value.items():
        if str(name) not in known:
            _known(section, key, [str(name)], known)
            continue
        names = known[str(name)].level_names
        wanted = tuple(map(_level, levels if isinstance(levels, list | tuple) else [levels]))
        unknown = [level for level in wanted if level not in names]
        if unknown or not wanted:
            section.say(
                key, f"{name} has no level {unknown[0] if unknown else ''!r}: it has {', '.join(names)}"
            )
        found[str(name)] = wanted
    return found


def _level(value: object) -> str:
    """A level as written; YAML reads a bare yes or no as true or false."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(canonical(value))


def _words(where: Where) -> str:
    return " and ".join(f"{name} {' or '.join(levels)}" for name, levels in where.items()) or "everybody"
