"""Stopping a node, for the moment or for good.

Who leaves is named, and signs: `left.json` has who, when and why, with the node key's signature, so a coordinator that
enrolled the key can keep it as evidence (`fedrisk coordinator revoke NAME --statement left.json`). A node that has left answers
LEFT to whoever asks until it stops, and does not start again while the file is there. What it released stays released;
its ledger and its log stay in the folder.
"""

import base64
import contextlib
import getpass
import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from clients import service
from clients.folder import NodeError, read_node_file
from clients.journal import Journal
from clients.journal_lines import Left
from clients.keys import KeyFileError, node_key

LEFT = "left.json"
SECRETS = ("node.key", "signing.key", "split.key")
SECRET_FOLDERS = ("masks", "cohorts", "draws")


@dataclass(frozen=True)
class How:
    """How to stop. `destroy_keys` is to leave as well; who leaves says who and why."""

    now: bool = False
    leave: bool = False
    destroy_keys: bool = False
    by: str = ""
    why: str = ""


def stop(folder: Path, how: How, seconds: float) -> str:
    """Do it, and say what was done. `NodeError` where it cannot be."""
    facts = read_node_file(folder / "node.toml")
    leaves = how.leave or how.destroy_keys
    if leaves and not (how.by.strip() and how.why.strip()):
        raise NodeError('to leave, say who decides and why: --by "NAME" --why "REASON"')
    if leaves:
        _write_statement(folder, facts.name, how)
    was_at_work = service.stop(folder, _signal(how), seconds)
    lines = [f"{facts.name}: {'stopped' if was_at_work else 'was not at work'}"]
    if leaves:
        lines.append(
            f"{facts.name} has left the federation. Send {folder / LEFT} to the coordinator, who keeps it as evidence"
        )
    if how.destroy_keys:
        gone = _destroy(folder)
        lines.append(f"destroyed: {', '.join(gone) or 'nothing, it was gone already'}")
    if leaves:
        lines.append(
            "kept: ledger.db and log/ (what left this agency stays accountable), node.toml, policy.toml"
        )
    return "\n".join(lines)


def has_left(folder: Path) -> str | None:
    """When the agency left, if it has."""
    try:
        return str(json.loads((folder / LEFT).read_text())["at"])
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError, ValueError):
        return "a day that is not known"


def verify_statement(statement: dict[str, Any], key: ec.EllipticCurvePublicKey) -> bool:
    """Whether `key` signed the statement."""
    try:
        signature = base64.b64decode(str(statement["signature"]), validate=True)
        key.verify(signature, _to_sign(statement), ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, KeyError, ValueError):
        return False
    return True


def _signal(how: How) -> service.Signal:
    if how.now:
        return "now"
    return "leave" if how.leave or how.destroy_keys else "soon"


def _write_statement(folder: Path, name: str, how: How) -> None:
    """Once: a second leave changes neither who left nor when."""
    if has_left(folder) is not None:
        return
    at = datetime.now(UTC).isoformat(timespec="seconds")
    statement = {"agency": name, "at": at, "by": how.by.strip(), "login": _login(), "why": how.why.strip()}
    with contextlib.suppress(KeyFileError):  # no key, no signature: leaving must always be possible
        key = node_key(folder)
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        statement["key"] = public.decode()
        signature = key.sign(_to_sign(statement), ec.ECDSA(hashes.SHA256()))
        statement["signature"] = base64.b64encode(signature).decode()
    beside = folder / f"{LEFT}.writing"
    beside.write_text(json.dumps(statement, indent=1))
    beside.replace(folder / LEFT)
    Journal(folder).write(Left(by=how.by.strip()))


def _to_sign(statement: dict[str, Any]) -> bytes:
    signed = {key: value for key, value in statement.items() if key != "signature"}
    return b"fedrisk leaves\n" + json.dumps(signed, sort_keys=True).encode()


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _destroy(folder: Path) -> list[str]:
    """Write over each secret and remove it; what a disk keeps of old blocks is the disk's encryption's business."""
    paths = [folder / name for name in SECRETS]
    paths += [path for name in SECRET_FOLDERS for path in sorted((folder / name).glob("*")) if path.is_file()]
    gone = []
    for path in paths:
        if path.is_file():
            with path.open("r+b") as file:
                file.write(secrets.token_bytes(path.stat().st_size))
                file.flush()
            path.unlink()
            gone.append(path.relative_to(folder).as_posix())
    return gone
