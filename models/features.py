"""A table -> arrays, from the contract's declared bounds alone.

Nothing here looks at two people at once: a person's features do not depend on who else is in the table,
so encoding fits nothing and spends no privacy. A person's rows are bounded before anything is encoded.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np

from models.contract import FLAG_LEVELS, PARTS, Category, Column, Contract, Flag, Number, Ordinal
from models.table import (
    MISSING,
    UNKNOWN,
    Table,
    canonical,
    codes,
    is_number,
    number_people,
    order_key,
    texts,
)

_CHUNK = 65_536  # rows whose cells are laid side by side at a time


@final
@dataclass(frozen=True)
class Layout:
    """Names of the encoded features, and the block of each (None: shared); both of length d."""

    names: tuple[str, ...]
    block: tuple[str | None, ...]


@final
@dataclass(frozen=True, eq=False, repr=False)  # repr=False: a traceback or a log must not show records
class Encoded:
    """One entry per person (per row where the unit is the row); d features, k = unit.rows.

    Where k is 1 there is no row axis; otherwise the most recent row is last, absent rows are zeros.

    x: float32 (n, d) or (n, k, d).  y: float32 (n,) or (n, k), or None where there is no label.
    present: float32 of the shape of y, 1 where there is a row.  group: int64 (n,), a place in
    `Contract.group_names`, by the most recent row.  user: int64 (n,), a place in `Contract.users_shape[1:]`, by the
    most recent row; None where the contract has no such table or there is no label.  ids: objects (n,).
    part: objects (n,) or None.
    clipped, unknown: column -> values out of bounds or not listed. They are counts of records: local.
    """

    x: np.ndarray
    y: np.ndarray | None
    present: np.ndarray
    group: np.ndarray
    user: np.ndarray | None
    ids: np.ndarray
    part: np.ndarray | None
    clipped: dict[str, int]
    unknown: dict[str, int]


def layout(contract: Contract) -> Layout:
    """The encoded features in order: each column's, then one shared "not held: BLOCK" for each block."""
    named = [(name, column.block) for column in contract.columns for name in column.features]
    named += [(f"not held: {block.name}", None) for block in contract.blocks]
    return Layout(tuple(name for name, _ in named), tuple(block for _, block in named))


def encode(contract: Contract, table: Table, kind: str | None) -> Encoded:
    """A table that `validate` accepts -> arrays. The label may be absent (people to score): y is None.

    `ValueError` names a column that is absent or not a number.
    """
    _check(contract, table, kind)
    ids, take = bound_rows(contract, table, kind)
    there = take >= 0
    rows, latest = take[there], take[:, -1]
    x = np.zeros((*take.shape, len(layout(contract).names)), dtype=np.float32)
    x[there], clipped, unknown = _encode_rows(contract, table, rows, kind)
    y = None
    if contract.holds_label(kind) and contract.label.column in table:
        y = np.zeros(take.shape, dtype=np.float32)
        y[there] = contract.label.outcome(table[contract.label.column][rows])
    present = there.astype(np.float32)
    if take.shape[1] == 1:
        x, y, present = x[:, 0], None if y is None else y[:, 0], present[:, 0]
    part = texts(table[contract.split][latest]) if contract.split and contract.split in table else None
    group, user = _group(contract, table, latest, kind), None
    if y is not None and contract.users_shape is not None:
        user = _user(contract, table, latest, kind, (y if y.ndim == 1 else y[:, -1]) == 1)
    return Encoded(x, y, present, group, user, ids, part, clipped, unknown)


