"""Records in a database, through SQLAlchemy: one SELECT of the columns that are needed, in a transaction that
cannot write. A driver's errors quote values and addresses: none is passed on.

PostgreSQL reads in one snapshot (REPEATABLE READ, READ ONLY) through a server-side cursor; an SQLite file is opened
read-only. No value and no name is put into SQL as text, but for the query that data.toml has.
"""

import datetime
import sqlite3
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, final
from urllib.parse import quote
from uuid import UUID

import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]

from clients.records.cells import Array, DataError
from clients.records.datafile import SourceSettings, address_of, password_of
from clients.records.sources import ROWS, Batches, View, without_cells

if TYPE_CHECKING:
    from sqlalchemy import Connection, FromClause

TIMEOUT = 15  # seconds to reach a server


@final
@dataclass(frozen=True)
class SqlSource:
    """A table or a query of a database, as `[source]` of a data.toml in `folder` says."""

    folder: Path
    settings: SourceSettings
    view: View
    reload_minutes: int
    files: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """What errors call it."""
        return "the query of data.toml" if self.settings.table is None else f"the table {self.settings.table}"

    def batches(self, columns: Collection[str] | None, rows: int = ROWS) -> Batches:
        """See `clients.records.sources.Source`."""
        refused = (
            f"data.toml: the database did not answer for {self.name}: check that it exists, that the login may SELECT from "
            "it, and that it does nothing but read (the database's own log says more)"
        )
        return without_cells(self._batches(columns, rows), lambda _: refused)

    def _batches(self, columns: Collection[str] | None, rows: int) -> Batches:
        table = self._table()
        with self._connected() as connection:
            wanted = self.view.wanted(self.name, self._header(connection, table), columns)
            yield {column: pa.array([], pa.null()) for column in wanted}
            if not wanted:
                return
            names = self.view.reads(wanted)
            result = connection.execute(self._select(table, names), execution_options={"yield_per": rows})
            for part in result.partitions():
                columns_of = zip(names, zip(*part, strict=True), strict=True)
                cells = {name: self._cells(name, values) for name, values in columns_of}
                yield self.view.batch(self.name, wanted, cells)

    def _table(self) -> "FromClause":
        from sqlalchemy import quoted_name, table, text

        settings = self.settings
        if settings.table is not None:
            schema = None if settings.schema_name is None else quoted_name(settings.schema_name, True)
            return table(quoted_name(settings.table, True), schema=schema)
        query = str(settings.query).replace(":", "\\:")  # `text` reads :name as a parameter
        return text(query).columns().subquery("source")

    def _header(self, connection: "Connection", table: "FromClause") -> list[str]:
        """The names of all columns. A table's are looked up: `SELECT *` asks for more than the login may have."""
        from sqlalchemy import inspect, select, text

        settings = self.settings
        if settings.table is None:
            return list(connection.execute(select(text("*")).select_from(table).limit(0)).keys())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about types that SQLAlchemy does not know
            found = inspect(connection).get_columns(settings.table, settings.schema_name)
        return [str(column["name"]) for column in found]

    def _select(self, table: "FromClause", names: Sequence[str]) -> Any:
        from sqlalchemy import bindparam, column, quoted_name, select
        from sqlalchemy.types import NullType

        found: Any = select(*(column(quoted_name(name, True)) for name in names)).select_from(table)
        if self.view.as_of is None or self.view.as_of_column is None:
            return found
        tomorrow = (self.view.as_of + datetime.timedelta(days=1)).isoformat()
        # without a type of its own, so that it is read as what the column is: a day, a time or text
        day = bindparam("tomorrow", tomorrow, type_=NullType())
        return found.where(column(quoted_name(self.view.as_of_column, True)) < day)

    def _cells(self, name: str, values: Sequence[Any]) -> Array:
        try:
            return cells_of(values)
        except TypeError:
            pass
        raise DataError(f"{self.name} column {name!r} must hold single values")

    @contextmanager
    def _connected(self) -> Iterator["Connection"]:
        """A connection whose transaction cannot write."""
        problem = (
            "data.toml: the database cannot be opened: check the address, the login and its secret, and whether it is "
            "running (its own log says more)"
        )
        connection = None
        try:
            connection = self._connect()
        except DataError:
            raise
        except ImportError:
            problem = "data.toml: the database's driver is not installed: pip install 'fedrisk[node]'"
        except Exception:  # noqa: BLE001, S110 - its text quotes the address
            pass
        if connection is None:
            raise DataError(problem)
        with connection:
            yield connection

    def _connect(self) -> "Connection":
        from sqlalchemy import NullPool, create_engine

        url = address_of(str(self.settings.url))
        if url.drivername == "sqlite":
            path = (self.folder / str(url.database)).absolute()
            if not path.is_file():
                raise DataError(f"{path} is missing or not a file: source.url of data.toml names it")
            return create_engine("sqlite://", creator=lambda: _read_only(path), poolclass=NullPool).connect()
        password = password_of(self.settings, self.folder)
        url = url if password is None else url.set(password=password)
        wait = {} if "connect_timeout" in url.query else {"connect_timeout": TIMEOUT}
        engine = create_engine(url, connect_args=wait, poolclass=NullPool, hide_parameters=True)
        return engine.connect().execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def cells_of(values: Sequence[Any]) -> Array:
    """One column of what a driver gives -> Arrow, as a file with these values would hold it.

    `TypeError` where a value is no single one (bytes, a list, JSON).
    """
    kinds = set(map(type, values)) - {type(None)}
    if kinds <= {str}:
        return pa.array(values, pa.string())
    if kinds == {float}:
        return pa.array(values, pa.float64())
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    if kinds == {int} and all(value is None or -(2**63) <= value < 2**63 for value in values):
        return pa.array(values, pa.int64())
    return pa.array([_text(value) for value in values], pa.string())


def _text(value: object) -> str | None:
    match value:
        case None | str():
            return value
        case bool():
            return "true" if value else "false"
        case int() | float() | datetime.date() | datetime.time() | datetime.timedelta() | UUID():
            return str(value)
        case Decimal():
            return format(value, "f")
    raise TypeError


def _read_only(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)
    connection.execute("PRAGMA query_only = ON")
    return connection
