"""The data contract: what agencies agreed to learn from, as one value that all of them can hash.

A `Contract` names the columns that become features (with declared bounds or levels, so that nothing is
ever fitted on data), the groups that an audit compares, the label, who a record is about (`unit`), and
the blocks of columns that only some kinds of agency hold. It is written in YAML, read by
`Contract.from_dict`, and compared by `Contract.sha256`. `validate` holds an agency's table against it
and names columns and rules, never a cell and never a count.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any, Literal, final

import numpy as np

from models.table import UNKNOWN, Table, codes, is_missing, is_number, number_people, order_key

MAX_GROUPS = 64
MAX_USER_CELLS = 512
PARTS = ("train", "tune", "test")
FLAG_LEVELS = {
    spelling: code
    for code, words in enumerate([("0", "false", "no"), ("1", "true", "yes")])
    for word in words
    for spelling in (word, word.capitalize(), word.upper())
}


class ContractError(ValueError):
    """A contract that cannot be used; `problems` has one sentence for each reason."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@final
@dataclass(frozen=True)
class About:
    """What a reader of a score must know of a column; it changes no feature and no weight.

    description: in plain words. proxy_for: the audit group that the column stands for, as a postcode may for
    an ethnicity. actionable: false where nobody can change it, as an age.
    """

    description: str = ""
    proxy_for: str | None = None
    actionable: bool = True


NOTHING_SAID = About()


@final
@dataclass(frozen=True)
class Number:
    """A number, clipped to [min, max]; with `log`, log1p(x - min) / log1p(max - min) follows, in [0, 1].

    Its feature is (x - center) / scale. Both are public typical values, on the logged scale where `log`
    is set; by default the middle and half the width of the range, so the feature lies in [-1, 1].
    """

    name: str
    min: float
    max: float
    unit: str = ""
    log: bool = False
    center: float | None = None
    scale: float | None = None
    missing: Literal["indicator"] | None = None
    block: str | None = None
    about: About = NOTHING_SAID
    type: Literal["number"] = field(default="number", init=False)

    @property
    def range(self) -> tuple[float, float]:
        """The scale on which `center` and `scale` are: [min, max], or [0, 1] with `log`."""
        return (0.0, 1.0) if self.log else (self.min, self.max)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the encoded features: the number, and whether it is missing."""
        return (self.name, f"{self.name} missing") if self.missing else (self.name,)


@final
@dataclass(frozen=True)
class Ordinal:
    """Ordered levels, evenly spaced in [-1, 1]; any other value is 0 and marked "other"."""

    name: str
    levels: tuple[str, ...]
    missing: Literal["indicator"] | None = None
    block: str | None = None
    about: About = NOTHING_SAID
    type: Literal["ordinal"] = field(default="ordinal", init=False)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the encoded features: the position, "other", and whether it is missing."""
        names = (self.name, f"{self.name}=other")
        return (*names, f"{self.name} missing") if self.missing else names


@final
@dataclass(frozen=True)
class Category:
    """Unordered levels, one feature each; any other value is "other", none is "missing" where allowed."""

    name: str
    levels: tuple[str, ...]
    missing: Literal["level"] | None = None
    block: str | None = None
    about: About = NOTHING_SAID
    type: Literal["category"] = field(default="category", init=False)

    @property
    def encoded_levels(self) -> tuple[str, ...]:
        """Levels with "other" and "missing", which join a declared level of that name."""
        return tuple(dict.fromkeys((*self.levels, "other", *(("missing",) if self.missing else ()))))

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the encoded features, one for each level."""
        return tuple(f"{self.name}={level}" for level in self.encoded_levels)


@final
@dataclass(frozen=True)
class Flag:
    """0 or 1, also written true/false or yes/no."""

    name: str
    missing: Literal["indicator"] | None = None
    block: str | None = None
    about: About = NOTHING_SAID
    type: Literal["flag"] = field(default="flag", init=False)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the encoded features: the flag, and whether it is missing."""
        return (self.name, f"{self.name} missing") if self.missing else (self.name,)


Column = Number | Ordinal | Category | Flag


@final
@dataclass(frozen=True)
class Block:
    """Columns that only some kinds of agency hold; elsewhere they are zeros plus "not held"."""

    name: str
    held_by: tuple[str, ...]


@final
@dataclass(frozen=True)
class Level:
    """One level of an audit group: the values of its column, or () where numbers are cut at edges."""

    name: str
    values: tuple[str, ...] = ()


