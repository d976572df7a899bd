"""`access.db`: who consulted whose score, when, for what purpose, and what they did with it.

Append-only and hash-chained like the ledger, but apart from it: the ledger is about what left, this about what was
looked at. Of a record only its reference is here. It is written before anything is shown.
"""

import contextlib
import os
import pwd
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NoReturn, Self, final

from clients.ledger_rows import chain_of, statements

Review = Literal["agree", "override", "defer"]
REVIEWS: tuple[Review, ...] = ("agree", "override", "defer")
Action = Literal["score", "record", "agree", "override", "defer"]

ACCESS = "access.db"  # in the node's folder
APPLICATION_ID = 0x6672_6163  # "frac" in the file's header
FIELDS = ("at", "user", "action", "run", "purpose", "model", "reference", "note")
LONGEST_REASON = 2000
_MAKE = f"""
    CREATE TABLE access (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, {", ".join(f"{name} TEXT NOT NULL" for name in FIELDS)},
        hash TEXT NOT NULL);
    CREATE INDEX access_by_reference ON access (reference);
    CREATE TRIGGER access_no_UPDATE BEFORE UPDATE ON access
    BEGIN SELECT RAISE(ABORT, 'the access log is append-only'); END;
    CREATE TRIGGER access_no_DELETE BEFORE DELETE ON access
    BEGIN SELECT RAISE(ABORT, 'the access log is append-only'); END;
    PRAGMA application_id = {APPLICATION_ID};"""


class AccessError(RuntimeError):
    """The access log cannot be written or does not hold: one sentence. Then nothing is shown."""


@final
@dataclass(frozen=True)
class Access:
    """One row. A "score" is one run of the command, a "record" one reference in it; the others are reviews.

    `run` names the run that a record, or the review of one, belongs to. `note`: of a run how many were scored and
    listed, of a record whether it was listed, of a review the reason. `at` is UTC.
    """

    seq: int
    at: str
    user: str
    action: Action
    run: str
    purpose: str
    model: str
    reference: str
    note: str
    hash: str

    def to_dict(self) -> dict[str, str | int]:
        """Plain values, for JSON and CSV."""
        return asdict(self)


