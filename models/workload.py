"""A workload of a demand map: queries over levels of columns, read from YAML and checked against a contract.

A query is a count, a rate of some among others, a histogram, a cross-tab or a series by month. Every one of them reads
one table (`models.marginals`), of people by their most recent row or of rows; all tables of a workload are one release
(`models.design`). Every problem is a sentence.
"""

import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, final

import numpy as np

from models.contract import FLAG_LEVELS, Category, Contract, Flag, Group, Level, Number, Ordinal, Unit
from models.marginals import Attributes, IntArray, WorkloadError, in_order
from models.section import Section
from models.table import Table, canonical

Kind = Literal["count", "rate", "histogram", "crosstab", "series"]
KINDS: tuple[Kind, ...] = ("count", "rate", "histogram", "crosstab", "series")
Counts = Literal["person", "row"]
COUNTS: tuple[Counts, ...] = ("person", "row")
OUTSIDE = "outside"  # of the months, or no date
_MONTH = re.compile(r"(\d{4})-(\d{2})")
MOST_MONTHS = 600
LONGEST_NAME = 100


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
        found = _MonthCodes({name: i for i, name in enumerate(self.level_names)})
        return np.fromiter(map(found.__getitem__, values.tolist()), dtype=np.int64, count=len(values))


class _MonthCodes(dict[object, int]):
    def __missing__(self, value: object) -> int:
        month = value[:7] if isinstance(value, str) else OUTSIDE
        self[value] = self.get(month, self[OUTSIDE])
        return self[value]


Attribute = Group | Months
Where = Mapping[str, tuple[str, ...]]
"""Attribute -> the levels that count; {} is everybody."""


