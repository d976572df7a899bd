"""Who may connect: an agency's public key is enrolled at the running SuperLink, and written to `agencies.toml`."""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
    load_ssh_public_key,
)

from experiments.coordinator.folder import CoordinatorError, Enrolled, Folder, checked_name

if TYPE_CHECKING:
    from flwr.supercore.control import ControlHttpClient

KEY_BYTES_MOST = 10_000


@dataclass(frozen=True)
class Seen:
    """An agency as `agencies` lists it; `status` is online, offline, never seen, revoked, unknown or not running."""

    agency: Enrolled
    status: str
    last_seen: datetime | None


def read_key(path: Path) -> ec.EllipticCurvePublicKey:
    """An agency's `node.pub`: ECDSA P-384, as OpenSSH or PEM writes a public key."""
    try:
        text = path.read_bytes()[:KEY_BYTES_MOST]
    except OSError as error:
        raise CoordinatorError(f"{path} cannot be read: {error.strerror}") from None
    if b"PRIVATE KEY" in text:
        raise CoordinatorError(
            f"{path} is a private key, which must never leave its agency: destroy it and ask for a new node.pub"
        )
    try:
        key = load_pem_public_key(text) if text.startswith(b"-----") else load_ssh_public_key(text)
    except (ValueError, UnsupportedAlgorithm):
        raise CoordinatorError(
            f"{path} is no public key (OpenSSH or PEM): ask for the agency's node.pub"
        ) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise CoordinatorError(f"{path} must be an ECDSA P-384 key, as `fedrisk-node init` makes it")
    return key


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """`SHA256:` and base64, as `ssh-keygen -lf node.pub` prints it: the agency reads it out on the telephone."""
    blob = base64.b64decode(key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def enrol(folder: Folder, keys: Sequence[tuple[str, Path]]) -> list[Enrolled]:
    """Let these agencies connect. All are checked before the first is enrolled."""
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    from experiments.coordinator import control

    read = [(checked_name(name), read_key(path)) for name, path in keys]
    with _changing(folder), _running(folder) as client:
        known = {node.public_key: node for node in control.nodes(client)}
        agencies = list(folder.agencies())
        for name, key in read:
            _refuse_taken(agencies, name, fingerprint(key))
            agencies.append(Enrolled(name=name, node_id=0, fingerprint=fingerprint(key), enrolled=_now()))
            node = known.get(public_key_to_bytes(key))
            if node is not None and node.status == control.GONE:
                raise CoordinatorError(f"{name}: this key was revoked at the SuperLink: ask for a new one")
        agencies = list(folder.agencies())
        added = []
        for name, key in read:
            public = public_key_to_bytes(key)
            node = known.get(public)  # registered, but agencies.toml was not written: a stop in between
            node_id = control.register(client, public, name) if node is None else node.node_id
            added.append(Enrolled(name=name, node_id=node_id, fingerprint=fingerprint(key), enrolled=_now()))
            folder.keep_agencies([*agencies, *added])
        return added


def enrolled(folder: Folder, name: str) -> Enrolled:
    """The agency of this name that may connect; `CoordinatorError` where there is none."""
    agencies = folder.agencies()
    found = [agency for agency in agencies if agency.name == name and agency.revoked is None]
    if not found:
        known = ", ".join(a.name for a in agencies if a.revoked is None) or "none"
        raise CoordinatorError(f"no agency {name!r} is enrolled; enrolled are: {known}")
    return found[0]


def revoke(folder: Folder, name: str) -> Enrolled:
    """Refuse this agency from now on; what it released stays released."""
    from experiments.coordinator import control

    with _changing(folder), _running(folder) as client:
        agencies, found = folder.agencies(), [enrolled(folder, name)]
        if any(n.node_id == found[0].node_id and n.status != control.GONE for n in control.nodes(client)):
            control.unregister(client, found[0].node_id)
        gone = found[0].but(revoked=_now())
        folder.keep_agencies([gone if agency == found[0] else agency for agency in agencies])
        return gone


def seen(folder: Folder) -> list[Seen]:
    """Every agency in `agencies.toml`, with what the SuperLink knows of it."""
    from experiments.coordinator import control

    agencies = folder.agencies()
    if folder.running() is None or not folder.connection.is_file():
        return [Seen(a, "not running" if a.revoked is None else "revoked", None) for a in agencies]
    with _running(folder) as client:
        nodes = {node.node_id: node for node in control.nodes(client)}
    words = {"registered": "never seen", control.GONE: "revoked"}
    found = []
    for agency in agencies:
        node = nodes.get(agency.node_id)
        status = "unknown" if node is None else words.get(node.status, node.status)
        status = "revoked" if agency.revoked is not None else status
        found.append(Seen(agency, status, None if node is None else node.last_seen))
    return found


def _refuse_taken(agencies: Sequence[Enrolled], name: str, key: str) -> None:
    for agency in agencies:
        if agency.fingerprint == key:
            what = "was revoked and stays so" if agency.revoked else "is enrolled"
            raise CoordinatorError(
                f"{name}: key {key} {what} as {agency.name!r}: each agency needs a key of its own"
            )
        if agency.name == name and agency.revoked is None:
            raise CoordinatorError(
                f"{name}: the name is taken by key {agency.fingerprint}: `fedrisk coordinator revoke {name}` first"
            )


@contextmanager
def _changing(folder: Folder) -> Iterator[None]:
    folder.settings()
    with folder.locked("agencies.lock", "another enrol or revoke is at work (process {process}): try again"):
        yield


@contextmanager
def _running(folder: Folder) -> Iterator["ControlHttpClient"]:
    from experiments.coordinator import control

    try:
        with control.control(control.find_connection(str(folder.path))) as client:
            yield client
    except control.ControlError as error:
        raise CoordinatorError(str(error)) from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
