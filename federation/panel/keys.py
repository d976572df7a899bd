"""A member's Ed25519 key: a PEM file (PKCS #8, mode 0600) that never leaves its owner, with or without a passphrase."""

import base64
from collections.abc import Callable, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from federation.decision import Panel
from federation.panel.files import PanelError, write_new

Ask = Callable[[str], str]  # a question -> what a person types, unseen


def make_key(path: Path, passphrase: str | None) -> Ed25519PrivateKey:
    """A new key in the new file `path`; `PanelError` where there is one already."""
    key = Ed25519PrivateKey.generate()
    closed = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase.encode())
    write_new(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, closed), mode=0o600)
    return key


def public_text(key: Ed25519PrivateKey) -> str:
    """The public half as panel.toml and node.toml have it: base64 of 32 bytes."""
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def read_key(path: Path, ask: Ask) -> Ed25519PrivateKey:
    """The key in `path`; its passphrase is asked for where it has one."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PanelError(
            f"the key {path} cannot be read ({error.strerror}): name the file with --key NAME=FILE"
        ) from None
    closed = b"ENCRYPTED" in content
    try:
        key = load_pem_private_key(content, ask(f"Passphrase of {path}").encode() if closed else None)
    except (ValueError, TypeError):
        why = "the passphrase is wrong, or it is" if closed else "it is"
        raise PanelError(f"the key {path} cannot be opened: {why} no private key in PEM") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise PanelError(f"{path} is another kind of key: it must be one that `fedrisk-panel key` made")
    return key


def members_keys(named: Mapping[str, Path], panel: Panel, ask: Ask) -> dict[str, Ed25519PrivateKey]:
    """Member -> key. `PanelError` where somebody is no member, or a key is not the one in panel.toml."""
    for name in named:
        if name not in panel.members:
            raise PanelError(f"{name!r} is not a member of {panel.name!r}: {', '.join(panel.members)} are")
    found = {name: read_key(path, ask) for name, path in named.items()}
    for name, key in found.items():
        if public_text(key) != panel.members[name]:
            raise PanelError(
                f"{named[name]} is not {name}'s key: its public half is {public_text(key)}, and panel.toml has "
                f"{panel.members[name]}; sign with the key that the agencies have pinned"
            )
    return found
