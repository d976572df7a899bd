"""The rows of a ledger: its tables, what a row says, and the chain from each row to the one before."""

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from clients.budget import FilterOrder, PlanFacts
from federation.release import Event, event_from_dict

Action = Literal["reserve", "charge", "return", "plan", "filter", "people"]
Table = Literal["release", "reservation", "plan", "filter", "people"]
Row = tuple[Any, ...]

APPLICATION_ID = 0x6672_6C67  # "frlg" in the file's header
VERSION = 2
WAL_PAGES = 64  # folded in this often, the log is written over in place: half the time of one that grows

_ADDED: tuple[Table, ...] = ("plan", "filter", "people")  # by version 2
TABLES: tuple[Table, ...] = ("release", "reservation", *_ADDED)
NEWEST = f"SELECT max({', '.join(f'coalesce((SELECT max(seq) FROM {table}), 0)' for table in TABLES)})"  # noqa: S608 - our own names


def _append_only(*tables: str) -> str:
    return "".join(
        f"""
    CREATE TRIGGER {table}_no_{verb} BEFORE {verb} ON {table}
    BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;"""
        for table in tables
        for verb in ("UPDATE", "DELETE")
    )


_IN_ORDER = "".join(
    f"""
    DROP TRIGGER IF EXISTS {table}_in_order;
    CREATE TRIGGER {table}_in_order BEFORE INSERT ON {table} WHEN NEW.seq IS NOT 1 + ({NEWEST})
    BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;"""
    for table in TABLES
)
VERSION_1 = f"""
    CREATE TABLE ledger (id TEXT NOT NULL, scope TEXT NOT NULL, created TEXT NOT NULL);
    CREATE TABLE release (
        seq INTEGER PRIMARY KEY, plan_sha256 TEXT NOT NULL, order_id TEXT NOT NULL, kind TEXT NOT NULL,
        part TEXT NOT NULL, split_id TEXT NOT NULL, event TEXT NOT NULL, at TEXT NOT NULL, hash TEXT NOT NULL);
    CREATE TABLE reservation (
        seq INTEGER PRIMARY KEY, plan_sha256 TEXT NOT NULL, action TEXT NOT NULL, events TEXT NOT NULL,
        at TEXT NOT NULL, hash TEXT NOT NULL);
    {_append_only("release", "reservation", "ledger")}
    PRAGMA application_id = {APPLICATION_ID};"""
VERSION_2 = f"""
    CREATE TABLE plan (
        seq INTEGER PRIMARY KEY, sha256 TEXT NOT NULL UNIQUE, run_id TEXT NOT NULL, experiment TEXT NOT NULL,
        purpose TEXT NOT NULL, at TEXT NOT NULL, hash TEXT NOT NULL);
    CREATE TABLE filter (
        seq INTEGER PRIMARY KEY, key TEXT NOT NULL, viewer TEXT NOT NULL, rdp_order INTEGER NOT NULL,
        at TEXT NOT NULL, hash TEXT NOT NULL, UNIQUE (key, viewer));
    CREATE TABLE people (
        seq INTEGER PRIMARY KEY, name TEXT NOT NULL, at TEXT NOT NULL, hash TEXT NOT NULL);
    CREATE INDEX release_by_order ON release (order_id);
    {_append_only(*_ADDED)}
    {_IN_ORDER}
    PRAGMA user_version = {VERSION};"""


@dataclass(frozen=True)
class Entry:
    """One row of the ledger. `at` is UTC; `hash` chains it to all rows before it.

    A "reserve" lists what its plan may take, a "return" what a plan gave back unused (neither has an
    `order_id`), a "charge" its one release. A "plan" has its `plan`, a "filter" its `fixed` order, and
    "people" says in `people` whose ledger this is; the other fields are then empty.
    """

    seq: int
    action: Action
    plan_sha256: str
    order_id: str
    releases: tuple[Event, ...]
    at: str
    hash: str
    plan: PlanFacts | None = None
    fixed: FilterOrder | None = None
    people: str = ""


class Draft:
    """What one transaction appends, at one time `at`, each row chained to the one before."""

    def __init__(self, db: sqlite3.Connection, seq: int, chain: str, at: str) -> None:
        self.at = at
        self.entries: list[Entry] = []
        self._db = db
        self._seq = seq
        self._hash = chain

    def charge(self, plan_sha256: str, order_id: str, event: Event) -> None:
        values = event.to_dict()
        where = (values.pop("kind"), values.pop("part"), values.pop("split_id"))
        self._append("release", plan_sha256, order_id, *where, json_of(values))

    def reservation(self, action: Action, plan_sha256: str, events: Sequence[Event]) -> None:
        self._append("reservation", plan_sha256, action, json_of([event.to_dict() for event in events]))

    def plan(self, plan: PlanFacts) -> None:
        self._append("plan", plan.sha256, plan.run_id, plan.experiment, plan.purpose)

    def fixed(self, fixed: FilterOrder) -> None:
        self._append("filter", fixed.key, fixed.viewer, fixed.order)

    def people(self, name: str) -> None:
        self._append("people", name)

    def _append(self, table: Table, *values: str | int) -> None:
        row = (self._seq + 1, *values, self.at)
        chain = chain_of(self._hash, table, row)
        marks = ", ".join("?" * (len(row) + 1))
        self._db.execute(f"INSERT INTO {table} VALUES ({marks})", (*row, chain))  # noqa: S608 - our own names
        self.entries.append(entry_of(table, (*row, chain)))
        self._seq, self._hash = self._seq + 1, chain


def statements(script: str) -> Iterator[str]:
    """The statements of `script` one by one: `executescript` would commit our transaction."""
    statement = ""
    for piece in script.split(";"):
        statement += piece + ";"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def entry_of(table: Table, row: Row) -> Entry:
    seq, *values, at, chain = row
    if table == "release":
        plan, order_id, kind, part, split_id, event = values
        where = {"kind": kind, "part": part, "split_id": split_id}
        return Entry(
            seq, "charge", plan, order_id, (event_from_dict({**where, **json.loads(event)}),), at, chain
        )
    if table == "reservation":
        plan, action, events = values
        return Entry(seq, action, plan, "", tuple(map(event_from_dict, json.loads(events))), at, chain)
    if table == "plan":
        facts = PlanFacts(*values)
        return Entry(seq, "plan", facts.sha256, "", (), at, chain, plan=facts)
    if table == "filter":
        return Entry(seq, "filter", "", "", (), at, chain, fixed=FilterOrder(*values))
    return Entry(seq, "people", "", "", (), at, chain, people=values[0])


def chain_of(previous: str, table: str, row: Row) -> str:
    """SHA-256, hex, of the previous hash and the row in its one canonical form."""
    return hashlib.sha256(json_of([previous, table, *row]).encode()).hexdigest()


def json_of(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
