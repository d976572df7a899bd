"""A source's batches -> what a contract needs of them, in small types: memory grows with people, not with rows.

Of each batch three things stay. Its *witnesses*: a row for each kind of cell that was not seen before, so that
`models.contract.validate` finds in those few rows what it would find in all. The distinct people. And each
person's `unit.rows` most recent rows, numbers as float64, text as a code: all values to which the contract gives no
meaning are alike to it, so they have one code. Only what names people for matching is kept as it is written.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pyarrow.compute as pc  # type: ignore[import-untyped, unused-ignore]

from clients.records.cells import Array, Cells, ReadAs, distinct_of, objects_of
from clients.records.sources import ROWS, Batch, Source
from models.contract import FLAG_LEVELS, PARTS, Contract, Flag, Number
from models.features import row_ids
from models.table import Table, canonical


def known_values(contract: Contract) -> dict[str, tuple[str, ...]]:
    """Column -> every text to which the contract gives a meaning there."""
    found: dict[str, list[str]] = {}
    for column in contract.columns:
        if not isinstance(column, Number):
            found.setdefault(column.name, []).extend(
                FLAG_LEVELS if isinstance(column, Flag) else column.levels
            )
    for group in contract.groups:
        if not group.edges:
            found.setdefault(group.column, []).extend(
                value for level in group.levels for value in level.values
            )
    found.setdefault(contract.label.column, []).extend(contract.label.positive)
    if contract.intensity is not None and not contract.intensity.edges:
        values = [value for level in contract.intensity.levels for value in level.values]
        found.setdefault(contract.intensity.column, []).extend(values)
    if contract.practice is not None:
        found.setdefault(contract.practice.column, []).extend(contract.practice.positive)
    if contract.split is not None:
        found.setdefault(contract.split, []).extend(PARTS)
    return {name: tuple(dict.fromkeys(values)) for name, values in found.items()}


@final
class Gathered:
    """What `gather` keeps.

    witness: rows that have every problem that the table has.  people: how many people (rows, where the unit is the
    row).  rows: numbers of the rows that are kept, sorted by person, a person's most recent last.  stops: where each
    person's rows end in `rows`, (people,).
    """

    def __init__(self, intake: "Intake") -> None:
        self._intake = intake
        self.witness = intake.witness()
        self.people = intake.n_people
        person, key = intake.person, intake.order_keys()
        self.rows = np.lexsort((np.arange(len(person)), key, person))
        self.stops = np.cumsum(np.bincount(person, minlength=intake.n_numbers))

    def column(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Cells of some rows: float64, or objects of str in which a value that means nothing is another one."""
        values = self._intake.kept[name]
        as_kept = values.dtype in (np.float64, object)
        return np.asarray(values[rows] if as_kept else self._intake.decode[name][values[rows]])

    def order(self, rows: np.ndarray) -> np.ndarray:
        """What some rows are ordered by, as it is in the source: float64, or days as objects of str; zeros without one."""
        return self._intake.order_cells(rows)

    def table(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Every feature, group, label and split of some rows."""
        return {name: self.column(name, rows) for name in self._intake.kept}

    def ids(self, size: int = ROWS) -> Iterator[np.ndarray]:
        """The names of all people in order, objects, `size` at a time."""
        return self._intake.names(size)


def gather(
    contract: Contract,
    source: Source,
    needs: Mapping[str, ReadAs],
    kind: str | None,
    rows: int = ROWS,
    written: Collection[str] = (),
) -> Gathered:
    """Read what `needs` names; only the columns that are there. `DataError` where the source cannot be read.

    written: columns of text whose cells are kept as they are written, whatever the contract makes of them.
    """
    intake = Intake(contract, needs, kind, rows, written)
    with closing(source.batches(list(needs), rows)) as batches:
        for batch in batches:
            intake.add(batch)
    intake.settle()
    return Gathered(intake)


@final
class Intake:
    """Takes batches, and settles now and then: `settle` numbers people and forgets rows that no longer count.

    It settles when the rows that wait are half as many as those that are kept, so that all settling together costs a
    small multiple of the last one, and few rows more than those that are kept are ever held.
    """

    def __init__(
        self,
        contract: Contract,
        needs: Mapping[str, ReadAs],
        kind: str | None,
        at_least: int = ROWS,
        written: Collection[str] = (),
    ) -> None:
        self._contract, self._unit, self._kind = contract, contract.unit, kind
        self._needs, self._at_least, self._written = dict(needs), at_least, frozenset(written)
        known = {name: values for name, values in known_values(contract).items() if name in needs}
        self._levels = {name: {value: i for i, value in enumerate(values)} for name, values in known.items()}
        self.decode = {name: _decoding(values) for name, values in known.items()}
        self.kept: dict[str, np.ndarray] = {}
        self.person = np.empty(0, dtype=np.int64)
        self._waiting: list[_Rows] = []
        self._n_waiting = 0
        self._ids = pa.array([], pa.large_string())
        self._digests = np.empty((0, 16), dtype=np.uint8)
        self._order: Array | None = None
        self._no_order = False  # an error for certain: some cells are days, others numbers
        self._parts = np.empty((2, 0), dtype=np.int64)  # lowest and highest part of each person
        self._several = False  # somebody has more rows than one, where one is all there may be
        self._texts: set[str] = set()  # columns of numbers that hold text
        self._columns: list[str] = []
        self._seen: set[tuple[str, str, int]] = set()
        self._witnesses: list[dict[str, tuple[float | None, str | None]]] = []

    def add(self, batch: Batch) -> None:
        """One batch. The first may be empty: it says which columns there are."""
        if not self._columns:
            self._columns = list(batch)
            self.kept = {
                name: np.empty(0, self._type(name)) for name in batch if self._type(name) is not None
            }
        cells = {name: Cells.read(values, self._needs[name]) for name, values in batch.items()}
        n = len(next(iter(cells.values()))) if cells else 0
        if n == 0:
            return
        coded = {name: list(cells[name].codes(self._levels[name])) for name in cells if name in self._levels}
        self._texts |= {
            name for name, found in cells.items() if found.read_as == "number" and found.numbers is None
        }
        rows = self._rows(cells, coded, n)
        self._see(cells, coded, rows)
        self._waiting.append(rows)
        self._n_waiting += n
        if self._n_waiting >= max(self._at_least, len(self.person) // 2):
            self.settle()

    def _type(self, name: str) -> type | None:
        """How a column is kept, if it is: the id and the order are kept elsewhere."""
        if self._needs[name] == "number":
            return np.float64
        if name in self._written:
            return object
        if name not in self._levels:
            return None
        return np.int16 if len(self._levels[name]) < 2**15 else np.int32

    def _rows(self, cells: Mapping[str, Cells], coded: Mapping[str, list[np.ndarray]], n: int) -> "_Rows":
        columns: dict[str, np.ndarray] = {}
        for name in self.kept:
            numbers = cells[name].numbers
            if name in self._written:
                place, distinct = distinct_of(cells[name].text)
                columns[name] = distinct[place]
            elif self._needs[name] == "text":
                columns[name] = coded[name][0].astype(self.kept[name].dtype)
            else:
                columns[name] = np.full(n, np.nan) if numbers is None else numbers
        unit = self._unit
        who = cells.get(unit.column or "")
        order = cells.get(unit.order_by or "")
        return _Rows(
            columns,
            None if who is None else _canonical(who.text),
            self._digests_of(cells, columns) if unit.column is None else None,
            *(None, None) if order is None else order.order,
        )

    def _digests_of(self, cells: Mapping[str, Cells], numbers: Mapping[str, np.ndarray]) -> np.ndarray:
        """What rows are named by (`models.features.row_ids`) without their numbers, uint8 (n, 16)."""
        table = {
            name: objects_of(found.text) if found.read_as == "text" else numbers[name]
            for name, found in cells.items()
        }
        names = row_ids(self._contract, table, self._kind).tolist()
        data = bytes.fromhex("".join(name.partition("-")[0] for name in names))
        return np.frombuffer(data, dtype=np.uint8).reshape(-1, 16)

    def _see(self, cells: Mapping[str, Cells], coded: Mapping[str, list[np.ndarray]], rows: "_Rows") -> None:
        """Keep a row for each kind of cell that is new."""
        aspects = [(name, "kind", found.kinds) for name, found in cells.items()]
        aspects += [
            (name, f"code {i}", code) for name, found in coded.items() for i, code in enumerate(found)
        ]
        if rows.order_kind is not None:
            aspects.append((str(self._unit.order_by), "order", rows.order_kind))
        new = set()
        for name, aspect, kinds in aspects:
            for kind, first in zip(*np.unique(kinds, return_index=True), strict=True):
                if (name, aspect, int(kind)) not in self._seen:
                    self._seen.add((name, aspect, int(kind)))
                    new.add(int(first))
        self._witnesses += [{name: found.shown(row) for name, found in cells.items()} for row in sorted(new)]

    def settle(self) -> None:
        """Number the people of the rows that wait, and keep of each person what counts."""
        waiting, self._waiting, self._n_waiting = self._waiting, [], 0
        if not waiting or (self._unit.column is not None and waiting[0].who is None):
            return
        old = len(self.person)
        self.person = np.concatenate([self.person, self._number(waiting)])
        for name in self.kept:
            self.kept[name] = np.concatenate([self.kept[name], *(rows.columns.pop(name) for rows in waiting)])
        self._see_parts(old)
        self._join_order([rows.order for rows in waiting if rows.order is not None])
        counts = np.bincount(self.person, minlength=self.n_numbers)
        if self._unit.rows == 1 and self._unit.order_by is None and self._unit.column is not None:
            self._several |= bool((counts > 1)[self._named].any())
        if (counts > self._unit.rows).any():
            self._forget(counts)
        pa.default_memory_pool().release_unused()  # what batches took, back to the operating system

    def _number(self, waiting: "Sequence[_Rows]") -> np.ndarray:
        """The number of each waiting row's person, in the order in which people first appear."""
        if self._unit.column is None:
            old = len(self._digests)
            self._digests = np.concatenate(
                [self._digests, *(rows.digests for rows in waiting if rows.digests is not None)]
            )
            return np.arange(old, len(self._digests))
        old = len(self._ids)
        found = pa.chunked_array([self._ids, *(rows.who for rows in waiting)]).combine_chunks()
        if isinstance(found, pa.ChunkedArray):
            found = pa.concat_arrays(found.chunks)
        found = found.dictionary_encode(null_encoding="encode")
        self._ids = found.dictionary
        return np.asarray(found.indices.to_numpy(zero_copy_only=False)[old:], dtype=np.int64)

    def _see_parts(self, start: int) -> None:
        """Note each person's lowest and highest part, where a column says them, in the rows from `start` on."""
        name = self._contract.split
        if name is None or name not in self.kept:
            return
        new = self.n_numbers - self._parts.shape[1]
        self._parts = np.concatenate([self._parts, np.array([[99], [-99]]).repeat(new, axis=1)], axis=1)
        np.minimum.at(self._parts[0], self.person[start:], self.kept[name][start:])
        np.maximum.at(self._parts[1], self.person[start:], self.kept[name][start:])

    def _join_order(self, arrays: list[Array]) -> None:
        arrays = arrays if self._order is None else [self._order, *arrays]
        self._no_order |= len({str(array.type) for array in arrays}) > 1
        self._order = pa.concat_arrays(arrays) if arrays and not self._no_order else None

    def order_keys(self) -> np.ndarray:
        """Numbers that sort as the kept rows do, float64."""
        if self._order is None:
            return np.zeros(len(self.person))
        if pa.types.is_floating(self._order.type):
            return np.asarray(self._order.to_numpy(zero_copy_only=False))
        found = self._order.dictionary_encode()
        place = np.empty(len(found.dictionary))
        place[np.asarray(pc.sort_indices(found.dictionary))] = np.arange(len(place))
        return np.asarray(place[np.asarray(pc.fill_null(found.indices, 0))])

    def order_cells(self, rows: np.ndarray) -> np.ndarray:
        """What some kept rows are ordered by: float64, or objects of str."""
        if self._order is None:
            return np.zeros(len(rows))
        cells = self._order.take(pa.array(rows))
        if pa.types.is_floating(cells.type):
            return np.asarray(cells.to_numpy(zero_copy_only=False))
        indices, distinct = distinct_of(cells)
        return np.asarray(distinct[indices])

    def _forget(self, counts: np.ndarray) -> None:
        order = np.lexsort((np.arange(len(self.person)), self.order_keys(), self.person))
        from_last = np.cumsum(counts)[self.person[order]] - 1 - np.arange(len(order))
        keep = np.sort(order[from_last < self._unit.rows])
        self.person = self.person[keep]
        for name in self.kept:
            self.kept[name] = self.kept[name][keep]
        self._order = None if self._order is None else self._order.take(pa.array(keep))

    @property
    def n_numbers(self) -> int:
        """How many numbers people have; rows without an id count as one person here, as in `number_people`."""
        return len(self._digests) if self._unit.column is None else len(self._ids)

    @property
    def n_people(self) -> int:
        """How many people (or rows) there are."""
        return self.n_numbers - (0 if self._unit.column is None else self._ids.null_count)

    @property
    def _named(self) -> np.ndarray:
        return np.asarray(self._ids.is_valid().to_numpy(zero_copy_only=False))

    def names(self, size: int) -> Iterator[np.ndarray]:
        """Everybody's name in order, objects, `size` at a time; of rows as `models.features.row_ids` has them."""
        if self._unit.column is not None:
            for start in range(0, len(self._ids), size):
                yield objects_of(self._ids.slice(start, size))
            return
        number = _numbers_among_alike(self._digests)
        for start in range(0, len(number), size):
            here = slice(start, start + size)
            pairs = zip(self._digests[here], number[here].tolist(), strict=True)
            yield np.array([f"{digest.tobytes().hex()}-{i}" for digest, i in pairs], dtype=object)

    def witness(self) -> Table:
        """A few rows that have every problem that all have."""
        rows = [*self._witnesses, *self._doubles()]
        table = {}
        for name in self._columns:
            if self._needs[name] == "number" and name not in self._texts:
                table[name] = np.array([row[name][0] for row in rows], dtype=np.float64)
            else:
                table[name] = np.empty(len(rows), dtype=object)
                table[name][:] = [row[name][1] for row in rows]
        return table

    def _doubles(self) -> "Iterator[dict[str, tuple[float | None, str | None]]]":
        """Rows that stand for those of one person that do not go together."""
        person, split = self._unit.column, self._contract.split
        if person is not None and self._several:
            yield next(row for row in self._witnesses if row[person][1] is not None)
        differ = self._parts[0] < self._parts[1]
        if differ.any() and split is not None:
            named = person is None or bool(differ[self._named].any())
            row = next(
                row for row in self._witnesses if person is None or (row[person][1] is not None) == named
            )
            yield row | {split: (None, PARTS[0] if row[split][1] != PARTS[0] else PARTS[1])}


@final
@dataclass(frozen=True, eq=False, repr=False)
class _Rows:
    """One batch's rows until they are settled. who: ids as text; digests: of rows, where the unit is the row."""

    columns: dict[str, np.ndarray]
    who: Array | None
    digests: np.ndarray | None
    order_kind: np.ndarray | None
    order: Array | None


def _decoding(known: Sequence[str]) -> np.ndarray:
    """Code -> a text that the contract reads alike: in its places -2 and -1 a missing cell and an unknown one."""
    unknown = "?" * (1 + max(map(len, known), default=0))
    found = np.empty(len(known) + 2, dtype=object)
    found[:] = [*known, None, unknown]
    return found


def _canonical(ids: Any) -> Array:
    """`models.table.canonical` of every id: "1.0" is "1"."""
    if pc.any(pc.match_substring_regex(ids, r"\.0+$"), min_count=0).as_py():
        ids = pa.array([canonical(value) for value in ids.to_pylist()], pa.string())
    return ids.cast(pa.large_string())


def _numbers_among_alike(digests: np.ndarray) -> np.ndarray:
    """For each row, how many before it have the same digest, int64 (rows,)."""
    halves = np.ascontiguousarray(digests).view(np.uint64)
    order = np.lexsort((np.arange(len(halves)), halves[:, 0], halves[:, 1]))
    there = halves[order]
    starts = np.r_[True, (there[1:] != there[:-1]).any(axis=1)] if len(there) else np.zeros(0, dtype=bool)
    first = np.maximum.accumulate(np.where(starts, np.arange(len(there)), 0))
    number = np.empty(len(there), dtype=np.int64)
    number[order] = np.arange(len(there)) - first
    return number
