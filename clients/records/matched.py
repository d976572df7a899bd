"""An agency's own records -> match keys, for a cohort's histogram. Errors name columns and rules, never a cell."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np

from clients.records.cells import DataError, ReadAs
from clients.records.intake import gather
from clients.records.sources import ROWS, FileSource, Source
from models.contract import Contract, Group, Problem, validate
from models.matchkey import match_keys
from models.table import Table, is_missing


@final
@dataclass(frozen=True, eq=False, repr=False)  # repr=False: a traceback or a log must not show records
class Keys:
    """The distinct pairs of match key and group of an agency's people: whose histogram a cohort releases.

    keys, group: one entry for each pair; group is the level's place in `by.level_names`, int64, all 0 without one.
    people: how many person ids there are (rows, where the unit is the row); without: those of them who have no key.
    Both are counts of records, for this machine alone.

    A histogram that counts each entry in one cell, which its key and group determine, moves by 1 at most in L1 when one
    person (id) with all rows joins or leaves: a person adds at most one pair, that of the most recent row, which is
    there or not as others have it; nobody else's pair changes. Two ids that have one key are one person here, unless
    they are in two groups: then both pairs count. To choose one would let the one who joins take the other from
    a cell and enter another, a change of 2.
    """

    keys: tuple[str, ...]
    group: np.ndarray
    people: int
    without: int


def load_keys(
    contract: Contract,
    source: Source | Path,
    kind: str | None,
    *,
    min_people: int,
    by: Group | None = None,
    rows: int = ROWS,
) -> Keys:
    """Keys as the contract's `match` makes them of each person's most recent row, with its level of `by`.

    Of the contract's columns only the id, the order, those of `match` and that of `by` are read. Where agencies of this
    kind do not hold the column of `by`, everybody is in its level "other". `DataError` lists every problem; a part of a
    key that a person lacks is none, but a column without any value is, and so is a table where fewer than `min_people`
    have a key: of dates that are no dates, say.
    """
    source = FileSource(source) if isinstance(source, Path) else source
    if contract.match is None:
        raise DataError(
            f"the contract {contract.name} has no match, so nothing says when two agencies know the same person"
        )
    held = by is not None and by.column in contract.needs(kind)
    bare = replace(
        contract,
        columns=(),
        groups=(by,) if by is not None and held else (),
        blocks=(),
        split=None,
        label=replace(contract.label, held_by=()),
    )
    unit = contract.unit
    wanted: dict[str, ReadAs] = {name: "text" for name in (unit.column, unit.order_by) if name}
    wanted |= dict.fromkeys(contract.match.columns, "text")
    if by is not None and held:
        wanted[by.column] = "number" if by.column in contract.number_columns else "text"
    found = gather(bare, source, wanted, kind, rows, contract.match.columns)
    problems = [*validate(bare, found.witness, kind), *_missing(contract.match.columns, found.witness)]
    if not problems and found.people < min_people:
        problems.append(Problem("", f"the table has fewer people than the {min_people} that are required"))
    if problems:
        raise _unfit(source, problems)
    newest = found.rows[found.stops - 1]
    keys = match_keys(contract.match, {name: found.column(name, newest) for name in contract.match.columns})
    if found.people - keys.count(None) < min_people:
        columns = ", ".join(contract.match.columns)
        say = f"fewer people than the {min_people} that are required have a match key: see how {columns} are written"
        raise _unfit(source, [Problem("", f"{say} (docs/matching.md)")])
    level = np.zeros(len(newest), dtype=np.int64)
    if by is not None:
        level = by.codes(found.column(by.column, newest)) if held else level + by.level_names.index("other")
    pairs = dict.fromkeys(
        (key, group) for key, group in zip(keys, level.tolist(), strict=True) if key is not None
    )
    return Keys(
        tuple(key for key, _ in pairs),
        np.array([group for _, group in pairs], dtype=np.int64),
        found.people,
        keys.count(None),
    )


def _unfit(source: Source, problems: Sequence[Problem]) -> DataError:
    lines = "\n".join(f"- {problem}" for problem in dict.fromkeys(problems))
    return DataError(f"{source.name} does not fit what was asked:\n{lines}")


def _missing(names: tuple[str, ...], table: Table) -> Iterator[Problem]:
    for name in names:
        if name not in table:
            yield Problem(name, "is not in the table, and the contract's match needs it")
        elif len(table[name]) and is_missing(table[name]).all():
            yield Problem(name, "has no value in any row, so nobody has a match key")