@final
@dataclass(frozen=True)
class Group:
    """An attribute that an audit compares; a feature only where its column is under `columns` too.

    With `edges`, level i holds edges[i-1] <= x < edges[i]. Missing and unlisted values are in the level
    "other"; with `other: false` they are a problem of the table.
    """

    name: str
    column: str
    levels: tuple[Level, ...]
    edges: tuple[float, ...] = ()
    other: bool = True

    @property
    def level_names(self) -> tuple[str, ...]:
        """Declared levels in order, then "other" (once)."""
        names = tuple(level.name for level in self.levels)
        return tuple(dict.fromkeys((*names, "other"))) if self.other else names

    def codes(self, values: np.ndarray) -> np.ndarray:
        """Each cell's place in `level_names`, int64 (n,); with `other: false`, UNKNOWN outside the levels."""
        rest = self.level_names.index("other") if self.other else UNKNOWN
        if self.edges:
            found = np.searchsorted(self.edges, values, side="right").astype(np.int64)
            return np.asarray(np.where(is_missing(values), rest, found))
        found = codes(values, {value: i for i, level in enumerate(self.levels) for value in level.values})
        return np.asarray(np.where(found < 0, rest, found))


@final
@dataclass(frozen=True)
class Label:
    """The outcome: 1 where the column's value is one of `positive`. None in `held_by` is every kind."""

    column: str
    positive: tuple[str, ...]
    horizon: str
    description: str = ""
    held_by: tuple[str, ...] | None = None

    def outcome(self, values: np.ndarray) -> np.ndarray:
        """Which cells are positive, bool (n,)."""
        return np.asarray(codes(values, dict.fromkeys(self.positive, 1)) == 1)


@final
@dataclass(frozen=True)
class Intensity:
    """How intensively a person uses services already; the last level is the most intensive.

    Levels are as a group's: numbers cut at `edges`, or values. Missing and unlisted ones are in "other".
    """

    column: str
    levels: tuple[Level, ...]
    edges: tuple[float, ...] = ()
    description: str = ""

    @property
    def group(self) -> Group:
        """The levels, as a group's."""
        return Group("intensity", self.column, self.levels, self.edges)


@final
@dataclass(frozen=True)
class LeadTime:
    """How long after the record the outcome came, read for people with the outcome alone; never a feature.

    Band 0 holds 0 <= t < edges[0], band i edges[i-1] <= t < edges[i], the last everything from edges[-1] on. What
    is missing or below 0 is unknown.
    """

    column: str
    edges: tuple[float, ...]
    unit: str
    description: str = ""

    @property
    def bands(self) -> int:
        """How many bands there are: L."""
        return len(self.edges) + 1

    def codes(self, values: np.ndarray) -> np.ndarray:
        """Each cell's band, int64 (n,); L where it is unknown."""
        found = np.searchsorted(self.edges, values, side="right").astype(np.int64)
        return np.asarray(np.where(values >= 0, found, self.bands))


@final
@dataclass(frozen=True)
class Practice:
    """Whether today's practice would flag the person: where the column's value is one of `positive`; never a feature."""

    column: str
    positive: tuple[str, ...]
    description: str = ""

    def flags(self, values: np.ndarray) -> np.ndarray:
        """Which people it flags, bool (n,)."""
        return np.asarray(codes(values, dict.fromkeys(self.positive, 1)) == 1)


MatchRule = Literal["identifier", "initial-surname-born", "name-born-postcode"]


