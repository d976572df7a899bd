"""Where an agency's records are: a CSV or Parquet file here, a database in `clients/records/sql.py`. Read in batches.

Data libraries quote cells in their errors. So their errors are caught here, and a `DataError` is raised after
the `except` block has ended: not even its exception chain holds the original.
"""

import csv
import datetime
import hashlib
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, final

import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
import pyarrow.compute as pc  # type: ignore[import-untyped, unused-ignore]
import pyarrow.csv  # type: ignore[import-untyped, unused-ignore]
import pyarrow.parquet  # type: ignore[import-untyped, unused-ignore]

from clients.records.cells import Array, DataError, text_of
from clients.records.datafile import read_data_file

ROWS = 65_536  # in one batch
NOT_UTF8 = "must be UTF-8 text: save it again as CSV UTF-8"
_DAY = r"^\d{4}-\d{2}-\d{2}([ T].*)?$"
Batch = dict[str, Array]  # the contract's name of a column -> cells, all of one length
Batches = Generator[Batch, None, None]


class Source(Protocol):
    """Records of one table. `files`: what tells that they have changed, if files do.

    `reload_minutes`: how long they are used before they are read again, where no file tells.
    """

    @property
    def name(self) -> str: ...
    @property
    def view(self) -> "View": ...
    @property
    def files(self) -> tuple[Path, ...]: ...
    @property
    def reload_minutes(self) -> int | None: ...

    def batches(self, columns: Collection[str] | None, rows: int = ROWS) -> Batches:
        """Those of `columns` that are there (None: all), at most `rows` rows at a time, in the source's order.

        The first batch has no rows: it says which columns there are. `DataError`, in one sentence, where the
        source cannot be read.
        """


@final
@dataclass(frozen=True)
class View:
    """What of a source counts: `columns` maps the contract's names to the source's, and what is later than `as_of`
    in `as_of_column`, or has no date there, is left out."""

    columns: Mapping[str, str] = field(default_factory=dict)
    as_of: datetime.date | None = None
    as_of_column: str | None = None

    def wanted(self, name: str, header: Sequence[str], columns: Collection[str] | None) -> dict[str, str]:
        """The contract's name -> the source's, for those of `columns` that the source `name` has."""
        if columns is None:
            names = {column: column for column in header}
        else:
            names = {column: self.columns.get(column, column) for column in columns}
        for column, theirs in names.items():
            if theirs not in header and column in self.columns:
                raise DataError(
                    f"{name} has no column {theirs!r}, which data.toml names under columns.{column}"
                )
        if self.as_of_column is not None and self.as_of_column not in header:
            raise DataError(
                f"{name} has no column {self.as_of_column!r}, which data.toml names as as_of_column"
            )
        for theirs in (*names.values(), self.as_of_column or ""):
            if list(header).count(theirs) > 1:
                twice = (
                    f"{name} names a column twice"
                    if columns is None
                    else f"{name} has two columns {theirs!r}"
                )
                raise DataError(twice)
        return {column: theirs for column, theirs in names.items() if theirs in header}

    def reads(self, wanted: Mapping[str, str]) -> list[str]:
        """The source's columns that are needed for `wanted`, each once."""
        return list(dict.fromkeys((*wanted.values(), *([self.as_of_column] if self.as_of_column else ()))))

    def batch(self, name: str, wanted: Mapping[str, str], cells: Mapping[str, Array]) -> Batch:
        """Cells by the source's names -> those that count, by the contract's."""
        found = {column: cells[theirs] for column, theirs in wanted.items()}
        if self.as_of is None or self.as_of_column is None:
            return found
        days = text_of(cells[self.as_of_column])
        if not pc.all(pc.match_substring_regex(days, _DAY), min_count=0).as_py():
            raise DataError(
                f"{name} column {self.as_of_column!r} must hold days, as 2026-11-01, because of as_of"
            )
        early = pc.less_equal(pc.utf8_slice_codeunits(days, 0, 10), self.as_of.isoformat())
        return {column: values.filter(early) for column, values in found.items()}


@final
@dataclass(frozen=True)
class FileSource:
    """A CSV (UTF-8, commas, a header) or Parquet file; `kind` where its name does not end so."""

    path: Path
    kind: str | None = None
    view: View = View()
    settings: Path | None = None
    reload_minutes: None = None

    @property
    def name(self) -> str:
        """What errors call it."""
        return self.path.name

    @property
    def files(self) -> tuple[Path, ...]:
        """The file, and the data.toml that describes it."""
        return (self.path,) if self.settings is None else (self.path, self.settings)

    def batches(self, columns: Collection[str] | None, rows: int = ROWS) -> Batches:
        """See `Source`."""
        readers = {"csv": _csv, "parquet": _parquet}
        kind = self.kind or self.path.suffix.lower().removeprefix(".")
        if kind not in readers:
            raise DataError(f"{self.name} must be a .csv or .parquet file")
        if not self.path.is_file():
            raise DataError(f"{self.path} is missing or not a file: write the path of the agency's table")
        whole = f"{self.name} cannot be read: is it a whole {kind} file that you may open?"

        def rule(error: Exception) -> str:
            not_text = isinstance(error, UnicodeDecodeError) or "UTF8" in str(error)
            return f"{self.name} {NOT_UTF8}" if not_text else whole

        return without_cells(readers[kind](self, columns, rows), rule)


