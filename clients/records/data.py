"""An agency's own records -> encoded arrays. Errors name columns and rules, never a cell.

A source (`clients/records/sources.py`) is read in batches, of which `clients/records/intake.py` keeps what the contract needs;
people are then encoded some at a time. How large a batch is changes nothing in the result.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, final

import numpy as np

from clients.records.cells import DataError, ReadAs, column
from clients.records.intake import Gathered, gather
from clients.records.sources import ROWS, FileSource, Source
from models.contract import Contract, Unit, validate
from models.features import assignment, encode, layout, split
from models.table import is_number, texts

PartName = Literal["train", "tune", "test"]
PART_NAMES: tuple[PartName, ...] = ("train", "tune", "test")
_PERSON, _ORDER = "\0person", "\0order"  # columns of the encoder's tables that no contract has


@final
@dataclass(frozen=True, eq=False, repr=False)  # repr=False: a traceback or a log must not show records
class Part:
    """The people of one part; shapes as in `models.features.Encoded`. y is None where no label is held."""

    x: np.ndarray
    y: np.ndarray | None
    present: np.ndarray
    group: np.ndarray
    user: np.ndarray | None = None


@final
@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """An agency's encoded people by part. clipped, unknown: counts by column, for this machine alone.

    assignment: names who is in which part where the contract's split column says it, "" where the key deals
    (`models.features.assignment`); for this machine alone as well.
    """

    parts: dict[PartName, Part]
    clipped: dict[str, int]
    unknown: dict[str, int]
    assignment: str


def load(
    contract: Contract,
    source: Source | Path,
    kind: str | None,
    *,
    fractions: Mapping[str, float],
    key: bytes,
    min_people: int,
    rows: int = ROWS,
) -> Dataset:
    """The agency's records, held against the contract, encoded and split. `DataError` lists every problem.

    People are split by the contract's split column, else by a keyed hash of their id (`fractions` of
    each part, `key` known to this node alone). `min_people` counts people, not rows. `rows`: of one batch.
    """
    found = checked(contract, source, kind, min_people=min_people, rows=rows)
    if contract.split is None:
        said = ""
        part = np.concatenate([split(ids, fractions, key) for ids in found.ids(rows)])
    else:
        part = texts(found.column(contract.split, found.rows[found.stops - 1]))
        said = assignment(np.concatenate(list(found.ids(rows))), part, key)
    return _Encoder(contract, kind, part).encode(found, rows, said)


def checked(
    contract: Contract, source: Source | Path, kind: str | None, *, min_people: int, rows: int = ROWS
) -> Gathered:
    """What the contract needs of the records; `DataError` lists every problem."""
    source = _source(source)
    found = gather(contract, source, contract.needs(kind), kind, rows)
    too_few = found.people < min_people  # as the witnesses then are, too
    problems = validate(contract, found.witness, kind, min_people=min_people if too_few else 0)
    if problems:
        lines = "\n".join(f"- {problem}" for problem in problems)
        raise DataError(f"{source.name} does not fit the contract {contract.name}:\n{lines}")
    return found


class _Encoder:
    """Arrays of the right size for each part, filled with some people at a time."""

    def __init__(self, contract: Contract, kind: str | None, part: np.ndarray) -> None:
        self._kind, self._part, self._rows = kind, part, contract.unit.rows
        self._contract = replace(contract, unit=Unit("person", _PERSON, self._rows, _ORDER))
        labelled = contract.holds_label(kind)
        self._parts: dict[PartName, Part] = {}
        for name in PART_NAMES:
            n = int((part == name).sum())
            shape = (n,) if self._rows == 1 else (n, self._rows)
            x = np.zeros((*shape, len(layout(contract).names)), dtype=np.float32)
            y = np.zeros(shape, dtype=np.float32) if labelled else None
            user = np.zeros(n, dtype=np.int64) if labelled and contract.users_shape is not None else None
            present, group = np.zeros(shape, dtype=np.float32), np.zeros(n, dtype=np.int64)
            self._parts[name] = Part(x, y, present, group, user)

    def encode(self, found: Gathered, rows: int, said: str) -> Dataset:
        filled = dict.fromkeys(PART_NAMES, 0)
        clipped: dict[str, int] = {}
        unknown: dict[str, int] = {}
        size = max(1, rows // self._rows)
        for start in range(0, len(found.stops), size):
            stops = found.stops[start : start + size]
            first = found.stops[start - 1] if start else 0
            here = found.rows[first : stops[-1]]
            people = np.repeat(np.arange(len(stops)), np.diff(stops, prepend=first))
            table = found.table(here) | {_PERSON: people, _ORDER: np.arange(len(here))}
            encoded = encode(self._contract, table, self._kind)
            for name in PART_NAMES:
                who = self._part[start : start + size] == name
                at, filled[name] = filled[name], filled[name] + int(who.sum())
                self._fill(self._parts[name], slice(at, filled[name]), encoded, who)
            for total, some in ((clipped, encoded.clipped), (unknown, encoded.unknown)):
                total.update({name: total.get(name, 0) + count for name, count in some.items()})
        return Dataset(self._parts, clipped, unknown, said)

    @staticmethod
    def _fill(part: Part, where: slice, encoded: object, who: np.ndarray) -> None:
        for name in ("x", "y", "present", "group", "user"):
            into, values = getattr(part, name), getattr(encoded, name)
            if into is not None:
                into[where] = values[who]


def load_values(
    contract: Contract,
    source: Source | Path,
    column: str,
    kind: str | None,
    *,
    min_people: int,
    rows: int = ROWS,
) -> np.ndarray:
    """One number per person (people,), float64: `column` in the most recent row, NaN where there is none.

    The contract need not know the column; of the contract's own columns only the id and the order are read.
    `DataError` lists every problem. Infinite values are no problem: the bins of a statistic take them.
    """
    unit, source = contract.unit, _source(source)
    wanted: dict[str, ReadAs] = {name: "text" for name in (unit.column, unit.order_by) if name}
    label = replace(contract.label, held_by=())
    rows_alone = replace(contract, columns=(), groups=(), blocks=(), split=None, label=label)
    found = gather(rows_alone, source, wanted | {column: "number"}, kind, rows)
    problems = [str(problem) for problem in validate(rows_alone, found.witness, kind)]
    if column not in found.witness:
        problems.append(f"column {column!r} is not in the table")
    elif not is_number(found.witness[column]):
        problems.append(f"column {column!r} must be a number")
    if not problems:
        if found.people >= min_people:
            return found.column(column, found.rows[found.stops - 1])
        problems.append(f"the table has fewer people than the {min_people} that are required")
    lines = "\n".join(f"- {problem}" for problem in problems)
    raise DataError(f"{source.name} does not fit what was asked:\n{lines}")


def read_table(path: Path, columns: Mapping[str, ReadAs] | None = None) -> dict[str, np.ndarray]:
    """A whole CSV (UTF-8, commas, a header) or Parquet file -> column -> float64 or objects of str, (rows,).

    With `columns` only those that are in the file are read, each as number or text; a "number" column
    that holds other text stays text, so that `validate` can name it. Without, a column is a number where
    every cell is plainly one. Missing is NaN or None: an empty cell or one of `MISSING_TEXT`. Spaces
    around a cell are dropped. `DataError` where the file cannot be read, in one sentence.
    """
    batches = list(FileSource(Path(path)).batches(columns))
    names = batches[0] if batches else ()
    return {name: column([batch[name] for batch in batches], (columns or {}).get(name)) for name in names}


def _source(source: Source | Path) -> Source:
    return FileSource(source) if isinstance(source, Path) else source


__all__ = [
    "PART_NAMES",
    "DataError",
    "Dataset",
    "Part",
    "PartName",
    "ReadAs",
    "checked",
    "load",
    "load_values",
    "read_table",
]