@final
@dataclass(frozen=True)
class Query:
    """One question. Its answer has a cell for each combination of levels of `by`.

    where: whom it counts.  among: of a rate, those of whom `where` are a share.
    counts: people by their most recent row, or each of their rows, `unit.rows` of one person at most. Where the
    contract's unit is the row, each row is a person.
    """

    name: str
    kind: Kind
    by: Attributes
    where: Where
    among: Where | None = None
    counts: Counts = "person"

    @property
    def table(self) -> frozenset[str]:
        """The attributes of the table that it reads."""
        return frozenset((*self.by, *self.where, *(self.among or {})))


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

    def tables(self, counts: Counts) -> tuple[Attributes, ...]:
        """The table of each query that counts people, or rows, each once."""
        asked = (query for query in self.queries if query.counts == counts)
        return tuple(dict.fromkeys(in_order(query.table, self.sizes) for query in asked))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that an agency needs, and a policy must permit."""
        return tuple(dict.fromkeys(attribute.column for attribute in self.attributes.values()))

    def codes(self, table: Table, counts: Counts) -> dict[str, IntArray]:
        """Attribute of a query that counts people, or rows -> the level of each row of `table`, (rows,)."""
        used = {name for of in self.tables(counts) for name in of}
        return {
            name: found.codes(table[found.column]) for name, found in self.attributes.items() if name in used
        }

    def held_by(self, contract: Contract, kind: str | None, without: Collection[str] = ()) -> "Workload":
        """The queries all of whose columns agencies of this kind hold and none is in `without`; there may be none."""
        blocks = {column.name: column.block for column in contract.columns}
        held = {
            name
            for name, found in self.attributes.items()
            if contract.holds(kind, blocks.get(found.column)) and found.column not in without
        }
        return self._of(query for query in self.queries if query.table <= held)

    def _of(self, queries: Iterable[Query]) -> "Workload":
        kept = tuple(queries)
        used = {name for query in kept for name in query.table}
        attributes = {name: found for name, found in self.attributes.items() if name in used}
        return Workload(self.name, attributes, kept)


# --- reading ------------------------------------------------------------------------------------------


def read(values: Mapping[str, Any], contract: Contract) -> Workload:
    """The workload in `values` (its YAML form); `WorkloadError` has every problem, a line each."""
    if not isinstance(values, Mapping):
        raise WorkloadError("a workload must be a mapping of settings")
    top = Section(values, "", [])
    name = top.slug("name")
    of_contract = dict(_of_contract(contract))
    own: dict[str, Attribute] = {}
    for each, value, path in top.named("attributes") if "attributes" in top else ():
        if not each.isprintable() or len(each) > LONGEST_NAME:  # it is shown to who approves a plan
            top.say(
                "attributes",
                f"must have names of printable letters, {LONGEST_NAME} at most, got {each[:LONGEST_NAME]!r}",
            )
        if each in of_contract:
            top.problems.append(f"{path} is a column or group of the contract already: give it another name")
        own[each] = _attribute(each, Section(value, path, top.problems), contract)
    known = Known({**of_contract, **own}, dict(_ways(contract)))
    queries = tuple(_queries(top, known, contract.unit))
    top.close()
    if top.problems:
        raise WorkloadError("\n".join(dict.fromkeys(top.problems)))
    return Workload(name, known.attributes, queries)._of(queries)


@final
@dataclass(frozen=True)
class Known:
    """The attributes that a query may name. ways: a column that is none -> how it becomes one."""

    attributes: Mapping[str, Attribute]
    ways: Mapping[str, str]


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
                yield column.name, Group(column.name, column.name, levels, other=column.missing is not None)
            case Number():
                pass  # has no levels: the workload says where it is cut
    for group in contract.groups:
        yield group.name, group


def _ways(contract: Contract) -> Iterator[tuple[str, str]]:
    """Each column that has no levels, with how a workload gives it some."""
    for column in contract.columns:
        if isinstance(column, Number):
            yield (
                column.name,
                f"a number: cut it at edges, as in attributes: {{band: {{column: {column.name}, edges: [1, 5]}}}}",
            )
    dates = contract.unit.order_by
    if dates is not None:
        yield (
            dates,
            "the column of dates: name its months, as in "
            f'attributes: {{month: {{column: {dates}, first: "2024-01", months: 12}}}}',
        )


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
        if len(set(ends)) < len(ends):
            section.say("edges", "must differ in their first six digits, as levels are named by these")
        found = Group(name, column, tuple(Level(each) for each in names), tuple(edges))
    section.close()
    return found


def _months(name: str, column: str, section: Section, contract: Contract) -> Months:
    stated, months = section.take("first"), section.whole("months", 1)
    first = (
        _MONTH.fullmatch(stated) if isinstance(stated, str) else None
    )  # a bare 2024-01-01 is a date of YAML's
    if first is None or not 1 <= int(first[2]) <= 12:
        section.say("first", 'must be a month as "2024-01", in quotes')
    if "months" not in section:
        section.say("months", f"is required: how many from first on, 1 to {MOST_MONTHS}")
    elif months > MOST_MONTHS:
        section.say("months", f"must be from 1 to {MOST_MONTHS}, got {months}")
    dates = contract.unit.order_by
    if dates is None:
        section.say("column", "cannot be read as months: the contract has no column of dates (unit.order_by)")
    elif column != dates:
        section.say("column", f"must be the contract's column of dates, {dates}, got {column!r}")
    return Months(
        name, column, (int(first[1]), int(first[2])) if first else (2000, 1), min(months, MOST_MONTHS)
    )


def _queries(top: Section, known: Known, unit: Unit) -> Iterator[Query]:
    value = top.take("queries")
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        top.say("queries", "must be a list of queries, one at least")
        return
    seen: set[str] = set()
    for at, item in enumerate(value):
        section = Section(item, f"queries[{at}]", top.problems)
        query = _query(section, known, unit)
        section.close()
        if query is None:
            continue
        if query.name in seen:
            section.say("name", f"{query.name!r} is there twice: name each query")
        seen.add(query.name)
        yield query


def _query(section: Section, known: Known, unit: Unit) -> Query | None:
    asked = [kind for kind in KINDS if kind in section]
    name = section.optional_text("name")
    if len(asked) != 1:
        section.problems.append(f"{section.where} must have exactly one of {', '.join(KINDS)}")
        for key in (*KINDS, "by", "where", "each"):
            section.take(key)  # known, whatever it is that is asked
        return None
    kind = asked[0]
    several = kind == "series" and unit.rows > 1
    counts = section.choice("each", COUNTS) or ("row" if several else "person")
    counts = counts if unit.kind == "person" else "person"
    match kind:
        case "count":
            where = _where(section, kind, known)
            found = Query(name or _words(where), kind, _by(section, known), where, None, counts)
        case "rate":
            inner = section.section(kind)
            where, among = _where(inner, "of", known), _where(inner, "among", known)
            inner.close()
            words = f"{_words(where)} among {_words(among)}"
            found = Query(name or words, kind, _by(section, known), where, among, counts)
        case "histogram" | "crosstab":
            by = section.texts(kind) if kind == "crosstab" else (section.text(kind),)
            where = _where(section, "where", known)
            axes = _known(section, kind, by, known)
            found = Query(name or " by ".join(by), kind, axes, where, None, counts)
        case "series":
            inner = section.section(kind)
            by, where = (inner.text("by"),), _where(inner, "of", known)
            axes = _known(inner, "by", by, known)
            if axes and not isinstance(known.attributes[by[0]], Months):
                inner.say("by", f"must be an attribute of months, got {by[0]!r}")
            inner.close()
            found = Query(name or f"{_words(where)} by {by[0]}", kind, axes, where, None, counts)
    return found


def _by(section: Section, known: Known) -> Attributes:
    return _known(section, "by", section.texts("by"), known) if "by" in section else ()


def _known(section: Section, key: str, names: Sequence[str], known: Known) -> Attributes:
    """Those of `names` that are attributes; what is none is said where it is first named, and not again."""
    for name in filter(None, names):
        if name in known.attributes:
            continue
        way = known.ways.get(name)
        none = f"which is no attribute here: known are {', '.join(known.attributes)}" if way is None else way
        if not any(problem.endswith(f" names {name!r}, {none}") for problem in section.problems):
            section.say(key, f"names {name!r}, {none}")
    return tuple(dict.fromkeys(name for name in names if name in known.attributes))


def _where(section: Section, key: str, known: Known) -> Where:
    """{attribute: level or levels}; absent or {} is everybody."""
    value = section.take(key)
    if value in (None, "everybody"):
        return {}
    if not isinstance(value, Mapping):
        section.say(key, "must be a mapping from an attribute to a level, or everybody")
        return {}
    found = {}
    for name, levels in value.items():
        if not _known(section, key, [str(name)], known):
            continue
        names = known.attributes[str(name)].level_names
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
