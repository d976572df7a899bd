"""An agency's ledger: every release of its records, on its own disk, kept for good.

One SQLite file with two append-only tables: `release` (what left, or may have left) and `reservation`
(what a plan may still take; opened and closed by rows, never changed). One sequence and one hash chain
run through both, so `verify` finds a row that was changed, removed or put in between. The chain has no
key and no end mark: whoever can write the file can also write a whole new one or cut off its newest
rows, which shows against a `head` that somebody else kept.

A release is written and on the disk before its noise is drawn. A crash in between wastes budget; it
never hides spending. The file stores releases and never an ε (`federation.privacy` computes that).

Several processes may use one file one after the other or at once: each transaction is short, takes
SQLite's write lock and first reads what others have appended. Write-ahead logging is SQLite's cheapest
durable commit (one fsync; a rollback journal takes two to three times as long), and it means that
`PATH-wal` belongs to `PATH`: copy neither alone while a node runs.
"""

import contextlib
import hashlib
import json
import math
import sqlite3
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NoReturn, Self

from federation.privacy import Release, Spending, epsilon

Scope = Literal["this run alone", "lifetime"]
Action = Literal["reserve", "charge", "return"]
Row = tuple[Any, ...]

APPLICATION_ID = 0x6672_6C67  # "frlg" in the file's header
VERSION = 1
WAL_PAGES = 64  # folded in this often, the log is written over in place: half the time of one that grows

_NEXT_SEQ = """1 + max(coalesce((SELECT max(seq) FROM release), 0),
                        coalesce((SELECT max(seq) FROM reservation), 0))"""
_APPEND_ONLY = "".join(
    f"""
    CREATE TRIGGER {table}_no_{verb} BEFORE {verb} ON {table}
    BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;"""
    for table in ("release", "reservation", "ledger")
    for verb in ("UPDATE", "DELETE")
)
_IN_ORDER = "".join(
    f"""
    CREATE TRIGGER {table}_in_order BEFORE INSERT ON {table} WHEN NEW.seq IS NOT {_NEXT_SEQ}
    BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;"""
    for table in ("release", "reservation")
)
_SCHEMA = f"""
    CREATE TABLE ledger (id TEXT NOT NULL, scope TEXT NOT NULL, created TEXT NOT NULL);
    CREATE TABLE release (
        seq INTEGER PRIMARY KEY, plan_sha256 TEXT NOT NULL, order_id TEXT NOT NULL, kind TEXT NOT NULL,
        part TEXT NOT NULL, split_id TEXT NOT NULL, event TEXT NOT NULL, at TEXT NOT NULL, hash TEXT NOT NULL);
    CREATE TABLE reservation (
        seq INTEGER PRIMARY KEY, plan_sha256 TEXT NOT NULL, action TEXT NOT NULL, events TEXT NOT NULL,
        at TEXT NOT NULL, hash TEXT NOT NULL);
    {_APPEND_ONLY}
    {_IN_ORDER}
    PRAGMA application_id = {APPLICATION_ID};
    PRAGMA user_version = {VERSION};"""


class LedgerError(RuntimeError):
    """The ledger cannot be used: one sentence with the file, the rule and what to do."""


