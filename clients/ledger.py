"""An agency's ledger: every release of its people's records, on its own disk, kept for good.

One SQLite file of append-only tables: `release` (what left, or may have left), `reservation` (what a plan
may still take; opened and closed by rows, never changed), `plan` (what each plan is for), `filter` (the
order at which each limit is accounted, `clients.budget`) and `people` (whose ledger this is). One sequence
and one hash chain run through all of them, so `verify` finds a row that was changed, removed or put in
between. The chain has no key and no end mark: whoever can write the file can also write a whole new one,
cut off its newest rows, or put an older copy back. That shows against a `head` that somebody else kept:
`holds` says whether this ledger still has it.

A release is written and on the disk before its noise is drawn. A crash in between wastes budget; it
never hides spending. The file stores releases and never an ε (`federation.privacy` computes that).

Several processes may use one file one after the other or at once: each transaction is short, takes
SQLite's write lock and first reads what others have appended. Write-ahead logging is SQLite's cheapest
durable commit (one fsync; a rollback journal takes two to three times as long), and it means that
`PATH-wal` belongs to `PATH`: copy neither alone while a node runs.

Version 1 had neither `plan` nor `filter` nor `people`. Its rows keep their hashes, and count against every
purpose and every experiment.
"""

import contextlib
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NoReturn, Self

from clients.budget import (
    Account,
    Budget,
    FilterOrder,
    Limit,
    Line,
    PlanFacts,
    check_budget,
    merged,
    steps_of,
)
from clients.ledger_rows import (
    APPLICATION_ID,
    NEWEST,
    TABLES,
    VERSION,
    VERSION_1,
    VERSION_2,
    WAL_PAGES,
    Action,
    Draft,
    Entry,
    chain_of,
    entry_of,
    statements,
)
from federation.privacy import epsilon
from federation.release import Event, Viewer

Scope = Literal["this run alone", "lifetime"]


class LedgerError(RuntimeError):
    """The ledger cannot be used: one sentence with the file, the rule and what to do."""


