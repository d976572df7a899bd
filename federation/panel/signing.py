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
from federation.durable import write_whole
from federation.panel.decisions import SHORTEST, check_follows, quorum_of
from federation.panel.files import DRAFTS, UNREADABLE, PanelError
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


def drafts(folder: Path) -> tuple[list[tuple[Path, Signed]], list[str]]:
    """What waits for signatures; and of each file in drafts/ that is no draft, why: it is passed over."""
    waiting, passed_over = [], []
    for path in sorted((folder / DRAFTS).glob("*.json")):
        try:
            waiting.append((path, _read(path)))
        except (PanelError, OSError) as error:
            passed_over.append(f"passed over: {error}")
    return waiting, passed_over


def find_registered(entries: Sequence[Entry], named: str) -> Signed | None:
    """The registration in the history whose SHA-256 begins so, or that is the one in the file `named`."""
    digits = _read(Path(named)).digest if Path(named).is_file() else named.lower()
    found = [
        each.entry for each in entries if each.entry.kind == Registration.kind and _begins(each.entry, digits)
    ]
    return found[0] if len(found) == 1 else None


def find_draft(folder: Path, named: str) -> Signed:
    """The draft in the file `named`, or the one in drafts/ whose SHA-256 begins so."""
    if Path(named).is_file():
        return _read(Path(named))
    waiting, _ = drafts(folder)
    found = [each for path, each in waiting if path.name == named or _begins(each, named)]
    if len(found) != 1:
        known = ", ".join(path.name for path, _ in waiting) or "nothing"
        raise PanelError(
            f"{named!r} names {len(found)} drafts: give the first {SHORTEST} digits or more of its SHA-256, and look with "
            f"fedrisk-panel list whether it is complete already; waiting for signatures: {known}"
        )
    return found[0]


def add_signatures(
    folder: Path, panel: Panel, signed: Signed, keys: Mapping[str, Ed25519PrivateKey], now: datetime
) -> Progress:
    """Sign `signed` with `keys`. It waits in drafts/ until a quorum has, then it is the history's next entry."""
    with opened(folder) as book:
        check_follows(book.entries, signed, panel, now, signing=True)
        path = draft_path(folder, signed)
        if path.exists():
            signed = _merged(_right(signed, panel), _right(_read(path), panel))
        for name, key in keys.items():
            signed = signed.sign(name, key)
        return _kept(book, path, panel, signed, now)


def _kept(book: Book, path: Path, panel: Panel, signed: Signed, now: datetime) -> Progress:
    signed = _right(signed, panel)
    signers = tuple(signed.signatures)
    needed = quorum_of(panel, signed)
    path.parent.mkdir(exist_ok=True)
    write_whole(path, signed.canonical.encode(), mode=0o644)
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


def _right(signed: Signed, panel: Panel) -> Signed:
    """Without the signatures that are none of the panel's: they must not stand in the place of right ones."""
    signers = panel.signers(signed.kind, signed.digest, signed.signatures)
    return signed.but(signatures={name: signed.signatures[name] for name in sorted(signers)})


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
    except UNREADABLE:
        raise PanelError(f"{path}: this is not a signed statement of a panel") from None
