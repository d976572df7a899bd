"""The people of INPUT, as the contract reads them: features, references, what is missing, how old it is, what is odd.

Only what the model needs is read: neither the label nor the groups that an audit compares nor the split.
"""

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np

from clients.records.cells import ReadAs
from clients.records.data import read_table
from clients.scoring.model_file import ScoringError
from clients.scoring.reasons import label_of
from models.contract import Category, Column, Contract, Number, Ordinal, validate
from models.features import bound_rows, encode
from models.table import UNKNOWN, Table, canonical, codes, is_missing

MOST_MISSING = 0.25  # of the columns that this agency holds
NOTHING_IN_IT = "has no value in any row"  # of few people that is no wonder
_DATE = re.compile(r"(\d{4})-(\d{2})(?:-(\d{2}))?")
_HORIZON = re.compile(r"(\d+(?:\.\d+)?)\s*(day|week|month|year)s?\b")
_DAYS = {"day": 1.0, "week": 7.0, "month": 30.4375, "year": 365.25}


@final
@dataclass(frozen=True, eq=False, repr=False)  # repr=False: a traceback or a log must not show records
class People:
    """n people, by their most recent row. Local: nothing here leaves the machine.

    x: float32 (n, d).  cells: column -> (n,) as read, of the contract's columns that this agency holds.
    missing: bool (n, columns of `cells`).  newest: the date of the row, or None where it has none.
    """

    references: tuple[str, ...]
    x: np.ndarray
    columns: tuple[Column, ...]
    cells: dict[str, np.ndarray]
    missing: np.ndarray
    newest: tuple[datetime.date | None, ...]


def read_people(path: Path, contract: Contract, kind: str | None, reference: str | None = None) -> People:
    """The people in `path`. `DataError` or `ScoringError` lists every problem, by column and rule.

    `reference` names the column with the record's reference where the contract's unit is a row.
    """
    bare = inputs_of(contract)
    column = _reference_column(contract, reference)
    wanted: dict[str, ReadAs] = {**bare.needs(kind), column: "text"}
    table = read_table(path, wanted)
    problems = [str(p) for p in validate(bare, table, kind) if not _harmless(p.column, p.rule, bare)]
    if column not in table:
        problems.append(f"column {column!r} is not in the table")
    elif contract.unit.column is None and _not_unique(table[column]):
        problems.append(f"column {column!r} must name each record, and each only once")
    if problems:
        lines = "\n".join(f"- {problem}" for problem in dict.fromkeys(problems))
        raise ScoringError(f"{path.name} does not fit the contract {contract.name}:\n{lines}")
    return _people(table, bare, kind, column)


def inputs_of(contract: Contract) -> Contract:
    """The contract without what only training and auditing need: label, groups and split."""
    return replace(contract, groups=(), split=None, label=replace(contract.label, held_by=()))


def why_out_of_scope(
    people: People,
    contract: Contract,
    kind: str | None,
    kinds: Sequence[str | None],
    as_of: datetime.date,
) -> list[tuple[str, ...]]:
    """For each person why the model's evidence is not about such a record; () where it is."""
    found: list[list[str]] = [[] for _ in people.references]
    if kind not in kinds:
        rule = "no agency of this kind took part in the training"
        for reasons in found:
            reasons.append(rule)
    for column in people.columns:
        for i in np.flatnonzero(_odd(column, people.cells[column.name])):
            found[i].append(_oddness(column))
    limit = max(1.0, MOST_MISSING * len(people.columns))
    for i in np.flatnonzero(people.missing.sum(1) > limit):
        found[i].append(f"more than {MOST_MISSING:.0%} of the columns have no value")
    oldest = horizon_days(contract.label.horizon)
    for reasons, newest in zip(found, people.newest, strict=True):
        if newest is not None and newest > as_of:
            reasons.append("the newest row is dated after the day of scoring")
        elif newest is not None and oldest is not None and (as_of - newest).days > oldest:
            reasons.append(f"the newest row is older than the horizon of {contract.label.horizon}")
    return [tuple(reasons) for reasons in found]


def horizon_days(horizon: str) -> float | None:
    """Days of "12 months" or "2 years"; None where the horizon is no time, as "at examination"."""
    said = _HORIZON.search(horizon.lower())
    return None if said is None else float(said[1]) * _DAYS[said[2]]


def _people(table: Table, bare: Contract, kind: str | None, column: str) -> People:
    encoded = encode(bare, table, kind)
    x = encoded.x if encoded.x.ndim == 2 else encoded.x[:, -1]
    latest = bound_rows(bare, table, kind)[1][:, -1]
    held = tuple(c for c in bare.columns if bare.holds(kind, c.block))
    cells = {c.name: table[c.name][latest] for c in held}
    missing = np.column_stack([is_missing(values) for values in cells.values()]) if held else np.empty((0, 0))
    order = bare.unit.order_by
    newest: list[datetime.date | None] = [None] * len(latest)
    if order is not None:
        newest = [_date(value) for value in table[order][latest].tolist()]
    references = tuple(str(canonical(value)) for value in table[column][latest].tolist())
    return People(references, x, held, cells, missing, tuple(newest))


def _reference_column(contract: Contract, asked: str | None) -> str:
    if contract.unit.column is not None:
        if asked not in (None, contract.unit.column):
            raise ScoringError(
                f"--reference is for contracts without a person's key: here {contract.unit.column!r} names the record"
            )
        return contract.unit.column
    if asked is None:
        raise ScoringError("the contract's unit is a row, so --reference must name the column of references")
    return asked


def _harmless(column: str, rule: str, bare: Contract) -> bool:
    """Whether a column without any value is one that may miss some."""
    return rule == NOTHING_IN_IT and any(c.name == column and c.missing for c in bare.columns)


def _not_unique(values: np.ndarray) -> bool:
    return bool(is_missing(values).any()) or len({canonical(v) for v in values.tolist()}) < len(values)


def _odd(column: Column, values: np.ndarray) -> np.ndarray:
    """Which cells the contract does not know: out of its bounds or not among its levels, bool (n,)."""
    match column:
        case Number():
            numbers = values.astype(np.float64)
            return np.asarray((numbers < column.min) | (numbers > column.max))
        case Ordinal() | Category():
            known = {level: i for i, level in enumerate(column.levels)}
            return np.asarray(codes(values, known) == UNKNOWN)
        case _:
            return np.zeros(len(values), dtype=bool)


def _oddness(column: Column) -> str:
    if isinstance(column, Number):
        return (
            f"{label_of(column)} is outside {column.min:g} to {column.max:g} and was read as the nearer end"
        )
    return f"{label_of(column)} has a value that the contract does not list"


def _date(value: object) -> datetime.date | None:
    """The day of an ISO date, the first of a month where it has no day; None for anything else."""
    found = _DATE.match(str(canonical(value)))
    try:
        return None if found is None else datetime.date(int(found[1]), int(found[2]), int(found[3] or 1))
    except ValueError:
        return None