class Ledger:
    """The ledger in the file `path`, made if there is none.

    `budget` None records without refusing. `scope` says what the file stands for, one simulated run or
    everything that ever leaves this agency, and `people` whose records it is about (agency and data set);
    neither ever changes, and no new file, experiment or process starts a ledger anew. `split_id` names how
    this agency's people are dealt into train, tune and test, for releases that do not say it themselves;
    None takes every plan for a new split, which never understates a loss. `now` is the clock, `wait` the
    seconds to wait while another process writes. LedgerError where the file cannot be used or fails its
    hash chain, ValueError for a budget with two limits for the same.

    A lifetime ledger is not made in a folder that does not exist: a disk that is not mounted must not
    look like an agency that has spent nothing.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        budget: Budget | None,
        scope: Scope,
        people: str,
        split_id: str | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        wait: float = 10.0,
    ) -> None:
        check_budget(budget or ())
        self.path = Path(path)
        self.budget = budget
        self.scope = scope
        self.people = people
        self._split_id = split_id
        self._now = now
        self._lock = threading.RLock()
        self._seq = 0
        self._hash = ""
        self._account = Account()
        with self._errors():
            if scope == "this run alone":
                self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=wait, isolation_level=None, check_same_thread=False)
            try:
                self._start(wait)
            except BaseException:
                self._db.close()
                raise

    def reserve(self, plan: PlanFacts, releases: Sequence[Event]) -> None:
        """Keep the budget that a plan needs, before any record is read. Nothing happens if it is kept already.

        `Refused(BUDGET)`, and nothing changes, when everything charged, all open reservations and this
        would together exceed a limit.
        """
        with self._lock, self._errors():
            self._catch_up()
            if plan.sha256 in self._account.open or not releases:
                return
            with self._writing() as draft:
                if plan.sha256 not in self._account.open:
                    wanted = steps_of(self._named(plan, releases))
                    self._admit(draft, plan, wanted)
                    draft.reservation("reserve", plan.sha256, merged(wanted))

    def charge(self, plan: PlanFacts, order_id: str, events: Sequence[Event], *, once: bool = False) -> None:
        """Write `events`, which order `order_id` of the plan is about to make; on disk when this returns.

        Call it before the noise is drawn; a draw that is repeated is a new charge. All of them are written,
        or none. Uses up the plan's reservation; what goes beyond it must fit every limit, else
        `Refused(BUDGET)` and nothing changes. `once`: `Refused(REPLAYED)`, and nothing changes, where the
        order was charged before (what a masked draw hides must never be masked twice).
        """
        if not events:
            raise ValueError("events must be at least one, got none")
        with self._writing() as draft:
            if once and self._has_charged(order_id):
                _refuse_replay(order_id)
            named = self._named(plan, events)
            wanted = steps_of(named)
            self._admit(draft, plan, wanted - self._account.covered(plan.sha256, wanted))
            for event in named:
                draft.charge(plan.sha256, order_id, event)

    def charged(self, order_id: str) -> bool:
        """Whether anything was ever charged to the order."""
        with self._lock, self._errors():
            self._catch_up()
            return self._has_charged(order_id)

    def release_reservation(self, plan: PlanFacts | str) -> None:
        """Give back what the plan (or its SHA-256) reserved and did not charge. Nothing without a reservation.

        Call it only where nothing can be computed under the plan any more: what is charged never comes back.
        """
        sha256 = plan if isinstance(plan, str) else plan.sha256
        with self._writing() as draft:
            kept = self._account.open.get(sha256)
            if kept is not None:
                draft.reservation("return", sha256, merged(kept.steps))

    def releases(self) -> tuple[Event, ...]:
        """Everything charged, oldest first, one release per charge, with its split id."""
        with self._lock, self._errors():
            self._catch_up()
            return tuple(charge.event for charge in self._account.charges)

    def reservations(self) -> dict[str, tuple[Event, ...]]:
        """What each plan with an open reservation may still take, by the plan's SHA-256."""
        with self._lock, self._errors():
            self._catch_up()
            return {sha256: merged(kept.steps) for sha256, kept in self._account.open.items()}

    def spent(self) -> list[Line]:
        """Each limit of the budget against each viewer: ε spent, claimed and allowed, now."""
        with self._lock, self._errors():
            self._catch_up()
            return list(self._account.lines(self.budget or (), self._now().astimezone(UTC).date()))

    def epsilon(self, delta: float, viewer: Viewer = "coordinator") -> float:
        """ε at `delta` to `viewer` of everything charged, for the person who lost most (`federation.privacy`).

        At the best order for what was charged, so it may be below what `spent` shows, and admits nothing.
        """
        return epsilon(self.releases(), delta, viewer=viewer)

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

    @property
    def head(self) -> tuple[int, str]:
        """(sequence number, hash) of the newest entry: whoever keeps it can tell a ledger that went back."""
        with self._lock, self._errors():
            self._catch_up()
            return self._seq, self._hash

    def holds(self, seq: int, hash: str) -> bool:
        """Whether entry `seq` is there and has this hash; 0 is the ledger's birth.

        False for a `head` that was kept of this ledger: an older copy was put back (it is shorter), or
        another history was written since (it has another hash).
        """
        with self._lock, self._errors(), self._snapshot():
            self._catch_up()
            if seq == 0:
                return self._genesis() == hash
            found = [
                row
                for table in TABLES
                for row in self._db.execute(f"SELECT hash FROM {table} WHERE seq = ?", (seq,))  # noqa: S608
            ]
            return found == [(hash,)]

    def close(self) -> None:
        """Close the file. The last one to close it folds `PATH-wal` back in."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the state in memory ------------------------------------------------------------------------

    def _admit(self, draft: "Draft", plan: PlanFacts, extra: dict[Event, int]) -> None:
        """Write what is new about the plan and its limits; `Refused(BUDGET)` where `extra` exceeds one."""
        today = datetime.fromisoformat(draft.at).date()
        orders = self._account.admit(plan, extra, self.budget or (), today)
        if plan.sha256 not in self._account.plans:
            draft.plan(plan)
        for fixed in orders:
            draft.fixed(fixed)

    def _named(self, plan: PlanFacts, events: Iterable[Event]) -> list[Event]:
        """`events` with the split id of this ledger, or of their own plan."""
        split = f"plan {plan.sha256}" if self._split_id is None else self._split_id
        return [event if event.split_id else replace(event, split_id=split) for event in events]

    def _has_charged(self, order_id: str) -> bool:
        found = self._db.execute("SELECT EXISTS (SELECT 1 FROM release WHERE order_id = ?)", (order_id,))
        return bool(found.fetchone()[0])

    def _catch_up(self) -> None:
        """Take in what others appended since this process last looked."""
        (newest,) = self._db.execute(NEWEST).fetchone()
        if newest < self._seq:
            self._fell_behind(newest)
        if newest > self._seq:
            for entry in self._read(self._seq, self._hash):
                self._apply(entry)

    def _apply(self, entry: Entry) -> None:
        """The state after `entry`."""
        if entry.plan is not None:
            self._account.meet(entry.plan)
        elif entry.fixed is not None:
            self._account.fix(entry.fixed)
        elif entry.action == "reserve":
            self._account.reserve(entry.plan_sha256, entry.releases)
        elif entry.action == "return":
            self._account.give_back(entry.plan_sha256)
        elif entry.action == "charge":
            self._account.charge(entry.plan_sha256, entry.releases[0], entry.at)
        elif entry.people != self.people:
            raise LedgerError(
                f"{self.path} is a ledger about {entry.people!r} and cannot become one about {self.people!r}:"
                " use the ledger of these people"
            )
        self._seq, self._hash = entry.seq, entry.hash

    # --- the file -----------------------------------------------------------------------------------

    def _start(self, wait: float) -> None:
        """Make, check or bring up to date the file, and take in what it holds."""
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
        if self._pragma("application_id") != APPLICATION_ID or self._pragma("user_version") < VERSION:
            self._bring_up_to_date()
        if self._pragma("user_version") > VERSION:
            raise LedgerError(f"{self.path} was written by a newer fedrisk: install that version to use it")
        _use_write_ahead_log(self._db, wait)
        self._check_scope()
        if not self._seq:
            self._hash = self._genesis()
        self._catch_up()
        if not self._seq:
            self._broken(1)  # a ledger is born with its people

    def _bring_up_to_date(self) -> None:
        """Make the tables of a new file, or those that version 1 lacked: all of it, or nothing."""
        with self._transaction():
            if self._pragma("application_id") != APPLICATION_ID:
                self._make()
            if self._pragma("user_version") >= VERSION:
                return  # another process has just done it
            self._check_scope()
            for statement in statements(VERSION_2):
                self._db.execute(statement)
            self._hash = self._genesis()
            self._catch_up()  # a row is chained to nothing that was not checked
            self._draft().people(self.people)

    def _make(self) -> None:
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables or self._pragma("application_id"):
            self._not_a_ledger()
        for statement in statements(VERSION_1):
            self._db.execute(statement)
        birth = (uuid.uuid4().hex, self.scope, self._timestamp())
        self._db.execute("INSERT INTO ledger VALUES (?, ?, ?)", birth)

    def _check_scope(self) -> None:
        """LedgerError where the file stands for something else."""
        (scope,) = self._db.execute("SELECT scope FROM ledger").fetchone() or (self.scope,)
        if scope != self.scope:
            raise LedgerError(
                f"{self.path} is a ledger of {scope!r} and cannot become one of {self.scope!r}: use another file"
            )

    def _read(self, after: int, chain: str) -> Iterator[Entry]:
        """The entries after number `after`, whose hash is `chain`, each checked against the chain."""
        with contextlib.nullcontext() if self._db.in_transaction else self._snapshot():
            rows = [
                (table, row)
                for table in TABLES
                for row in self._db.execute(f"SELECT * FROM {table} WHERE seq > ?", (after,))  # noqa: S608
            ]
        for table, row in sorted(rows, key=lambda found: int(found[1][0])):
            after, chain = after + 1, chain_of(chain, table, row[:-1])
            if row[0] != after or row[-1] != chain:
                self._broken(after)
            try:
                yield entry_of(table, row)
            except (AttributeError, KeyError, TypeError, ValueError):
                self._broken(after)

    def _genesis(self) -> str:
        births = self._db.execute("SELECT id, scope, created FROM ledger").fetchall()
        if len(births) != 1:
            self._broken(0)
        return chain_of("", "ledger", births[0])

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])

    def _timestamp(self) -> str:
        return self._now().astimezone(UTC).isoformat(timespec="milliseconds")

    # --- transactions and errors --------------------------------------------------------------------

    @contextlib.contextmanager
    def _writing(self) -> Iterator["Draft"]:
        """A transaction on the newest state, durable at its end; whatever is raised leaves the file as it was.

        What was appended is taken into the state in memory once it is on the disk.
        """
        with self._lock:
            with self._errors(), self._transaction():
                self._catch_up()
                draft = self._draft()
                yield draft
            for entry in draft.entries:
                self._apply(entry)

    def _draft(self) -> "Draft":
        return Draft(self._db, self._seq, self._hash, self._timestamp())

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


def _refuse_replay(order_id: str) -> NoReturn:
    from federation.plan import Reason, Refused  # here: it takes seconds and is rarely needed

    raise Refused(
        Reason.REPLAYED, f"the order {order_id!r} was charged before and may be made once: send a new order"
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


__all__ = [
    "Action",
    "Budget",
    "Entry",
    "FilterOrder",
    "Ledger",
    "LedgerError",
    "Limit",
    "Line",
    "PlanFacts",
    "Scope",
]
