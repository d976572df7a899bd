"""An agency's own records -> the levels that a demand map counts. Errors name columns and rules, never a cell.

Of people their most recent row counts. Where a query counts rows, a person with more than `unit.rows` keeps so many, by
a keyed hash of the person's id and of what the row has of its own: the value that orders it, and how many of the
person's rows had the same before it. So nobody's rows depend on anybody else's (that is what the sensitivity rests on),
the same rows stay in every map of a node, and they are spread over time rather than the last ones.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from clients.records.cells import DataError, ReadAs
from clients.records.intake import Gathered, gather
from clients.records.sources import ROWS, FileSource, Source
from models.contract import Contract, Group, validate
from models.design import Counted
from models.table import Table, is_number
from models.workload import Counts, Workload

EVERY = 2**31  # rows of one person, more than anybody has


def load_counted(
    contract: Contract,
    source: Source | Path,
    workload: Workload,
    kind: str | None,
    *,
    min_people: int,
    key: bytes,
    rows: int = ROWS,
) -> Counted:
    """The levels of every person, and of the rows that count, in the columns that `workload` needs, and no other.

    `workload`: as agencies of this `kind` hold it. `key`: known to this node alone. `rows`: of one batch. What is missing
    or in no level is in "other", or outside of all months; a group that has no other is a problem. `DataError` lists
    every problem.
    """
    source = FileSource(source) if isinstance(source, Path) else source
    if not key:
        raise ValueError("the key that chooses rows must not be empty")
    narrowed = _narrowed(contract, workload)
    needs: dict[str, ReadAs] = {
        name: "number" if name in contract.number_columns else read_as
        for name, read_as in narrowed.needs(kind).items()
    }
    found = gather(narrowed, source, needs, kind, rows)
    problems = [str(problem) for problem in validate(narrowed, found.witness, kind)]
    problems += [
        f"column {name!r} must be a number"
        for name, read_as in needs.items()
        if read_as == "number" and name in found.witness and not is_number(found.witness[name])
    ]
    if not problems and found.people < min_people:
        problems = [f"the table has fewer people than the {min_people} that are required"]
    if problems:
        lines = "\n".join(f"- {problem}" for problem in dict.fromkeys(problems))
        raise DataError(f"{source.name} does not fit the map {workload.name}:\n{lines}")
    people = found.rows[found.stops - 1]
    counted = found.rows[_kept(found, contract.unit.rows, key)] if workload.tables("row") else people[:0]
    return Counted(
        workload.codes(_table(found, workload, people, "person"), "person"),
        len(people),
        workload.codes(_table(found, workload, counted, "row"), "row"),
        len(counted),
    )


def _narrowed(contract: Contract, workload: Workload) -> Contract:
    """The contract with nothing but the unit and the workload's attributes; all rows where rows are counted."""
    unit = contract.unit
    if workload.tables("row") and (unit.order_by or unit.rows > 1):
        unit = replace(unit, rows=EVERY)
    return replace(
        contract,
        unit=unit,
        columns=(),
        groups=tuple(each for each in workload.attributes.values() if isinstance(each, Group)),
        blocks=(),
        split=None,
        label=replace(contract.label, held_by=()),
        intensity=None,
        lead_time=None,
        practice=None,
    )


def _table(found: Gathered, workload: Workload, rows: np.ndarray, counts: Counts) -> Table:
    """The cells of some rows, of the columns that queries of this kind need."""
    attributes = {name for of in workload.tables(counts) for name in of}
    needed = [workload.attributes[name] for name in attributes]
    return {
        each.column: found.column(each.column, rows) if isinstance(each, Group) else found.order(rows)
        for each in needed
    }


def _kept(found: Gathered, most: int, key: bytes) -> np.ndarray:
    """Places in `found.rows` of the rows that count, ascending: `most` of each person at most."""
    sizes = np.diff(found.stops, prepend=0)
    keep = np.repeat(sizes <= most, sizes)
    crowded = np.flatnonzero(~keep)
    if len(crowded) == 0:
        return np.flatnonzero(keep)
    order, names = found.order(found.rows[crowded]).tolist(), np.concatenate(list(found.ids()))
    secret, start = hashlib.blake2b(key, digest_size=64).digest(), 0
    for person in np.flatnonzero(sizes > most).tolist():
        stop = start + int(sizes[person])
        chosen = _smallest(str(names[person]), order[start:stop], most, secret)
        keep[crowded[start + chosen]] = True
        start = stop
    return np.flatnonzero(keep)


def _smallest(person: str, order: list[object], most: int, secret: bytes) -> np.ndarray:
    """Which of one person's rows stay: those with the smallest hashes."""
    seen: dict[object, int] = {}
    hashes = []
    for value in order:
        number = seen[value] = seen.get(value, 0) + 1
        text = f"{person}\0{value}\0{number}"
        hashes.append(
            hashlib.blake2b(text.encode(), digest_size=16, key=secret, person=b"fedrisk map rows").digest()
        )
    return np.array(sorted(range(len(hashes)), key=hashes.__getitem__)[:most], dtype=np.int64)
