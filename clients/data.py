"""The agency's own file -> encoded arrays. Errors name columns and rules, never a cell.

Data libraries quote cells in their errors. So their errors are caught here, and a `DataError` is raised
after the `except` block has ended: not even its exception chain holds the original.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, final

import numpy as np

from models.contract import Contract, validate
from models.features import assignment, bound_rows, encode, split
from models.table import MISSING_TEXT, Table, is_number

ReadAs = Literal["number", "text"]
PartName = Literal["train", "tune", "test"]
PART_NAMES: tuple[PartName, ...] = ("train", "tune", "test")
NOT_UTF8 = "must be UTF-8 text: save it again as CSV UTF-8"
PLAIN_NUMBER = r"^-?(0|[1-9]\d{0,14})(\.\d+)?([eE][+-]?\d+)?$"
"""What an untyped column must look like to be numbers: "007" and long digit strings are ids, so text."""


class DataError(ValueError):
    """A table that cannot be used: sentences for the person at this machine, without any cell."""


@final
@dataclass(frozen=True, eq=False, repr=False)  # repr=False: a traceback or a log must not show records
class Part:
    """The people of one part; shapes as in `models.features.Encoded`. y is None where no label is held."""

    x: np.ndarray
    y: np.ndarray | None
    present: np.ndarray
    group: np.ndarray


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
    path: Path,
    kind: str | None,
    *,
    fractions: Mapping[str, float],
    key: bytes,
    min_people: int,
) -> Dataset:
    """The agency's file, held against the contract, encoded and split. `DataError` lists every problem.

    People are split by the contract's split column, else by a keyed hash of their id (`fractions` of
    each part, `key` known to this node alone). `min_people` counts people, not rows.
    """
    table = read_table(path, contract.needs(kind))
    return prepare(contract, table, kind, fractions=fractions, key=key, min_people=min_people, name=path.name)


def prepare(
    contract: Contract,
    table: Table,
    kind: str | None,
    *,
    fractions: Mapping[str, float],
    key: bytes,
    min_people: int,
    name: str = "the table",
) -> Dataset:
    """`load` for a table that is in memory; `name` is what errors call it."""
    problems = validate(contract, table, kind, min_people=min_people)
    if problems:
        lines = "\n".join(f"- {problem}" for problem in problems)
        raise DataError(f"{name} does not fit the contract {contract.name}:\n{lines}")
    people = encode(contract, table, kind)
    part = split(people.ids, fractions, key) if people.part is None else people.part
    parts = {}
    for part_name in PART_NAMES:
        who = part == part_name
        y = None if people.y is None else people.y[who]
        parts[part_name] = Part(people.x[who], y, people.present[who], people.group[who])
    said = "" if people.part is None else assignment(people.ids, people.part, key)
    return Dataset(parts, people.clipped, people.unknown, said)


def load_values(
    contract: Contract, path: Path, column: str, kind: str | None, *, min_people: int
) -> np.ndarray:
    """One number per person (people,), float64: `column` in the most recent row, NaN where there is none.

    The contract need not know the column; of the contract's own columns only the id and the order are read.
    `DataError` lists every problem. Infinite values are no problem: the bins of a statistic take them.
    """
    unit = contract.unit
    wanted: dict[str, ReadAs] = {name: "text" for name in (unit.column, unit.order_by) if name}
    table = read_table(path, wanted | {column: "number"})
    label = replace(contract.label, held_by=())
    rows_alone = replace(contract, columns=(), groups=(), blocks=(), split=None, label=label)
    problems = [str(problem) for problem in validate(rows_alone, table, kind)]
    if column not in table:
        problems.append(f"column {column!r} is not in the table")
    elif not is_number(table[column]):
        problems.append(f"column {column!r} must be a number")
    if not problems:
        latest = bound_rows(rows_alone, table, kind)[1][:, -1]
        if len(latest) >= min_people:
            return np.asarray(table[column][latest], dtype=np.float64)
        problems.append(f"the table has fewer people than the {min_people} that are required")
    lines = "\n".join(f"- {problem}" for problem in problems)
    raise DataError(f"{path.name} does not fit what was asked:\n{lines}")


def read_table(path: Path, columns: Mapping[str, ReadAs] | None = None) -> dict[str, np.ndarray]:
    """A CSV (UTF-8, commas, a header) or Parquet file -> column -> float64 or objects of str, (rows,).

    With `columns` only those that are in the file are read, each as number or text; a "number" column
    that holds other text stays text, so that `validate` can name it. Without, a column is a number where
    every cell is plainly one. Missing is NaN or None: an empty cell or one of `MISSING_TEXT`. Spaces
    around a cell are dropped. `DataError` where the file cannot be read, in one sentence.
    """
    path = Path(path)
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path.name} must be a .csv or .parquet file")
    if not path.is_file():
        raise DataError(f"{path} is missing or not a file: write the path of the agency's table")
    try:
        return readers[path.suffix.lower()](path, columns)
    except DataError:
        raise
    except UnicodeDecodeError:
        rule = NOT_UTF8
    except Exception as error:  # noqa: BLE001 - its text may quote a cell, so it ends here
        kind = path.suffix.lower().removeprefix(".")
        whole = f"cannot be read: is it a whole {kind} file that you may open?"
        rule = NOT_UTF8 if "UTF8" in str(error) else whole
    raise DataError(f"{path.name} {rule}")


def _read_csv(path: Path, columns: Mapping[str, ReadAs] | None) -> dict[str, np.ndarray]:
    import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
    import pyarrow.csv  # type: ignore[import-untyped, unused-ignore]

    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file), [])
    names = _wanted(path, header, columns)
    if columns and not names and len(header) == 1:
        raise DataError(f"{path.name} has one column only: save it with commas between the cells")
    if not names:
        return {}
    if path.read_bytes().count(b'"') % 2:  # the rows after it would be read as one cell
        raise DataError(f'{path.name} has a quote (") without its pair')
    ragged: list[int] = []

    def skip(row: Any) -> str:
        ragged.append(row.number)
        return "skip"

    table = pa.csv.read_csv(
        path,
        read_options=pa.csv.ReadOptions(use_threads=False),  # rows are numbered only without threads
        parse_options=pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip),
        convert_options=pa.csv.ConvertOptions(
            include_columns=names, column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        ),
    )
    if ragged:
        raise DataError(
            f"{path.name} row {ragged[0]} (the header is row 1) must have as many cells as the header"
        )
    return {name: _column(table.column(name), (columns or {}).get(name)) for name in names}


def _read_parquet(path: Path, columns: Mapping[str, ReadAs] | None) -> dict[str, np.ndarray]:
    import pyarrow as pa
    import pyarrow.parquet  # type: ignore[import-untyped, unused-ignore]

    with pa.parquet.ParquetFile(path) as file:
        names = _wanted(path, file.schema_arrow.names, columns)
        for name in names:
            if pa.types.is_nested(file.schema_arrow.field(name).type):
                raise DataError(f"{path.name} column {name!r} must hold single values")
        table = file.read(columns=names, use_threads=False)
    return {name: _column(table.column(name), (columns or {}).get(name)) for name in names}


def _wanted(path: Path, header: Sequence[str], columns: Mapping[str, ReadAs] | None) -> list[str]:
    """The columns to read, in the order of `columns` or of the file."""
    names = list(header) if columns is None else [name for name in columns if name in header]
    for name in names:
        if header.count(name) > 1:
            raise DataError(
                f"{path.name} has two columns {name!r}" if columns else f"{path.name} names a column twice"
            )
    return names


def _column(values: Any, read_as: ReadAs | None) -> np.ndarray:
    """One Arrow column -> float64 with NaN, or objects of str with None; shape (rows,)."""
    import pyarrow as pa
    import pyarrow.compute as pc  # type: ignore[import-untyped, unused-ignore]

    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    numeric = any(
        test(values.type)
        for test in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
    )
    if numeric and read_as != "text":
        return np.asarray(values.cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)
    text = pc.utf8_trim_whitespace(values.cast(pa.string()))
    missing = pc.is_in(text, value_set=pa.array(sorted(MISSING_TEXT)))
    text = pc.if_else(missing, pa.scalar(None, pa.string()), text)
    plain = pc.match_substring_regex(text, PLAIN_NUMBER)
    if read_as == "number" or (read_as is None and pc.all(plain, min_count=0).as_py()):
        try:
            return np.asarray(text.cast(pa.float64()).to_numpy(), dtype=np.float64)
        except pa.ArrowInvalid:
            pass  # it stays text, and `validate` says that it must be a number
    return np.asarray(text.to_numpy(), dtype=object)