@final
@dataclass(frozen=True)
class Match:
    """What says that a person of one agency is a person of another: columns of which `rule` makes one key.

    Read for a cohort alone: no feature, no group, and nothing that training needs. name: the column of the
    forenames and that of the surname, or one with both, forenames first. The rules and what they miss: `models.matchkey`, docs/matching.md.
    """

    rule: MatchRule
    identifier: str | None = None
    name: tuple[str, ...] = ()
    born: str | None = None
    postcode: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that the rule reads."""
        return tuple(name for name in (self.identifier, *self.name, self.born, self.postcode) if name)


@final
@dataclass(frozen=True)
class Unit:
    """Whom privacy protects: a person (at most `rows` most recent rows of one), or honestly a row."""

    kind: Literal["person", "row"]
    column: str | None = None
    rows: int = 1
    order_by: str | None = None


@final
@dataclass(frozen=True)
class Contract:
    """What the agencies agreed to. Make one with `from_dict`: the constructor checks nothing."""

    name: str
    version: int
    description: str
    purpose: str
    unit: Unit
    columns: tuple[Column, ...]
    label: Label
    groups: tuple[Group, ...] = ()
    blocks: tuple[Block, ...] = ()
    kinds: tuple[str, ...] = ()
    site: str | None = None
    split: str | None = None
    intensity: Intensity | None = None
    lead_time: LeadTime | None = None
    practice: Practice | None = None
    match: Match | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Contract":
        """A contract from its YAML form or from `to_dict`; `ContractError` lists every problem at once."""
        from models.contract_file import read

        contract, problems = read(values)
        if problems:
            raise ContractError(problems)
        return contract

    def to_dict(self) -> dict[str, Any]:
        """The canonical form, which `from_dict` reads back: plain values, defaults left out.

        Named things are lists here, so their order survives JSON or YAML that sorts its keys: the order
        of the columns is the order of a model's weights.
        """
        return {item.name: _plain(getattr(self, item.name)) for item in _told(self)}

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the canonical JSON of `to_dict`, hex."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def holds(self, kind: str | None, block: str | None) -> bool:
        """Whether agencies of this kind hold the block. Everybody holds what is in no block (None)."""
        return block is None or any(kind in held.held_by for held in self.blocks if held.name == block)

    def holds_label(self, kind: str | None) -> bool:
        """Whether agencies of this kind hold the label."""
        return self.label.held_by is None or kind in self.label.held_by

    @cached_property
    def number_columns(self) -> frozenset[str]:
        """The columns that are read as numbers; every other is text."""
        numbers = (column.name for column in self.columns if isinstance(column, Number))
        cut = [group.column for group in self.groups if group.edges]
        cut += [self.intensity.column] if self.intensity and self.intensity.edges else []
        cut += [self.lead_time.column] if self.lead_time else []
        return frozenset((*numbers, *cut))

    def needs(self, kind: str | None) -> dict[str, Literal["number", "text"]]:
        """The columns that an agency of this kind must have, and how each is read."""
        foreign = {column.name for column in self.columns if not self.holds(kind, column.block)}
        names = (
            self.unit.column,
            self.unit.order_by,
            *(column.name for column in self.columns),
            *(group.column for group in self.groups),
            *((self.label.column, *self.user_columns) if self.holds_label(kind) else ()),
            self.split,
        )
        return {
            name: "number" if name in self.number_columns else "text"
            for name in dict.fromkeys(names)
            if name is not None and name not in foreign
        }

    @cached_property
    def user_columns(self) -> tuple[str, ...]:
        """The columns of `intensity`, `lead_time` and `practice`: only whoever holds the label needs them."""
        return tuple(each.column for each in (self.intensity, self.lead_time, self.practice) if each)

    @property
    def match_columns(self) -> tuple[str, ...]:
        """The columns of `match`, which `needs` leaves out: only a cohort reads them."""
        return self.match.columns if self.match else ()

    @cached_property
    def users_shape(self) -> tuple[int, int, int, int] | None:
        """Of the table of users, (2, P, I, L + 2); None where the contract declares none of its three axes.

        Flagged by the model or not; by practice (P = 2, or 1 where it is not declared); intensity (its levels and
        "other", or 1); lead (no outcome, each of L bands, unknown: all with the outcome where it is not declared).
        """
        if not self.user_columns:
            return None
        levels = len(self.intensity.group.level_names) if self.intensity else 1
        bands = self.lead_time.bands if self.lead_time else 0
        return 2, 2 if self.practice else 1, levels, bands + 2

    @cached_property
    def group_names(self) -> tuple[str, ...]:
        """Every combination of levels, "sex=female & race=black"; ("everyone",) without groups."""
        named = [[f"{group.name}={level}" for level in group.level_names] for group in self.groups]
        return tuple(" & ".join(cell) for cell in itertools.product(*named)) if named else ("everyone",)

    @cached_property
    def group_margins(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Attribute -> level -> places in `group_names`; {} without groups."""
        cells = list(itertools.product(*(group.level_names for group in self.groups)))
        return {
            group.name: {
                level: tuple(i for i, cell in enumerate(cells) if cell[place] == level)
                for level in group.level_names
            }
            for place, group in enumerate(self.groups)
        }


@final
@dataclass(frozen=True)
class Problem:
    """A rule that a table breaks. `column` is "" where the table as a whole breaks it."""

    column: str
    rule: str

    def __str__(self) -> str:
        return f"column {self.column!r} {self.rule}" if self.column else self.rule


