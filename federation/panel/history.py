"""What a panel said, in the order in which a quorum had signed it: history.jsonl, which only grows.

One JSON object to a line: `seq`, `at` (UTC), `previous`, `entry` (a `Signed`) and `hash`, which is SHA-256 over the
others in canonical form. A line is on the disk when `append` returns; writers wait for each other.

A changed, removed, inserted or moved line breaks the chain, and the first one is named. Lines that are missing at the end,
or a history that was written anew, only a head shows that was written down elsewhere ("12:ab12..."): `check_head`. A new
history also needs new signatures of a quorum.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, final

from federation.decision import Signed, read_signed
from federation.durable import append
from federation.panel.files import HISTORY, UNREADABLE, PanelError

START = "0" * 64
LOCK = ".lock"


@dataclass(frozen=True)
class Entry:
    """One line. `at` is UTC, when the last of the quorum had signed."""

    seq: int
    at: str
    previous: str
    entry: Signed
    hash: str

    @property
    def time(self) -> datetime:
        """`at` as a time."""
        found = datetime.fromisoformat(self.at)
        return found if found.tzinfo is not None else found.replace(tzinfo=UTC)

    @property
    def head(self) -> str:
        """As people write it into their minutes, and `check_head` takes it."""
        return f"{self.seq}:{self.hash}"


@final
class Book:
    """A history that nobody else writes to for now."""

    def __init__(self, path: Path, entries: Sequence[Entry]) -> None:
        self._path: Final = path
        self.entries = tuple(entries)

    def append(self, signed: Signed, at: datetime) -> Entry:
        """Add one statement; it is on the disk when this returns."""
        previous = self.entries[-1].hash if self.entries else START
        found = _entry(len(self.entries) + 1, at.astimezone(UTC).isoformat(), previous, signed)
        append(self._path, _line(found), mode=0o644)
        self.entries = (*self.entries, found)
        return found


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Book]:
    """The history of the panel in `folder`, to write to."""
    with _alone(folder):
        yield Book(folder / HISTORY, read(folder))


def read(folder: Path) -> tuple[Entry, ...]:
    """All entries, oldest first. `PanelError` names the first line that is not as it was written."""
    path = folder / HISTORY
    entries, half = _read(path)
    if half:
        raise PanelError(
            f"{path} ends in half a line after entry {len(entries)}: a write was cut off, or the end was removed. Where the "
            f"newest head in the minutes is that of entry {len(entries)}, fedrisk-panel mend --head {len(entries)}:HASH removes "
            "the half line, and what was being signed is still in drafts/; else put the file back from a copy"
        )
    return entries


def mend(folder: Path, head: str) -> int:
    """Remove half a line after the entry of `head`, the newest in the minutes; how many bytes it had."""
    with _alone(folder):
        path = folder / HISTORY
        entries, half = _read(path)
        if not half:
            raise PanelError(f"{path} has no half line at its end: there is nothing to mend")
        seq, digest = _head(head)
        if seq != len(entries) or not (entries[-1].hash if entries else START).startswith(digest):
            raise PanelError(
                f"{path} has {len(entries)} whole entries, and {head} is not the head of the last: entries are missing; "
                "put the file back from a copy"
            )
        os.truncate(path, path.stat().st_size - len(half))
        return len(half)


def check_head(entries: Sequence[Entry], head: str) -> None:
    """`PanelError` unless the history has the entry that `head` ("12:ab12...", from the minutes) names."""
    seq, digest = _head(head)
    if seq > len(entries):
        raise PanelError(
            f"{HISTORY} ends at entry {len(entries)}, and the minutes name entry {seq}: its end was removed; put it back "
            "from a copy, and find out who wrote to it"
        )
    if seq and not entries[seq - 1].hash.startswith(digest):
        raise PanelError(
            f"entry {seq} of {HISTORY} is not the one that the minutes name ({digest[:12]}): the history was written anew; "
            "put it back from a copy, and find out who wrote to it"
        )


def _head(text: str) -> tuple[int, str]:
    found = re.fullmatch(r"(\d+):\s*([0-9a-f]{12,64})", text.strip())
    if found is None:
        raise PanelError(
            f"a head is SEQ:HASH, as in 12:ab12..., with 12 digits of the hash at least; got {text!r}"
        )
    return int(found[1]), found[2]


def _read(path: Path) -> tuple[tuple[Entry, ...], bytes]:
    """The entries, and what stands after the last line's end."""
    try:
        *lines, half = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return (), b""
    entries: list[Entry] = []
    for number, line in enumerate(lines, start=1):
        previous = entries[-1].hash if entries else START
        found = _parse(line)
        if found is None or (found.seq, found.previous) != (number, previous):
            stands = f" (entry {found.seq} stands there)" if found is not None and found.seq != number else ""
            raise PanelError(
                f"{path}: entry {number} is not as it was written{stands}: it was changed, removed or moved; put the file back "
                "from a copy, and find out who wrote to it"
            )
        entries.append(found)
    return tuple(entries), half


def _parse(line: bytes) -> Entry | None:
    """The entry in `line`, if it is whole and its hash is that of what it says."""
    try:
        values = json.loads(line)
        signed = read_signed(_canonical(values["entry"]))
        found = _entry(int(values["seq"]), str(values["at"]), str(values["previous"]), signed)
    except UNREADABLE:  # DecisionError is one
        return None
    return found if _line(found) == line + b"\n" else None


def _entry(seq: int, at: str, previous: str, signed: Signed) -> Entry:
    whole = {"seq": seq, "at": at, "previous": previous, "entry": json.loads(signed.canonical)}
    return Entry(seq, at, previous, signed, hashlib.sha256(_canonical(whole).encode()).hexdigest())


def _line(entry: Entry) -> bytes:
    values = {
        "seq": entry.seq,
        "at": entry.at,
        "previous": entry.previous,
        "entry": json.loads(entry.entry.canonical),
        "hash": entry.hash,
    }
    return _canonical(values).encode() + b"\n"


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One writer at a time; the lock goes with its process."""
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
