"""`fedrisk-node backup`: a copy of what a node must not lose, taken while it works or not (docs/restore.md).

The journal is held still for the copy (a node at work waits a moment), the databases are copied by SQLite itself. So
every charge in the copied ledger has its line in the copied journal, and every line its charge; the copy is checked
before it counts. The records are not in it, nor is a database's password, nor what must never come back: `draws/`,
`masks/` and `cohorts/` hold the randomness of orders at work, and with an old copy noise could be taken away or drawn twice.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clients import journal
from clients.approvals import Approvals
from clients.desk.ledger_copy import read_only
from clients.folder import NodeError, NodeFile, read_node_file
from clients.policy import Policy, read_policy

DATABASES = ("ledger.db", "probing.db", "access.db")
SECRETS = ("node.key", "split.key", "signing.key")
FILES = (
    "node.toml",
    "policy.toml",
    "data.toml",
    *SECRETS,
    "node.pub",
    "approvals.jsonl",
    "keeps.json",
    "left.json",
    "panel-status.json",
)
SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class Copied:
    """A copy that holds. `ledger`: number and hash of its newest entry, None where there is no ledger yet."""

    folder: str
    agency: str
    files: tuple[str, ...]
    ledger: tuple[int, str] | None
    journal_lines: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def back_up(folder: Path, out: Path) -> Copied:
    """Copy the node in `folder` into the new folder `out` (mode 0700, files 0600). Known errors leave no `out` behind."""
    facts, policy = read_node_file(folder / "node.toml"), read_policy(folder / "policy.toml")
    if out.exists():
        raise NodeError(
            f"{out} is there already: name a new folder for each copy, so that no copy is overwritten"
        )
    if not out.parent.is_dir():
        raise NodeError(f"{out.parent} is no folder: make it, or mount the disk that copies go to")
    out.mkdir(mode=0o700)
    try:
        return _copy(folder, out, facts, policy)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


def _copy(folder: Path, out: Path, facts: NodeFile, policy: Policy) -> Copied:
    (out / "log").mkdir(mode=0o700)
    with _held_still(folder):  # the ledger after the journal: a charge's line is written before the charge
        for path in (*journal.files_of(folder / "log"), folder / "log" / "journal.head"):
            _copy_file(path, out / "log" / path.name)
        for name in DATABASES:
            _copy_database(folder / name, out / name)
        _copy_file(folder / "approvals.jsonl", out / "approvals.jsonl")
    for name in (*FILES, *_named(facts)):
        if not (out / name).exists():
            _copy_file(folder / name, out / name)
    head, lines = _checked(folder, out, facts, policy)
    files = tuple(sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()))
    _write(out / SUMS, "".join(f"{_sha256(out / name)}  {name}\n" for name in files).encode())
    return Copied(str(out), facts.name, files, head, lines)


def _named(facts: NodeFile) -> list[str]:
    """Files that node.toml names and that hold no record; one that lies elsewhere is not this folder's to copy."""
    names = [facts.contract]
    if facts.superlink is not None and facts.superlink.certificate is not None:
        names.append(facts.superlink.certificate)
    if facts.release is not None:
        names += [facts.release.manifest, f"{facts.release.manifest}.sig"]
    return [name for name in names if Path(name).name == name]


@contextlib.contextmanager
def _held_still(folder: Path) -> Iterator[None]:
    """Nobody writes the journal meanwhile. (Its writers hold this lock, `clients.journal`.)"""
    try:
        handle = os.open(folder / "log" / "journal.head", os.O_RDONLY)
    except FileNotFoundError:  # nothing has happened yet
        yield
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def _checked(folder: Path, out: Path, facts: NodeFile, policy: Policy) -> tuple[tuple[int, str] | None, int]:
    """The ledger's head and the journal's lines, once every chain of the copy holds; an error names the original."""
    try:
        lines = journal.verify(out).lines
        Approvals(out).verify()
        if not (out / "ledger.db").exists():
            return None, lines
        with read_only(out, facts, policy) as ledger:
            ledger.verify()
            charged = [(entry.order_id, entry.at) for entry in ledger.entries() if entry.action == "charge"]
            journal.against_ledger(journal.read(out), charged, ledger.holds)
            return ledger.head, lines
    except (NodeError, RuntimeError) as error:
        raise NodeError(
            f"no copy was made, because it would not hold: {str(error).replace(str(out), str(folder))}"
        ) from None


def _copy_database(source: Path, target: Path) -> None:
    """One state of the database, whole in one file, whoever writes it meanwhile."""
    if not source.exists():
        return
    _write(target, b"")
    try:
        with (
            contextlib.closing(
                sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, timeout=30)
            ) as old,
            contextlib.closing(sqlite3.connect(target)) as new,
        ):
            old.backup(new)
    except sqlite3.Error as error:
        raise NodeError(
            f"{source} cannot be copied ({type(error).__name__}): see to the disk, then try again"
        ) from None
    _sync(target)


def _copy_file(source: Path, target: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        _write(target, source.read_bytes())


def _write(path: Path, content: bytes) -> None:
    """A new file for this user alone, on the disk."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