def find_source(folder: Path, table: str | None) -> Source:
    """The records of the node in `folder`: `table` of node.toml, or data.toml. `DataError` unless it is one of them."""
    path = folder / "data.toml"
    if table is not None and path.exists():
        raise DataError("node.toml has `table` and there is a data.toml: remove one of the two")
    if table is not None:
        return FileSource(folder / table)
    if not path.exists():
        raise DataError(f"{path} is missing: it says where the records are")
    found = read_data_file(path)
    view = View(found.columns, found.as_of, found.as_of_column)
    if found.source.path is not None:
        return FileSource(folder / found.source.path, found.source.kind, view, path)
    from clients.records.sql import SqlSource

    return SqlSource(folder, found.source, view, found.reload_minutes)


def fingerprint(source: Source) -> str:
    """Another text once the source's files, or its data.toml, are other ones; "" for a database, where no file tells."""
    if not source.files:
        return ""
    text = "\n".join(f"{path.absolute()} {_stamp(path)}" for path in source.files)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def without_cells(batches: Batches, rule: Callable[[Exception], str]) -> Batches:
    """`batches`, with `DataError(rule(error))` in the place of a library's error, which may quote cells."""
    with closing(batches):
        while True:
            try:
                batch = next(batches, None)
            except DataError:
                raise
            except Exception as error:  # noqa: BLE001 - its text ends here
                sentence = rule(error)
            else:
                sentence = ""
            if sentence:
                raise DataError(sentence)
            if batch is None:
                return
            yield batch


def _stamp(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:
        return "missing"
    return f"{found.st_ino} {found.st_size} {found.st_mtime_ns}"


def _csv(source: FileSource, columns: Collection[str] | None, rows: int) -> Batches:
    with source.path.open(encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file), [])
    wanted = source.view.wanted(source.name, header, columns)
    if columns and not wanted and len(header) == 1:
        raise DataError(f"{source.name} has one column only: save it with commas between the cells")
    if not wanted:
        yield {}
        return
    _quotes_in_pairs(source)
    yield {column: pa.array([], pa.string()) for column in wanted}
    ragged: list[int] = []

    def skip(row: Any) -> str:
        ragged.append(row.number) if not ragged else None
        return "skip"

    names = source.view.reads(wanted)
    reader = pa.csv.open_csv(
        source.path,
        read_options=pa.csv.ReadOptions(use_threads=False),  # rows are numbered only without threads
        parse_options=pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip),
        convert_options=pa.csv.ConvertOptions(
            include_columns=names, column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        ),
    )
    with reader:
        for part in _sliced(reader, rows):
            yield source.view.batch(source.name, wanted, {name: part.column(name) for name in names})
    if ragged:
        raise DataError(
            f"{source.name} row {ragged[0]} (the header is row 1) must have as many cells as the header"
        )


def _quotes_in_pairs(source: FileSource) -> None:
    """After a quote without its pair, rows would be read as one cell."""
    with source.path.open("rb") as file:
        quotes = sum(block.count(b'"') for block in iter(lambda: file.read(1 << 20), b""))
    if quotes % 2:
        raise DataError(f'{source.name} has a quote (") without its pair')


def _parquet(source: FileSource, columns: Collection[str] | None, rows: int) -> Batches:
    with pa.parquet.ParquetFile(source.path, pre_buffer=False, buffer_size=1 << 20) as file:
        schema = file.schema_arrow
        wanted = source.view.wanted(source.name, schema.names, columns)
        names = source.view.reads(wanted)
        for name in names:
            if pa.types.is_nested(schema.field(name).type):
                raise DataError(f"{source.name} column {name!r} must hold single values")
        yield {column: pa.array([], schema.field(theirs).type) for column, theirs in wanted.items()}
        if wanted:
            for part in file.iter_batches(batch_size=rows, columns=names, use_threads=False):
                yield source.view.batch(source.name, wanted, {name: part.column(name) for name in names})


def _sliced(parts: Iterator[Any], rows: int) -> Iterator[Any]:
    for part in parts:
        for start in range(0, part.num_rows, rows):
            yield part.slice(start, rows)
