"""One column's cells, as Arrow reads them -> text or numbers: the same from every kind of source, batch by batch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pyarrow.compute as pc  # type: ignore[import-untyped, unused-ignore]

from models.table import MISSING_TEXT, canonical, codes, order_key

ReadAs = Literal["number", "text"]
Array = Any  # a pyarrow Array or ChunkedArray
PLAIN_NUMBER = r"^-?(0|[1-9]\d{0,14})(\.\d+)?([eE][+-]?\d+)?$"
"""What an untyped column must look like to be numbers: "007" and long digit strings are ids, so text."""
FINITE, INFINITE, NAN, MISSING, TEXT, DAY = range(6)  # kinds of cells
_MISSING = pa.array(sorted(MISSING_TEXT))


class DataError(ValueError):
    """Records that cannot be used: sentences for the person at this machine, without any cell."""


def holds_numbers(values: Array) -> bool:
    """Whether the cells have a type of numbers, or no type at all."""
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
    return any(test(values.type) for test in tests)


def text_of(values: Array) -> Array:
    """Every cell as text without spaces around it; null where it is missing (empty, or in `MISSING_TEXT`)."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    text = pc.utf8_trim_whitespace(values.cast(pa.string()))
    return pc.if_else(pc.is_in(text, value_set=_MISSING), pa.scalar(None, pa.string()), text)


def numbers_of(values: Array) -> np.ndarray | None:
    """Every cell as a number, float64 with NaN where it is missing; None where a cell is no number."""
    try:
        if holds_numbers(values):
            return _floats(values.cast(pa.float64(), safe=False))
        return _floats(text_of(values).cast(pa.float64()))
    except pa.ArrowInvalid:
        return None


def column(batches: Sequence[Array], read_as: ReadAs | None) -> np.ndarray:
    """One whole column, from its batches -> float64 with NaN, or objects of str with None; shape (rows,).

    A "number" column that holds other text stays text, so that `validate` can name it. Without `read_as`, the column
    is numbers where its type says so, or where every cell is plainly one.
    """
    values = pa.chunked_array(batches)
    if read_as != "text" and holds_numbers(values):
        return _floats(values.cast(pa.float64(), safe=False))
    text = text_of(values)
    plain = read_as is None and pc.all(pc.match_substring_regex(text, PLAIN_NUMBER), min_count=0).as_py()
    numbers = numbers_of(text) if plain or read_as == "number" else None
    return objects_of(text) if numbers is None else numbers


def objects_of(text: Array) -> np.ndarray:
    """Text as objects of str with None, (rows,)."""
    return np.asarray(text.to_numpy(zero_copy_only=False), dtype=object)


@final
@dataclass(frozen=True, eq=False, repr=False)  # repr=False: a traceback or a log must not show records
class Cells:
    """One column of one batch. numbers: float64, None unless every cell is one. text: None where cells had a type."""

    read_as: ReadAs
    numbers: np.ndarray | None
    text: Array

    @classmethod
    def read(cls, values: Array, read_as: ReadAs) -> "Cells":
        if read_as == "text":
            return cls(read_as, None, text_of(values))
        text = None if holds_numbers(values) else text_of(values)
        return cls(read_as, numbers_of(values if text is None else text), text)

    def __len__(self) -> int:
        return len(self.text) if self.numbers is None else len(self.numbers)

    def shown(self, row: int) -> tuple[float | None, str | None]:
        """One cell as a number and as text, as far as it is one."""
        number = None if self.numbers is None else float(self.numbers[row])
        return number, canonical(number) if self.text is None else self.text[row].as_py()

    @property
    def kinds(self) -> np.ndarray:
        """What kind of cell each one is, int64: all that `validate` asks of a number, or of a person."""
        kinds = np.full(len(self), TEXT)
        if self.numbers is not None:
            kinds = np.where(np.isinf(self.numbers), INFINITE, FINITE)
            kinds[np.isnan(self.numbers)] = MISSING if self.text is None else NAN
        if self.text is not None:
            kinds[self.text.is_null().to_numpy(zero_copy_only=False)] = MISSING
        return kinds

    @property
    def order(self) -> tuple[np.ndarray, Array]:
        """What kind of cell each one is for an order, int64, and what sorts as the cells do where all are alike."""
        if self.numbers is not None:
            return self.kinds, pa.array(self.numbers)
        indices, distinct = distinct_of(self.text)
        kind = np.full(len(distinct), MISSING)
        there = np.array([value is not None for value in distinct], dtype=bool)
        keys = order_key(distinct[there])
        if keys is None:
            kind[there] = [order_kind(value) for value in distinct[there].tolist()]
        elif there.any():
            kind[there] = order_kind(distinct[there][0])
        if keys is None or (kind[there] == DAY).any():
            return kind[indices], self.text
        numbers = np.full(len(distinct), np.nan)
        numbers[there] = keys
        return kind[indices], pa.array(numbers[indices])

    def codes(self, levels: Mapping[str, int]) -> Iterator[np.ndarray]:
        """Each cell's level, int64: of the cells as numbers, and as text."""
        if self.numbers is not None:
            yield codes(self.numbers, levels)
        if self.text is not None:
            indices, distinct = distinct_of(self.text)
            yield codes(distinct, levels)[indices]


def order_kind(value: str) -> int:
    """What a single cell is for an order: number, day, or text."""
    if order_key(np.array([value], dtype=object)) is None:
        return TEXT
    try:
        float(value)
    except ValueError:
        return DAY
    return FINITE


def distinct_of(text: Array) -> tuple[np.ndarray, np.ndarray]:
    """(each cell's place among the distinct ones, the distinct ones as objects of str or None)."""
    found = text.dictionary_encode(null_encoding="encode")
    return np.asarray(found.indices.to_numpy(zero_copy_only=False)), objects_of(found.dictionary)


def _floats(values: Array) -> np.ndarray:
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64)