class AccessLog:
    """The log in `path`, made (mode 0600) if there is none. `now` is the clock."""

    def __init__(
        self, path: Path, *, now: Callable[[], datetime] = lambda: datetime.now(UTC), make: bool = True
    ) -> None:
        self.path, self._now = path, now
        with self._errors():
            if make:
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            elif not path.is_file():
                raise AccessError(f"{path} is not there: nobody was scored on this node yet")
            self._db = sqlite3.connect(path, isolation_level=None, timeout=30)
            self._start()

    @property
    def head(self) -> tuple[int, str]:
        """(number, hash) of the newest row; (0, "") of an empty log."""
        with self._errors():
            return self._head()

    def scored(
        self, *, user: str, run: str, purpose: str, model: str, records: Mapping[str, bool], note: str
    ) -> tuple[int, str]:
        """One run and every record in it (reference -> whether it was listed), all or none. The new head."""
        common = (run, purpose, model)
        rows = [("score", *common, "", note)]
        rows += [
            ("record", *common, reference, "listed" if listed else "scored")
            for reference, listed in records.items()
        ]
        return self._append(user, rows)

    def reviewed(self, *, user: str, reference: str, action: Review, reason: str) -> Access:
        """One review of a record that was scored here; `AccessError` where it was not, or a reason is missing."""
        reason = " ".join(reason.split())
        if not reason and action != "agree":
            raise AccessError(f"--reason is needed to {action}: why is the score not followed?")
        if len(reason) > LONGEST_REASON:
            raise AccessError(f"--reason must be at most {LONGEST_REASON} characters")
        with self._errors():
            found = self._db.execute(
                "SELECT run, purpose, model FROM access WHERE action = 'record' AND reference = ? "
                "ORDER BY seq DESC LIMIT 1",
                (reference,),
            ).fetchone()
        if found is None:
            raise AccessError(
                "no record with this reference was scored on this node, so there is nothing to review"
            )
        seq, _ = self._append(user, [(action, *found, reference, reason)])
        return next(self.rows(after=seq - 1))

    def rows(self, after: int = 0, since: str = "") -> Iterator[Access]:
        """The rows after number `after`, from `since` (the beginning of an ISO time, UTC) on."""
        with self._errors():
            found = self._db.execute(
                "SELECT * FROM access WHERE seq > ? AND at >= ? ORDER BY seq", (after, since)
            )
            for row in found:
                yield Access(*row)

    def verify(self, head: tuple[int, str] | None = None) -> int:
        """How many rows there are, each chained to the one before; `AccessError` at the first that is not.

        `head`: a (number, beginning of the hash) that was printed on a page; the log must still hold it. That
        finds a log that was cut off or replaced as a whole.
        """
        seq, chain = 0, ""
        for row in self.rows():
            values = tuple(getattr(row, name) for name in FIELDS)
            chain = chain_of(chain, "access", (seq + 1, *values))
            if row.seq != seq + 1 or row.hash != chain:
                self._broken(seq + 1)
            seq += 1
            if head is not None and seq == head[0] and not chain.startswith(head[1]):
                self._broken(seq)
        if seq < max(self._ever(), head[0] if head else 0):
            self._broken(seq + 1)
        return seq

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, user: str, rows: Sequence[tuple[str, ...]]) -> tuple[int, str]:
        at = self._now().astimezone(UTC).isoformat(timespec="milliseconds")
        marks = ", ".join("?" * (len(FIELDS) + 2))
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                seq, chain = self._head()
                for action, *rest in rows:
                    values = (at, user, action, *rest)
                    seq, chain = seq + 1, chain_of(chain, "access", (seq + 1, *values))
                    self._db.execute(f"INSERT INTO access VALUES ({marks})", (seq, *values, chain))  # noqa: S608
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise
        return seq, chain

    def _head(self) -> tuple[int, str]:
        found = self._db.execute("SELECT seq, hash FROM access ORDER BY seq DESC LIMIT 1").fetchone()
        return (int(found[0]), str(found[1])) if found else (0, "")

    def _ever(self) -> int:
        """The largest number that a row ever had."""
        with self._errors():
            found = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'access'").fetchone()
        return int(found[0]) if found else 0

    def _start(self) -> None:
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("BEGIN IMMEDIATE")  # two first runs at once: one of them makes it
        try:
            (kind,) = self._db.execute("PRAGMA application_id").fetchone()
            (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if not kind and not tables:
                for statement in statements(_MAKE):
                    self._db.execute(statement)
            elif kind != APPLICATION_ID:
                raise AccessError(f"{self.path} is not an access log: move it away")
        finally:
            self._db.execute("COMMIT")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            what = getattr(error, "sqlite_errorname", type(error).__name__)
            raise AccessError(
                f"{self.path} cannot be used ({what}): who consulted a record must be written down, so nothing is shown"
            ) from None
        except OSError as error:
            raise AccessError(
                f"{self.path} cannot be opened ({error.strerror}): the node's user must be able to write it"
            ) from None

    def _broken(self, seq: int) -> NoReturn:
        raise AccessError(
            f"{self.path} fails its hash chain at row {seq}, which was changed or removed after it was written: restore "
            "the log from a copy and find out who wrote to it"
        )


def who() -> str:
    """The login of whoever runs this, from the operating system; behind sudo, whose session it was too."""
    name = _login(os.getuid())
    sudo = os.environ.get("SUDO_UID", "")
    behind = _login(int(sudo)) if sudo.isdigit() and int(sudo) != os.getuid() else ""
    return f"{behind} (as {name})" if behind else name


def _login(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
