"""The node's journal: every order, verdict, release, approval, start and stop, in a file that only grows.

`log/journal.jsonl` has one JSON object to a line: `seq`, `at` (UTC), `kind`, `facts` (`clients.journal_lines`),
`previous` and `hash`, which is SHA-256 over all the others in canonical form. After `LARGEST` bytes the chain goes on
in `journal-0002.jsonl`, and so forth; nothing is ever deleted. A line is on the disk when `write` returns, and the
node writes it before the answer that it is about may leave. Several processes may write: each holds a lock.

What `verify` finds: a line that was changed, removed, put in or moved (the first one is named); lines missing at the
end (`log/journal.head` holds the number and hash of the newest); a file that is gone. What it cannot find by itself:
a journal that somebody who may write the folder wrote anew, with its head. Against that `against_ledger` compares it
with the ledger, whose own head the coordinator and a neighbour keep: each charge needs its order's line, and each
release names a head that the ledger must have.

A crash in the middle of a write leaves half a line without an end. It never counted: the next write removes it and
says so in a line of kind "repaired".
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from clients import journal_lines as lines
from federation.durable import append

LARGEST = 16 * 2**20  # bytes of one file
LONGEST = 2**16  # bytes of one line: more than any kind can have
START = "0" * 64


class JournalError(RuntimeError):
    """The journal cannot be written or fails its chain: one sentence with the file, the rule and what to do."""


@dataclass(frozen=True)
class Record:
    """One line. `at` is UTC to the millisecond."""

    seq: int
    at: str
    kind: str
    facts: dict[str, Any]
    previous: str
    hash: str


@dataclass(frozen=True)
class Verified:
    """A journal whose chain holds: how many lines in how many files. `unfinished`: a crash left half a line."""

    lines: int
    files: int
    unfinished: bool


class Journal:
    """The journal of the node in `folder`. `durable` False leaves out fsync (a simulation); `now` is the clock."""

    def __init__(
        self,
        folder: Path,
        *,
        durable: bool = True,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        largest: int = LARGEST,
    ) -> None:
        self.folder = folder / "log"
        self._durable = durable
        self._now = now
        self._largest = largest

    def write(self, line: lines.Line) -> None:
        """Append one line; it is on the disk when this returns. `JournalError` where it cannot be."""
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            with self._locked() as head:
                cut_off = self._mend()
                for each in [lines.Repaired(cut_off=cut_off)] if cut_off else []:
                    self._append(each, head)
                self._append(line, head)
        except OSError as error:
            raise JournalError(
                f"{self.folder / 'journal.jsonl'} cannot be written ({error.strerror}): free some space, or give the "
                "node's user the right to write there; nothing was released"
            ) from None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        head = os.open(self.folder / "journal.head", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(head, fcntl.LOCK_EX)
            yield head
        finally:
            os.close(head)

    def _append(self, line: lines.Line, head: int) -> None:
        files = files_of(self.folder)
        seq, chain = max(
            _last_of(files), _read_head(head)
        )  # a head that is ahead: lines are missing, and stay so
        record = _record(seq + 1, self._now(), line, chain)
        path = _next_file(self.folder, files, self._largest)
        append(path, _text(record), durable=self._durable)
        os.pwrite(head, f"{record.seq:020d} {record.hash}\n".encode(), 0)

    def _mend(self) -> int:
        """Finish or remove half a line at the end; how many bytes were removed."""
        files = files_of(self.folder)
        half = _tail(files[-1])[1] if files else b""
        if not half:
            return 0
        if _parse(half) is not None:  # whole but for its end
            append(files[-1], b"\n", durable=self._durable)
            return 0
        os.truncate(files[-1], files[-1].stat().st_size - len(half))
        return len(half)


def read(folder: Path, since: datetime | None = None) -> list[Record]:
    """The lines of the journal in `folder` (a node's), oldest first, as they stand; `verify` says if they hold."""
    found = []
    for path in files_of(folder / "log"):
        for text in path.read_bytes().split(b"\n"):
            record = _parse(text)
            if record is not None and (since is None or datetime.fromisoformat(record.at) >= since):
                found.append(record)
    return found


def verify(folder: Path) -> Verified:
    """`JournalError` names the first line that is not as it was written, or is missing."""
    seq, chain, unfinished = 0, START, False
    files = files_of(folder / "log")
    for number, path in enumerate(files, start=1):
        if path.name != _name(number):
            raise JournalError(f"{path.parent / _name(number)} is missing: put it back from a copy")
        *whole, rest = path.read_bytes().split(b"\n")
        unfinished = unfinished or (bool(rest) and number == len(files))
        for text in whole + ([rest] if rest and number < len(files) else []):
            record = _parse(text)
            if record is None or (record.seq, record.previous) != (seq + 1, chain):
                _broken(path, seq + 1, record)
            seq, chain = record.seq, record.hash
    _check_head(folder / "log", seq, chain)
    return Verified(seq, len(files), unfinished)


def against_ledger(
    records: Sequence[Record], charged: Iterable[tuple[str, str]], holds: Callable[[int, str], bool]
) -> int:
    """`JournalError` where the journal and the ledger do not tell the same story.

    `charged` are (order id, time) of the ledger's charges, `holds` says whether it has an entry (`Ledger.holds`).
    Returns how many charges are older than the journal's first line, which it says nothing about.
    """
    ordered = {record.facts.get("order_id") for record in records}
    begins = datetime.fromisoformat(records[0].at) if records else datetime.max.replace(tzinfo=UTC)
    missing = [(order_id, at) for order_id, at in charged if order_id not in ordered]
    older = [order_id for order_id, at in missing if datetime.fromisoformat(at) < begins]
    if len(older) < len(missing):
        order_id = next(order_id for order_id, at in missing if datetime.fromisoformat(at) >= begins)
        raise JournalError(
            f"the ledger has a charge of order {order_id}, which the journal does not know: lines of the journal were "
            "removed, or it was made anew; put it back from a copy"
        )
    for record in records:
        facts = record.facts
        if record.kind == "released" and not holds(int(facts["ledger_seq"]), str(facts["ledger_sha256"])):
            raise JournalError(
                f"line {record.seq} of the journal names entry {facts['ledger_seq']} of the ledger, which the ledger does "
                "not have: an older ledger was put back; restore the newest one"
            )
    return len(older)


def files_of(folder: Path) -> list[Path]:
    """The files of the journal in `folder` (a node's `log`), oldest first."""
    first = folder / _name(1)
    later = sorted(folder.glob("journal-[0-9][0-9][0-9][0-9].jsonl"))
    return ([first] if first.exists() else []) + later


def _name(number: int) -> str:
    return "journal.jsonl" if number == 1 else f"journal-{number:04d}.jsonl"


def _next_file(folder: Path, files: list[Path], largest: int) -> Path:
    """Where the next line goes."""
    if files and files[-1].stat().st_size < largest:
        return files[-1]
    return folder / _name(len(files) + 1)


def _record(seq: int, now: datetime, line: lines.Line, previous: str) -> Record:
    at = now.astimezone(UTC).isoformat(timespec="milliseconds")
    facts = json.loads(line.model_dump_json(exclude_none=True))
    kind = type(line).__name__.lower()
    return Record(seq, at, kind, facts, previous, _hash(seq, at, kind, facts, previous))


def _hash(*values: object) -> str:
    return hashlib.sha256(_json(values)).hexdigest()


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _text(record: Record) -> bytes:
    return json.dumps(asdict(record), separators=(",", ":"), ensure_ascii=True).encode() + b"\n"


def _parse(text: bytes) -> Record | None:
    """The line in `text`, if it is whole and its hash is that of what it says."""
    try:
        record = Record(**json.loads(text))
        whole = record.hash == _hash(record.seq, record.at, record.kind, record.facts, record.previous)
        whole = whole and datetime.fromisoformat(record.at).tzinfo is not None
    except (TypeError, ValueError):
        return None
    return record if whole and text + b"\n" == _text(record) else None


def _tail(path: Path) -> tuple[bytes, bytes]:
    """The last whole line of a file (without its end), and what stands after it."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2 * LONGEST))
        *whole, half = file.read().split(b"\n")
    return (whole[-1] if whole else b""), half


def _last_of(files: list[Path]) -> tuple[int, str]:
    """(number, hash) of the newest line that can be read, of the newest file that has one."""
    for path in reversed(files):
        record = _parse(_tail(path)[0])
        if record is not None:
            return record.seq, record.hash
    return 0, START


def _read_head(head: int) -> tuple[int, str]:
    return _head_of(os.pread(head, 256, 0))


def _head_of(content: bytes) -> tuple[int, str]:
    try:
        seq, chain = content.decode("ascii").split()
        return (int(seq), chain) if len(chain) == len(START) else (0, START)
    except ValueError:
        return 0, START


def _check_head(folder: Path, seq: int, chain: str) -> None:
    """The head may be behind (a crash), never ahead, and never beside."""
    path = folder / "journal.head"
    newest = _head_of(path.read_bytes()) if path.exists() else (0, START)
    if newest[0] > seq or (newest[0] == seq and newest[1] != chain):
        raise JournalError(
            f"{folder / 'journal.jsonl'} ends at line {seq}, and line {newest[0]} had been written: the end was removed; "
            "put it back from a copy, and find out who wrote to it"
        )


def _broken(path: Path, seq: int, found: Record | None) -> NoReturn:
    raise JournalError(
        f"{path} fails its hash chain at line {seq}"
        + (f" (line {found.seq} stands there)" if found is not None and found.seq != seq else "")
        + ", which was changed or removed after it was written: put it back from a copy, and find out who wrote to it"
    )
