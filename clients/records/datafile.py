"""`data.toml`: where an agency's records are, how its columns are called there, and how current they are.

The secret of a database is never in it: `password_env` names a variable, `password_file` a file that only this
user may read. Errors never quote an address, which may have a password in it.
"""

import datetime
import os
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from clients.folder import is_loopback
from clients.records.cells import DataError
from federation.plan import Agreed, sentences

if TYPE_CHECKING:
    from sqlalchemy import URL

KINDS = ("postgresql+psycopg", "postgresql", "sqlite")
OPTIONS = {
    "host",
    "port",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "connect_timeout",
    "application_name",
}
ENCRYPTED = ("require", "verify-ca", "verify-full")
Name = Annotated[str, Field(min_length=1)]


class SourceSettings(Agreed):
    """`[source]`: a file (`path`), or one table or query of a database (`url`)."""

    kind: Literal["csv", "parquet", "sql"]
    path: Name | None = None
    url: str | None = Field(default=None, repr=False)
    table: Name | None = None
    schema_name: Name | None = Field(default=None, alias="schema")
    query: Name | None = None
    password_env: Name | None = None
    password_file: Name | None = None

    @field_validator("url", mode="before")
    @classmethod
    def _address(cls, value: object) -> object:
        if value is not None:
            _refuse_first(_address_problems(value))
        return value

    @field_validator("query")
    @classmethod
    def _one_select(cls, value: str | None) -> str | None:
        text = None if value is None else value.strip().removesuffix(";").strip()
        if text is not None and (";" in text or not text.lower().startswith(("select", "with"))):
            raise ValueError("must be one SELECT, without a ; in it")
        return text

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        _refuse_first(self._sql_problems() if self.kind == "sql" else self._file_problems())
        return self

    def _file_problems(self) -> Iterator[str]:
        if self.path is None:
            yield f"of kind {self.kind} needs path, the file's name (from this folder on)"
        for name in ("url", "table", "schema_name", "query", "password_env", "password_file"):
            if getattr(self, name) is not None:
                yield f"of kind {self.kind} has no {name.removesuffix('_name')}: remove it"

    def _sql_problems(self) -> Iterator[str]:
        if self.url is None:
            yield "of kind sql needs url, as postgresql+psycopg://reader@localhost/people or sqlite:///people.db"
        if self.path is not None:
            yield "of kind sql has no path: the url says where the database is"
        if (self.table is None) == (self.query is None):
            yield "of kind sql needs table or query, one of the two"
        if self.schema_name is not None and self.table is None:
            yield "has a schema, which belongs to a table: write it in the query"
        if self.password_env is not None and self.password_file is not None:
            yield "has password_env and password_file: keep one of the two"
        secret = self.password_env is not None or self.password_file is not None
        if secret and self.url is not None and self.url.startswith("sqlite"):
            yield "is an SQLite file, which has no password: remove password_env and password_file"


class DataFile(Agreed):
    """`data.toml`. `columns`: the contract's name of a column -> the source's; others are called alike.

    Rows whose `as_of_column` (the source's name) is later than `as_of`, or empty, are not read. `reload_minutes`: how
    long a database's records are used before they are read again; a file is read again when it has changed.
    """

    source: SourceSettings
    columns: dict[Name, Name] = Field(default_factory=dict)
    as_of: datetime.date | None = None
    as_of_column: Name | None = None
    reload_minutes: Annotated[int, Field(ge=1)] = 60

    @field_validator("source", mode="before")
    @classmethod
    def _a_group(cls, value: object) -> object:
        if not isinstance(value, dict | SourceSettings):
            raise ValueError('must be a group of settings: [source], then kind = "csv" and so on')
        return value

    @field_validator("as_of", mode="before")
    @classmethod
    def _a_day(cls, value: object) -> object:
        if value is not None and type(value) is not datetime.date:
            raise ValueError("must be a day without quotes or a time, as 2026-11-01")
        return value

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.as_of is None) != (self.as_of_column is None):
            raise ValueError("as_of and as_of_column belong together: write both or neither")
        return self


def read_data_file(path: Path) -> DataFile:
    """`DataError` has every problem, one to a line."""
    try:
        return DataFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError):
        problems = [f"{path} cannot be read: is it a text file that this user may open?"]
    except tomllib.TOMLDecodeError as error:
        problems = [f"{path.name} is not TOML: {error}"]
    except ValidationError as error:
        problems = [f"{path.name}: {line}" for line in sentences(error)]
    raise DataError("\n".join(problems))


def password_of(source: SourceSettings, folder: Path) -> str | None:
    """The database's secret; None where it asks for none. `DataError` says why it cannot be had."""
    if source.password_env is not None:
        found = os.environ.get(source.password_env)
        if not found:
            raise DataError(
                f"data.toml: source.password_env: the variable {source.password_env} is not set where the node runs"
            )
        return found
    if source.password_file is not None:
        return _secret(folder / source.password_file)
    return None


def _secret(path: Path) -> str:
    """The first line of a file that belongs to this user alone."""
    said = f"data.toml: source.password_file: {path}"
    try:
        open_to_others = stat.S_IMODE(path.stat().st_mode) & 0o177
        lines = [] if open_to_others else path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise DataError(f"{said} is missing, or no text file that this user may read") from None
    if open_to_others:
        raise DataError(f"{said} must be for this user alone: chmod 600 {path}")
    if not lines or not lines[0]:
        raise DataError(f"{said} must hold the password in its first line")
    return lines[0]


def address_of(url: str) -> "URL":
    """The parts of an address that `SourceSettings` has accepted."""
    from sqlalchemy import make_url

    found = make_url(url)
    return found.set(drivername="postgresql+psycopg") if found.drivername == "postgresql" else found


def _refuse_first(problems: Iterator[str]) -> None:
    for problem in problems:
        raise ValueError(problem)


def _address_problems(value: object) -> Iterator[str]:
    """Why an address is refused, without the address."""
    from sqlalchemy.exc import ArgumentError

    try:
        url = address_of(value) if isinstance(value, str) else None
    except (ArgumentError, ValueError):
        url = None
    if url is None or url.drivername not in KINDS:
        yield (
            "must be postgresql+psycopg://USER@HOST/DATABASE or sqlite:///FILE: other databases cannot be held to reading"
        )
    elif url.password is not None or any("pass" in option.lower() for option in url.query):
        yield "must not hold a password: take it out and name it with password_env or password_file"
    elif not url.database:
        yield "must name the database after the last /"
    elif url.drivername == "sqlite":
        if url.query or url.host:
            yield "of an SQLite file must be sqlite:///FILE alone, with three slashes and without options"
    else:
        yield from _server_problems(url)


def _server_problems(url: "URL") -> Iterator[str]:
    if unknown := sorted(set(url.query) - OPTIONS):
        yield f"has the option {unknown[0]}; possible are {', '.join(sorted(OPTIONS))}"
    hosts = [host for host in (*_listed(url.host), *_listed(url.query.get("host"))) if host]
    if not hosts:
        yield "must name the host; a socket of this machine is ?host=/var/run/postgresql"
    near = all(host.startswith("/") or is_loopback(f"{host}:0") for host in hosts)
    if not near and url.query.get("sslmode") not in ENCRYPTED:
        yield "names another machine, and nothing crosses a network in the clear: add ?sslmode=verify-full"


def _listed(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else list(value or ())
    return [host for text in texts for host in text.split(",")]
