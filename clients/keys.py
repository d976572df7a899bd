"""A node's secrets: files of 32 random bytes, readable by their owner alone, made at first use.

`split.key` deals people into train, tune and test. `signing.key` is the node's Ed25519 key: its peers pin the
public half in their own `node.toml`, and nothing that the coordinator says can change a pin.

    python -m clients.keys FOLDER      prints the line that the other agencies put into their node.toml
"""

import base64
import contextlib
import functools
import os
import secrets
import sys
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from federation.plan import Reason, Refused

KEY_BYTES = 32


class KeyFileError(ValueError):
    """A secret or a pin that cannot be used: one sentence, for the person at this machine."""


@functools.cache
def secret(path: Path) -> bytes:
    """The secret in `path`, made if there is none.

    It appears whole: two processes that start at once, or one that is killed, leave no half of a key.
    """
    if not path.exists():
        write_secret(path, secrets.token_bytes(KEY_BYTES))
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise KeyFileError(
            f"{path} must hold {KEY_BYTES} bytes: put the node's own key back, or remove the file"
        )
    return key


def write_secret(path: Path, key: bytes) -> None:
    """Put `key` into the new file `path`, whole and mode 0600; a file that is there already stays."""
    whole = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    whole.touch(mode=0o600)
    whole.write_bytes(key)
    with contextlib.suppress(FileExistsError):  # another process was first: its key counts
        os.link(whole, path)
    whole.unlink()


def make_node_key(folder: Path) -> None:
    """Make `node.key` (ECDSA P-384, PEM, mode 0600) and `node.pub` (one line, as OpenSSH writes it), once.

    The key signs this node's requests to the SuperLink, and never leaves the folder.
    """
    if not (folder / "node.key").exists():
        key = ec.generate_private_key(ec.SECP384R1())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_secret(folder / "node.key", pem)
    public = node_key(folder).public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    (folder / "node.pub").write_bytes(public + b"\n")


def node_key(folder: Path) -> ec.EllipticCurvePrivateKey:
    """The key that `make_node_key` made."""
    path = folder / "node.key"
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except FileNotFoundError:
        raise KeyFileError(f"{path} is missing: `fedrisk-node init` makes it") from None
    except (OSError, ValueError, TypeError):
        raise KeyFileError(f"{path} is no private key in PEM that this user may read") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise KeyFileError(f"{path} must be an ECDSA P-384 key, as `fedrisk-node init` makes it")
    return key


def signing_key(folder: Path) -> Ed25519PrivateKey:
    """The node's signing key."""
    return Ed25519PrivateKey.from_private_bytes(secret(folder / "signing.key"))


def public_text(folder: Path) -> str:
    """The public half of the node's signing key as peers write it into `node.toml`: base64 of 32 bytes."""
    return base64.b64encode(signing_key(folder).public_key().public_bytes_raw()).decode()


def read_pin(agency: str, text: str) -> bytes:
    """The 32 bytes of a peer's public key; `KeyFileError` where the text is not one."""
    try:
        raw = base64.b64decode(text, validate=True)
        Ed25519PublicKey.from_public_bytes(raw)
    except ValueError:
        raise KeyFileError(
            f"node.toml: peers.{agency} must be 32 bytes in base64, as `python -m clients.keys` prints them"
        ) from None
    return raw


def must_be_pinned(names: Collection[str], pins: Mapping[str, bytes]) -> None:
    """`Refused(MASKS)` where some of `names` have no public key here: their messages could be anybody's."""
    if missing := sorted(set(names) - set(pins)):
        raise Refused(
            Reason.MASKS,
            f"peers: node.toml has no public key of {', '.join(missing)}: ask them for the line that "
            "`python -m clients.keys FOLDER` prints, over a channel that the coordinator does not run",
        )


def main() -> None:
    """Print a node's name and public key as a line of TOML."""
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "node.toml").is_file():
        raise SystemExit("usage: python -m clients.keys FOLDER      a node's folder, with its node.toml")
    folder = Path(sys.argv[1])
    name = tomllib.loads((folder / "node.toml").read_text()).get("name", "?")
    print(f'{name} = "{public_text(folder)}"')


if __name__ == "__main__":
    main()