@dataclass(frozen=True)
class Budget:
    """The most that all releases together may cost one person: `epsilon` > 0 at `delta` in (0, 1)."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"budget.epsilon must be above 0 and finite, got {self.epsilon!r}")
        if not 0 < self.delta < 1:
            raise ValueError(f"budget.delta must be in (0, 1), got {self.delta!r}")


@dataclass(frozen=True)
class Entry:
    """One row of the ledger. `at` is UTC; `hash` chains it to all rows before it.

    A "reserve" lists what its plan may take, a "return" what a plan gave back unused (neither has an
    `order_id`), a "charge" its one release.
    """

    seq: int
    action: Action
    plan_sha256: str
    order_id: str
    releases: tuple[Release, ...]
    at: str
    hash: str


class Ledger:
    """The ledger in the file `path`, made if there is none.

    `budget` None records without refusing. `scope` says what the file stands for and never changes: one
    simulated run, or everything that ever leaves this agency. `split_id` names how this agency's people
    are dealt into train, tune and test, for releases that do not say it themselves; None takes every
    plan for a new split, which never understates a loss. `now` is the clock, `wait` the seconds to wait
    while another process writes. LedgerError where the file cannot be used or fails its hash chain.

    A lifetime ledger is not made in a folder that does not exist: a disk that is not mounted must not
    look like an agency that has spent nothing.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        budget: Budget | None,
        scope: Scope,
        split_id: str | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        wait: float = 10.0,
    ) -> None:
        self.path = Path(path)
        self.budget = budget
        self.scope = scope
        self._split_id = split_id
        self._now = now
        self._lock = threading.RLock()
        self._seq = 0
        self._charged: list[Release] = []
        self._open: dict[str, Counter[Release]] = {}  # by plan: steps not yet charged, by one-step release
        # what is charged and reserved, and its ε; None: to be computed when it is next needed
        self._claimed: tuple[Spending, float] | None = None
        with self._errors():
            if scope == "this run alone":
                self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=wait, isolation_level=None, check_same_thread=False)
            try:
                self._hash = self._start(wait)
                self._catch_up()
            except BaseException:
                self._db.close()
                raise

    def reserve(self, plan_sha256: str, releases: Sequence[Release]) -> None:
        """Keep the budget that a plan needs, before any record is read. Nothing happens if it is kept already.

        `Refused(BUDGET)`, and nothing changes, when everything charged, all open reservations and this
        would together exceed the budget.
        """
        with self._lock, self._errors():
            self._catch_up()
            if plan_sha256 in self._open or not releases:
                return
            with self._writing():
                if plan_sha256 in self._open:
                    return
                wanted = self._named(plan_sha256, releases)
                claimed = self._admit(wanted)
                entry = self._append_reservation("reserve", plan_sha256, _merged(_steps(wanted)))
            self._apply(entry, claimed)

    def charge(self, plan_sha256: str, order_id: str, release: Release) -> None:
        """Write `release`, which order `order_id` of the plan is about to make; on disk when this returns.

        Call it before the noise is drawn; a draw that is repeated is a new charge. Uses up the plan's
        reservation; what goes beyond it must fit the budget, else `Refused(BUDGET)` and nothing changes.
        """
        with self._lock:
            with self._writing():
                (named,) = self._named(plan_sha256, [release])
                beyond = named.steps - min(named.steps, self._reserved(plan_sha256, named))
                claimed = self._admit([replace(named, steps=beyond)] if beyond else [])
                entry = self._append_charge(plan_sha256, order_id, named)
            self._apply(entry, claimed)

    def release_reservation(self, plan_sha256: str) -> None:
        """Give back what the plan reserved and did not charge. Nothing happens if it has no reservation."""
        with self._lock:
            with self._writing():
                if plan_sha256 not in self._open:
                    return
                entry = self._append_reservation("return", plan_sha256, _merged(self._open[plan_sha256]))
            self._apply(entry, None)

    def releases(self) -> tuple[Release, ...]:
        """Everything charged, oldest first, one release per charge, with its split id."""
        with self._lock, self._errors():
            self._catch_up()
            return tuple(self._charged)

    def reservations(self) -> dict[str, tuple[Release, ...]]:
        """What each plan with an open reservation may still take, by the plan's SHA-256."""
        with self._lock, self._errors():
            self._catch_up()
            return {plan: _merged(steps) for plan, steps in self._open.items()}

    def entries(self) -> tuple[Entry, ...]:
        """The whole ledger, oldest first, read and checked from the disk."""
        with self._lock, self._errors(), self._snapshot():
            return tuple(self._read(0, self._genesis()))

    def verify(self) -> None:
        """LedgerError that names the first entry which is not as it was written, or is missing."""
        with self._lock, self._errors(), self._snapshot():
            last = (0, self._genesis())
            for entry in self._read(*last):
                last = (entry.seq, entry.hash)
                if entry.seq == self._seq and entry.hash != self._hash:
                    self._broken(entry.seq)
            if last[0] < self._seq:
                self._fell_behind(last[0])

    def epsilon(self, delta: float) -> float:
        """ε at `delta` of everything charged, for the person who lost most (`federation.privacy.epsilon`)."""
        return epsilon(self.releases(), delta)

    @property
    def head(self) -> tuple[int, str]:
        """(sequence number, hash) of the newest entry: whoever keeps it can tell a ledger that went back."""
        with self._lock, self._errors():
            self._catch_up()
            return self._seq, self._hash

    def close(self) -> None:
        """Close the file. The last one to close it folds `PATH-wal` back in."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the budget ---------------------------------------------------------------------------------

    def _admit(self, extra: Sequence[Release]) -> tuple[Spending, float] | None:
        """What is claimed once `extra` is; `Refused(BUDGET)` where that exceeds the budget."""
        if self.budget is None:
            return None
        if self._claimed is None:
            reserved = (release for steps in self._open.values() for release in _merged(steps))
            spending = Spending().plus([*self._charged, *reserved])
            self._claimed = (spending, spending.epsilon(self.budget.delta))
        claimed = self._claimed
        if extra:
            spending = claimed[0].plus(extra)
            claimed = (spending, spending.epsilon(self.budget.delta))
        if claimed[1] > self.budget.epsilon:
            _refuse(self.budget, self._claimed[1], claimed[1])
        return claimed

    def _reserved(self, plan_sha256: str, release: Release) -> int:
        return self._open.get(plan_sha256, Counter())[replace(release, steps=1)]

    def _named(self, plan_sha256: str, releases: Iterable[Release]) -> list[Release]:
        """`releases` with the split id of this ledger, or of their own plan."""
        split = f"plan {plan_sha256}" if self._split_id is None else self._split_id
        return [release if release.split_id else replace(release, split_id=split) for release in releases]

    # --- the state in memory ------------------------------------------------------------------------

    def _catch_up(self) -> None:
        """Take in what others appended since this process last looked."""
        (newest,) = self._db.execute(f"SELECT {_NEXT_SEQ} - 1").fetchone()
        if newest < self._seq:
            self._fell_behind(newest)
        if newest > self._seq:
            for entry in self._read(self._seq, self._hash):
                self._apply(entry, None)

    def _apply(self, entry: Entry, claimed: tuple[Spending, float] | None) -> None:
        """The state after `entry`. `claimed` where it is known, else it is computed when it is needed."""
        if entry.action == "reserve":
            self._open[entry.plan_sha256] = _steps(entry.releases)
        elif entry.action == "return":
            self._open.pop(entry.plan_sha256, None)
        else:
            (release,) = entry.releases
            self._charged.append(release)
            covered = min(release.steps, self._reserved(entry.plan_sha256, release))
            if covered:
                self._open[entry.plan_sha256][replace(release, steps=1)] -= covered
        self._seq, self._hash, self._claimed = entry.seq, entry.hash, claimed

    # --- the file -----------------------------------------------------------------------------------

    def _start(self, wait: float) -> str:
        """Make or check the file; the hash that its chain starts from."""
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
        if self._pragma("application_id") != APPLICATION_ID:
            self._make()
        if self._pragma("user_version") > VERSION:
            raise LedgerError(f"{self.path} was written by a newer fedrisk: install that version to use it")
        _use_write_ahead_log(self._db, wait)
        genesis = self._genesis()
        (scope,) = self._db.execute("SELECT scope FROM ledger").fetchone()
        if scope != self.scope:
            raise LedgerError(
                f"{self.path} is a ledger of {scope!r} and cannot become one of {self.scope!r}: use another file"
            )
        return genesis

    def _make(self) -> None:
        """Turn a new file into a ledger, unless another process has just done so."""
        with self._transaction():
            if self._pragma("application_id") == APPLICATION_ID:
                return
            (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if tables or self._pragma("application_id"):
                self._not_a_ledger()
            for statement in _statements(_SCHEMA):
                self._db.execute(statement)
            birth = (uuid.uuid4().hex, self.scope, self._timestamp())
            self._db.execute("INSERT INTO ledger VALUES (?, ?, ?)", birth)

    def _append_charge(self, plan_sha256: str, order_id: str, release: Release) -> Entry:
        event = release.to_dict()
        where = (event.pop("kind"), event.pop("part"), event.pop("split_id"))
        row = (self._seq + 1, plan_sha256, order_id, *where, _json(event), self._timestamp())
        return self._append("release", row)

    def _append_reservation(self, action: Action, plan_sha256: str, releases: Sequence[Release]) -> Entry:
        events = _json([release.to_dict() for release in releases])
        return self._append("reservation", (self._seq + 1, plan_sha256, action, events, self._timestamp()))

    def _append(self, table: str, row: Row) -> Entry:
        chained = (*row, _chain(self._hash, table, row))
        marks = ", ".join("?" * len(chained))
        self._db.execute(f"INSERT INTO {table} VALUES ({marks})", chained)  # noqa: S608 - our own names
        return _entry(table, chained)

    def _read(self, after: int, chain: str) -> Iterator[Entry]:
        """The entries after number `after`, whose hash is `chain`, each checked against the chain."""
        with contextlib.nullcontext() if self._db.in_transaction else self._snapshot():
            rows = [
                (table, row)
                for table in ("release", "reservation")
                for row in self._db.execute(f"SELECT * FROM {table} WHERE seq > ?", (after,))  # noqa: S608
            ]
        for table, row in sorted(rows, key=lambda found: int(found[1][0])):
            after, chain = after + 1, _chain(chain, table, row[:-1])
            if row[0] != after or row[-1] != chain:
                self._broken(after)
            try:
                yield _entry(table, row)
            except (KeyError, TypeError, ValueError):
                self._broken(after)

    def _genesis(self) -> str:
        births = self._db.execute("SELECT id, scope, created FROM ledger").fetchall()
        if len(births) != 1:
            self._broken(0)
        return _chain("", "ledger", births[0])

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])

    def _timestamp(self) -> str:
        return self._now().astimezone(UTC).isoformat(timespec="milliseconds")

    # --- transactions and errors --------------------------------------------------------------------

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction on the newest state, durable at its end; whatever is raised leaves the file as it was.

        The caller holds the lock until it has taken the new row into the state in memory.
        """
        with self._errors(), self._transaction():
            self._catch_up()
            yield

    @contextlib.contextmanager
    def _transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
        self._db.execute(begin)
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise

    def _snapshot(self) -> contextlib.AbstractContextManager[None]:
        """Several reads of one state: another process may append in between."""
        return self._transaction("BEGIN")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """SQLite's and the system's errors as one sentence."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code == sqlite3.SQLITE_NOTADB:
                self._not_a_ledger()
            if isinstance(error, sqlite3.ProgrammingError):
                raise LedgerError(f"{self.path} is closed: open it again to use it") from None
            what = _TROUBLE.get(
                code, f"cannot be used ({type(error).__name__}): restore it from its last copy"
            )
            raise LedgerError(f"{self.path} {what}; nothing was released") from None
        except OSError as error:
            raise LedgerError(
                f"{self.path} cannot be opened ({type(error).__name__}): the ledger's folder must exist and be"
                " writable; nothing was released"
            ) from None

    def _not_a_ledger(self) -> NoReturn:
        raise LedgerError(
            f"{self.path} is not a fedrisk ledger: name another file, or move this one away to start a new ledger"
        ) from None

    def _broken(self, seq: int) -> NoReturn:
        raise LedgerError(
            f"{self.path} fails its hash chain at entry {seq}, which was changed or removed after it was written:"
            " restore the ledger from a copy and find out who wrote to it"
        ) from None

    def _fell_behind(self, newest: int) -> NoReturn:
        raise LedgerError(
            f"{self.path} ends at entry {newest} but this process has seen entry {self._seq}: it was replaced by"
            " an older copy; restore the newest one"
        )


_TROUBLE = {
    sqlite3.SQLITE_FULL: "cannot grow, the disk is full: free some space and start again",
    sqlite3.SQLITE_READONLY: "is read-only: the node's user must be able to write the file and its folder",
    sqlite3.SQLITE_BUSY: "is locked by another process: let it finish or stop it, then try again",
    sqlite3.SQLITE_LOCKED: "is locked by another process: let it finish or stop it, then try again",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: the ledger's folder must exist and be writable",
    sqlite3.SQLITE_PERM: "cannot be opened: the ledger's folder must exist and be writable",
    sqlite3.SQLITE_IOERR: "cannot be written or read, the disk reports an error: check the disk and its free space",
    sqlite3.SQLITE_CORRUPT: "is damaged: restore it from its last copy",
    sqlite3.SQLITE_CONSTRAINT: "takes no change to what is written, a ledger is append-only: leave its rows alone",
}


def _refuse(budget: Budget, claimed: float, after: float) -> NoReturn:
    from federation.protocol import Reason, Refused  # here: it takes seconds and is rarely needed

    raise Refused(
        Reason.BUDGET,
        f"budget: epsilon would be {after:.4g} at delta {budget.delta:g}, the budget is {budget.epsilon:g} and"
        f" {claimed:.4g} of it is charged or reserved: ask for fewer steps or more noise, or give back the"
        " reservation of a plan that has ended",
    )


def _use_write_ahead_log(db: sqlite3.Connection, wait: float) -> None:
    """Switch `db` over, once in a file's life; SQLite does not wait here for other processes, so we do."""
    deadline = time.monotonic() + wait
    while db.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        try:
            db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _statements(script: str) -> Iterator[str]:
    """The statements of `script` one by one: `executescript` would commit our transaction."""
    statement = ""
    for piece in script.split(";"):
        statement += piece + ";"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _entry(table: str, row: Row) -> Entry:
    if table == "release":
        seq, plan, order_id, kind, part, split_id, event, at, chain = row
        release = Release.from_dict({"kind": kind, "part": part, "split_id": split_id, **json.loads(event)})
        return Entry(seq, "charge", plan, order_id, (release,), at, chain)
    seq, plan, action, events, at, chain = row
    releases = tuple(Release.from_dict(event) for event in json.loads(events))
    return Entry(seq, action, plan, "", releases, at, chain)


def _chain(previous: str, table: str, row: Row) -> str:
    """SHA-256, hex, of the previous hash and the row in its one canonical form."""
    return hashlib.sha256(_json([previous, table, *row]).encode()).hexdigest()


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _steps(releases: Iterable[Release]) -> Counter[Release]:
    """Steps by one-step release."""
    steps: Counter[Release] = Counter()
    for release in releases:
        steps[replace(release, steps=1)] += release.steps
    return steps


def _merged(steps: Counter[Release]) -> tuple[Release, ...]:
    """The inverse of `_steps`, equal releases merged."""
    return tuple(replace(release, steps=count) for release, count in steps.items() if count)