def validate(
    contract: Contract, table: Table, kind: str | None, *, min_people: int = 0
) -> tuple[Problem, ...]:
    """Every problem of an agency's table at once, by column and rule, never by cell or count.

    Blocks and a label that `kind` does not hold are ignored. A number out of bounds or a level that the
    contract does not list is no problem: encoding clips the one and counts the other as "other".
    """
    needs = contract.needs(kind)
    found = [Problem(name, "is not in the table") for name in needs if name not in table]
    if contract.kinds and kind not in contract.kinds:
        found.append(
            Problem("", f"the kind of agency must be one of {', '.join(contract.kinds)}, got {kind!r}")
        )
    have = {name: table[name] for name in needs if name in table}
    shapes = {values.shape for values in have.values()}
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
        found.append(Problem("", "the columns of the table must be one-dimensional and equally long"))
    elif shapes == {(0,)}:
        found.append(Problem("", "the table has no rows"))
    elif have:
        for check in (_missing, _types, _people, _label, _groups, _split):
            found += check(contract, have)
        if _count_people(contract, have) < min_people:
            found.append(Problem("", f"the table has fewer people than the {min_people} that are required"))
    return tuple(dict.fromkeys(found))


def _missing(contract: Contract, have: Table) -> Iterator[Problem]:
    unit = contract.unit
    complete = {column.name for column in contract.columns if not column.missing}
    complete |= {name for name in (unit.column, unit.order_by, contract.label.column, contract.split) if name}
    complete |= {contract.practice.column} if contract.practice else set()
    for name, values in have.items():
        missing = is_missing(values)
        if missing.all():
            yield Problem(name, "has no value in any row")
        elif missing.any() and name in complete:
            yield Problem(name, "has missing values, which the contract does not allow")


def _types(contract: Contract, have: Table) -> Iterator[Problem]:
    flags = {column.name for column in contract.columns if isinstance(column, Flag)}
    for name, values in have.items():
        if is_missing(values).all():
            continue
        if name in contract.number_columns and not is_number(values):
            yield Problem(name, "must be a number")
        elif name in contract.number_columns and np.isinf(values).any():
            yield Problem(name, "must be a finite number")
        elif name in flags and (codes(values, FLAG_LEVELS) == UNKNOWN).any():
            yield Problem(name, "must be 0 or 1, true or false, yes or no")
        elif name == contract.unit.order_by and order_key(values[~is_missing(values)]) is None:
            yield Problem(
                name, "must be numbers, or dates that are all written alike as 2024-03-31, to order rows by"
            )


def _people(contract: Contract, have: Table) -> Iterator[Problem]:
    unit = contract.unit
    if unit.column is not None and unit.column in have and unit.rows == 1 and unit.order_by is None:
        ids = have[unit.column][~is_missing(have[unit.column])]
        if len(number_people(ids)[0]) < len(ids):
            rule = "has several rows for one person, but the contract says one row and has no order_by"
            yield Problem(unit.column, rule)


def _count_people(contract: Contract, have: Table) -> int:
    if contract.unit.kind == "row":
        return len(next(iter(have.values())))
    ids = have.get(str(contract.unit.column), np.empty(0, dtype=object))
    return len(number_people(ids[~is_missing(ids)])[0])


def _label(contract: Contract, have: Table) -> Iterator[Problem]:
    label = contract.label
    if label.column in have and not is_missing(have[label.column]).all():
        outcome = label.outcome(have[label.column])
        if outcome.all() or not outcome.any():
            yield Problem(
                label.column, "has one class only, but a label needs people with and without the outcome"
            )


def _groups(contract: Contract, have: Table) -> Iterator[Problem]:
    for group in contract.groups:
        if group.other or group.column not in have or (group.edges and not is_number(have[group.column])):
            continue
        if (group.codes(have[group.column]) == UNKNOWN).any():
            yield Problem(
                group.column, f"has values outside the levels of the group {group.name}, which has no other"
            )


def _split(contract: Contract, have: Table) -> Iterator[Problem]:
    column, person_column = contract.split, contract.unit.column
    if column is None or column not in have:
        return
    part = codes(have[column], {name: i for i, name in enumerate(PARTS)})
    if (part == UNKNOWN).any():
        yield Problem(column, "must be train, tune or test in every row")
    if person_column is not None and person_column in have:
        person = number_people(have[person_column])[1]
        lowest, highest = np.full(len(part), 9), np.full(len(part), -9)
        np.minimum.at(lowest, person, part)
        np.maximum.at(highest, person, part)
        if (lowest < highest).any():
            yield Problem(column, "must be the same in every row of a person")


def _told(value: Any) -> list[Any]:
    """The fields of a dataclass that differ from their defaults, and its `type`."""
    return [item for item in fields(value) if not item.init or getattr(value, item.name) != item.default]


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in _told(value)}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
