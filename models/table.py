"""What a table is, and how a cell is read: the same everywhere, one cell at a time.

A table maps a column's name to a one-dimensional array: float64 where NaN is missing, or objects of
str where None is missing.
"""

import re
from collections.abc import Mapping

import numpy as np

Table = Mapping[str, np.ndarray]

MISSING_TEXT = frozenset({"", "NA", "N/A", "NaN", "nan", "null", "NULL", "<NA>"})
"""Cells of a text file that are read as missing, so a contract may not use them as levels."""

UNKNOWN, MISSING = -1, -2
_ZEROS = re.compile(r"-?\d+\.0+")
_ISO_DATE = re.compile(r"\d{4}-\d{2}(-\d{2}([ T].*)?)?")


def canonical(value: object) -> str | None:
    """The text of one cell: "1", 1, 1.0 and "1.0" are all "1"; "01" stays "01". None and NaN are missing."""
    if value is None or value != value:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value + 0.0) if isinstance(value, float) else str(value)  # + 0.0: no minus zero
    if text.endswith("0") and _ZEROS.fullmatch(text):
        return text.partition(".")[0]
    return text


def texts(values: np.ndarray) -> np.ndarray:
    """`canonical` of every cell, shape (n,), objects."""
    found = np.empty(len(values), dtype=object)
    found[:] = [canonical(value) for value in values.tolist()]
    return found


def codes(values: np.ndarray, levels: Mapping[str, int]) -> np.ndarray:
    """The number of each cell's level, int64 (n,); UNKNOWN for other values, MISSING for none."""
    cache = _Codes(levels)
    return np.fromiter(map(cache.__getitem__, values.tolist()), dtype=np.int64, count=len(values))


class _Codes(dict[object, int]):
    def __missing__(self, value: object) -> int:
        text = canonical(value)
        code = MISSING if text is None else self.get(text, UNKNOWN)
        self[value] = code
        return code


def is_number(values: np.ndarray) -> bool:
    """Whether the column holds numbers (and not text)."""
    return values.dtype.kind in "fiub"


def is_missing(values: np.ndarray) -> np.ndarray:
    """Which cells are missing, bool (n,)."""
    if is_number(values):
        return np.isnan(values.astype(np.float64))
    return np.asarray((values == None) | (values != values), dtype=bool)  # noqa: E711 - by element


def order_key(values: np.ndarray) -> np.ndarray | None:
    """Numbers that sort as the column does: numbers, text that is numbers, or ISO dates; else None.

    Dates sort as text, so all must be written alike: 2024-03, 2024-03-31 or 2024-03-31 12:00:00.
    """
    try:
        return np.asarray(values.astype(np.float64))
    except (ValueError, TypeError):
        dates = [str(value) for value in values.tolist()]
    if not all(map(_ISO_DATE.fullmatch, dates)):
        return None
    return np.unique(np.array(dates), return_inverse=True)[1].astype(np.float64)


def number_people(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Person ids -> (distinct ids as objects (n,), number of each row's person int64 (rows,)).

    People are numbered in the order in which they first appear.
    """
    seen: dict[str | None, int] = {}
    number = np.fromiter(
        (seen.setdefault(canonical(value), len(seen)) for value in values.tolist()),
        dtype=np.int64,
        count=len(values),
    )
    ids = np.empty(len(seen), dtype=object)
    ids[:] = list(seen)
    return ids, number
