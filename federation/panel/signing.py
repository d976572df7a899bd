"""A statement on its way to a quorum: drafts/ holds what some have signed, the history what enough have.

Members of a panel share its folder; each signs with their own key, together or one after the other.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.decision import DecisionError, Panel, Registration, Signed, Statement, read_signed
from federation.panel.decisions import SHORTEST, check_follows, quorum_of
from federation.panel.files import DRAFTS, PanelError, write_whole
from federation.panel.history import Book, Entry, opened


@dataclass(frozen=True)
class Progress:
    """How far a statement is. `entry`: where it stands in the history, if enough have signed; `file`: where it lies."""

    signed: Signed
    signers: tuple[str, ...]
    needed: int
    file: Path
    entry: Entry | None


def unsigned(statement: Statement) -> Signed:
    """`statement` as nobody has signed it yet."""
    return Signed.of(statement)


def draft_path(folder: Path, signed: Signed) -> Path:
    """Where it waits for signatures."""
    return folder / DRAFTS / f"{signed.kind}-{signed.digest[:12]}.json"


def drafts(folder: Path) -> list[tuple[Path, Signed]]:
    """What waits for signatures."""
    return [(path, _read(path)) for path in sorted((folder / DRAFTS).glob("*.json"))]


def find_draft(folder: Path, named: str) -> Signed:
    """The draft in the file `named`, or the one in drafts/ whose SHA-256 begins so."""
    if Path(named).is_file():
        return _read(Path(named))
    waiting = drafts(folder)
    found = [each for path, each in waiting if path.name == named or _begins(each, named)]
    if len(found) != 1:
        known = ", ".join(path.name for path, _ in waiting) or "nothing"
        raise PanelError(f"{named!r} names {len(found)} drafts; waiting for signatures: {known}")
    return found[0]


def add_signatures(
    folder: Path, panel: Panel, signed: Signed, keys: Mapping[str, Ed25519PrivateKey], now: datetime
) -> Progress:
    """Sign `signed` with `keys`. It waits in drafts/ until a quorum has, then it is the history's next entry."""
    with opened(folder) as book:
        check_follows(book.entries, signed, panel, now)
        path = draft_path(folder, signed)
        if path.exists():
            signed = _merged(signed, _read(path))
        for name, key in keys.items():
            signed = signed.sign(name, key)
        return _kept(book, path, panel, signed, now)


def _kept(book: Book, path: Path, panel: Panel, signed: Signed, now: datetime) -> Progress:
    signers = tuple(sorted(panel.signers(signed.kind, signed.digest, signed.signatures)))
    signed = signed.but(signatures={name: signed.signatures[name] for name in signers})
    needed = quorum_of(panel, signed)
    path.parent.mkdir(exist_ok=True)
    write_whole(path, signed.canonical.encode())
    if len(signers) < needed:
        return Progress(signed, signers, needed, path, None)
    entry = book.append(signed, now)
    path.unlink()
    return Progress(signed, signers, needed, path, entry)


def registration_path(folder: Path, signed: Signed) -> Path:
    """Where a complete registration is written, so that a run can be started with it."""
    return folder / f"registration-{signed.digest[:12]}.json"


def false_registrations(folder: Path, entries: Sequence[Entry]) -> list[str]:
    """Each registration-*.json of the folder that is not what the history has."""
    known = {entry.entry.canonical for entry in entries if entry.entry.kind == Registration.kind}
    found = []
    for path in sorted(folder.glob("registration-*.json")):
        text = None
        with contextlib.suppress(PanelError):
            text = _read(path).canonical
        if text not in known:
            found.append(f"{path} is not a registration as this panel's history has it: it was changed")
    return found


def _merged(given: Signed, waiting: Signed) -> Signed:
    if given.digest != waiting.digest:
        raise PanelError("another draft has the same name in drafts/: remove the one that nobody wants")
    return given.but(signatures=waiting.signatures | given.signatures)


def _begins(signed: Signed, digits: str) -> bool:
    return len(digits) >= SHORTEST and signed.digest.startswith(digits)


def _read(path: Path) -> Signed:
    try:
        return read_signed(path.read_text(encoding="utf-8"))
    except (DecisionError, UnicodeDecodeError) as error:
        raise PanelError(f"{path}: {error}") from None