def bound_rows(contract: Contract, table: Table, kind: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Which rows count: (ids (n,), row numbers int64 (n, k) with the most recent last and -1 for none).

    People come in the order in which they first appear. Of one person the `unit.rows` most recent rows
    count, by `order_by` and among equals by position. Where the unit is the row, `row_ids` names it.
    """
    unit = contract.unit
    if unit.column is None:
        ids = row_ids(contract, table, kind)
        return ids, np.arange(len(ids))[:, None]
    ids, person = number_people(table[unit.column])
    key = order_key(table[unit.order_by]) if unit.order_by else np.zeros(len(person))
    if key is None:
        raise ValueError(f"column {unit.order_by!r} must be numbers or dates: validate the table first")
    order = np.lexsort((np.arange(len(person)), key, person))
    person = person[order]
    from_last = np.cumsum(np.bincount(person, minlength=len(ids)))[person] - 1 - np.arange(len(person))
    kept = from_last < unit.rows
    take = np.full((len(ids), unit.rows), -1, dtype=np.int64)
    take[person[kept], unit.rows - 1 - from_last[kept]] = order[kept]
    return ids, take


def row_ids(contract: Contract, table: Table, kind: str | None) -> np.ndarray:
    """A name for each row, objects (rows,): a hash of its cells, and a number among rows that are alike.

    The cells are those of the columns that this kind needs, read as the contract reads them: the same from
    CSV and Parquet, wherever the row is. Rows that are alike are encoded alike, so it does not matter which
    of them has which number: one row more or less names, and deals, no other row anew.
    """
    needs = contract.needs(kind)
    columns = [(table[name], needs[name], _Digests()) for name in sorted(needs) if name in table]
    n = len(next(iter(table.values())))
    ids = np.empty(n, dtype=object)
    seen: dict[str, int] = {}
    for start in range(0, n, _CHUNK):
        here = slice(start, min(start + _CHUNK, n))
        rows = here.stop - start
        cells = [_cells(values[here], read_as, digests) for values, read_as, digests in columns]
        joined = np.concatenate([np.empty((rows, 0), dtype=np.uint8), *cells], axis=1)
        width, data = joined.shape[1], joined.tobytes()
        for i in range(rows):
            name = hashlib.blake2b(data[i * width : (i + 1) * width], digest_size=16).hexdigest()
            number = seen.get(name, 0)
            seen[name] = number + 1
            ids[start + i] = f"{name}-{number}"
    return ids


def _cells(values: np.ndarray, read_as: str, digests: "_Digests") -> np.ndarray:
    """Cells as bytes of one width, uint8 (n, width): equal where, and only where, they are read alike."""
    if read_as == "number":
        numbers = values.astype("<f8") + 0.0  # no minus zero
        numbers[np.isnan(numbers)] = np.nan  # one of the many
        return numbers.view(np.uint8).reshape(len(values), 8)
    data = b"".join(map(digests.__getitem__, values.tolist()))
    return np.frombuffer(data, dtype=np.uint8).reshape(len(values), 16)


class _Digests(dict[object, bytes]):
    def __missing__(self, value: object) -> bytes:
        text = canonical(value)
        digest = hashlib.blake2b(b"" if text is None else b"=" + text.encode(), digest_size=16).digest()
        self[value] = digest
        return digest


def split(ids: np.ndarray, fractions: Mapping[str, float], key: bytes) -> np.ndarray:
    """Each id's part, objects (n,): "train", "tune" or "test".

    An id's keyed BLAKE2b hash, over 2^64, is uniform in [0, 1) and falls in the part whose cumulative
    fraction covers it. It depends on the id and the secret `key` alone, so people who come later change
    nobody's part. `ValueError` where the fractions are not a share of each part or the key is empty.
    """
    shares = [fractions.get(part, 0.0) for part in PARTS]
    if not set(fractions) <= set(PARTS) or min(shares) < 0 or not math.isclose(sum(shares), 1, abs_tol=1e-9):
        raise ValueError(
            f"fractions must be shares of {', '.join(PARTS)} that add up to 1, got {dict(fractions)}"
        )
    if not key:
        raise ValueError("the key of a split must not be empty")
    secret = _secret(key)
    digests = b"".join(
        hashlib.blake2b(str(i).encode(), digest_size=8, key=secret).digest() for i in ids.tolist()
    )
    uniform = np.frombuffer(digests, dtype=">u8") / 2.0**64
    place = np.searchsorted(np.cumsum(shares)[:-1], uniform, side="right")
    return np.array(PARTS, dtype=object)[place]


def assignment(ids: np.ndarray, part: np.ndarray, key: bytes) -> str:
    """A keyed hash of who is in which part, hex: another where anybody moved, came or went, in any order."""
    text = json.dumps(
        sorted(f"{where} {who}" for who, where in zip(ids.tolist(), part.tolist(), strict=True))
    )
    return hashlib.blake2b(text.encode(), digest_size=16, key=_secret(key)).hexdigest()


def _secret(key: bytes) -> bytes:
    return key if len(key) <= hashlib.blake2b.MAX_KEY_SIZE else hashlib.blake2b(key).digest()


def _check(contract: Contract, table: Table, kind: str | None) -> None:
    optional = {contract.label.column, contract.split}
    for name, read_as in contract.needs(kind).items():
        if name not in table and name not in optional:
            raise ValueError(f"column {name!r} is not in the table")
        if name in table and read_as == "number" and not is_number(table[name]):
            raise ValueError(f"column {name!r} must be a number: validate the table first")


def _encode_rows(
    contract: Contract, table: Table, rows: np.ndarray, kind: str | None
) -> tuple[np.ndarray, dict[str, int], dict[str, int]]:
    """Features of single rows, float32 (rows, d), and what was clipped and unknown by column."""
    x = np.zeros((len(rows), len(layout(contract).names)), dtype=np.float32)
    clipped: dict[str, int] = {}
    unknown: dict[str, int] = {}
    at = 0
    for column in contract.columns:
        width = len(column.features)
        if contract.holds(kind, column.block):
            x[:, at : at + width], odd = _encode_column(column, table[column.name][rows])
            (clipped if isinstance(column, Number) else unknown)[column.name] = odd
        at += width
    x[:, at:] = [not contract.holds(kind, block.name) for block in contract.blocks]
    return x, clipped, unknown


def _encode_column(column: Column, values: np.ndarray) -> tuple[np.ndarray, int]:
    """One column's features (n, width) in the order of `column.features`, and how many values were odd."""
    match column:
        case Number():
            return _number(column, values.astype(np.float64))
        case Ordinal():
            return _ordinal(column, values)
        case Category():
            return _category(column, values)
        case Flag():
            return _flag(column, values)


def _number(column: Number, values: np.ndarray) -> tuple[np.ndarray, int]:
    missing = np.isnan(values)
    x = np.clip(values, column.min, column.max)
    if column.log:
        x = np.log1p(x - column.min) / math.log1p(column.max - column.min)
    low, high = column.range
    center = (low + high) / 2 if column.center is None else column.center
    scale = (high - low) / 2 if column.scale is None else column.scale
    x = np.where(missing, 0.0, (x - center) / scale)
    outside = int(((values < column.min) | (values > column.max)).sum())
    return np.column_stack([x, missing] if column.missing else [x]), outside


def _ordinal(column: Ordinal, values: np.ndarray) -> tuple[np.ndarray, int]:
    code = codes(values, {level: i for i, level in enumerate(column.levels)})
    other = code == UNKNOWN
    x = np.where(code < 0, 0.0, 2 * code / (len(column.levels) - 1) - 1)
    return np.column_stack([x, other, code == MISSING] if column.missing else [x, other]), int(other.sum())


def _category(column: Category, values: np.ndarray) -> tuple[np.ndarray, int]:
    levels = column.encoded_levels
    code = codes(values, {level: i for i, level in enumerate(column.levels)})
    place = np.where(code == UNKNOWN, levels.index("other"), code)
    if column.missing:
        place = np.where(code == MISSING, levels.index("missing"), place)
    return place[:, None] == np.arange(len(levels)), int((code == UNKNOWN).sum())


def _flag(column: Flag, values: np.ndarray) -> tuple[np.ndarray, int]:
    code = codes(values, FLAG_LEVELS)
    x = code == 1
    return np.column_stack([x, code == MISSING] if column.missing else [x]), int((code == UNKNOWN).sum())


def _group(contract: Contract, table: Table, latest: np.ndarray, kind: str | None) -> np.ndarray:
    """Place in `contract.group_names` of each person's most recent row, int64 (n,)."""
    needs = contract.needs(kind)
    place = np.zeros(len(latest), dtype=np.int64)
    for group in contract.groups:
        names = group.level_names
        if group.column in needs:
            code = group.codes(table[group.column][latest])
        else:  # in a block that this agency does not hold
            code = np.full(len(latest), names.index("other"))
        if (code == UNKNOWN).any():
            raise ValueError(
                f"column {group.column!r} has values outside the levels of the group {group.name}"
            )
        place = place * len(names) + code
    return place


def _user(
    contract: Contract, table: Table, latest: np.ndarray, kind: str | None, outcome: np.ndarray
) -> np.ndarray:
    """Place in `contract.users_shape[1:]` (practice, intensity, lead) of each person's most recent row, int64 (n,)."""
    assert contract.users_shape is not None  # noqa: S101 - the caller's case
    needs, nobody = contract.needs(kind), np.zeros(len(latest), dtype=np.int64)
    practice, intensity, lead = contract.practice, contract.intensity, contract.lead_time
    flagged = practice.flags(table[practice.column][latest]).astype(np.int64) if practice else nobody
    level = nobody
    if intensity is not None:
        group = intensity.group
        if intensity.column in needs:
            level = group.codes(table[intensity.column][latest])
        else:  # in a block that this agency does not hold
            level = np.full(len(latest), group.level_names.index("other"))
    band = lead.codes(table[lead.column][latest]) if lead else nobody
    places = (flagged, level, np.where(outcome, 1 + band, 0))
    return np.asarray(np.ravel_multi_index(places, contract.users_shape[1:]), np.int64)
