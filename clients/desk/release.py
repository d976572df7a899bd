"""A release that agencies agreed on: its signed manifest, and whether the installed code is that release.

The publisher signs the bytes of `fedrisk-VERSION.json` with an Ed25519 key (`python -m experiments.release` makes both);
the signature is beside it, in base64, as `fedrisk-VERSION.json.sig`. An agency writes the publisher's public key into
its own node.toml. What it proves: that the Python files and templates of the installed packages are those that were
signed. What it cannot: that the program which says so was not changed to say so. Whoever must know that compares the
wheel's SHA-256 with the manifest on another machine, before installing it.
"""

import base64
from pathlib import Path
from typing import Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import AwareDatetime, ValidationError

from clients.folder import ReleaseFile
from federation import installed
from federation.plan import Agreed, Sha256, sentences


class ReleaseError(ValueError):
    """A release that does not check: one sentence that says what, and what to do."""


class Manifest(Agreed):
    """What a release consists of. `requirements_sha256` is of the hash-pinned requirements of the wheelhouse."""

    name: Literal["fedrisk"] = "fedrisk"
    version: str
    code_sha256: Sha256
    wheel: str
    wheel_sha256: Sha256
    sbom: str
    sbom_sha256: Sha256
    requirements_sha256: Sha256 | None = None
    created: AwareDatetime


def sign(manifest: Path, key: Ed25519PrivateKey) -> Path:
    """Write the signature of the manifest's bytes beside it."""
    path = _signature(manifest)
    path.write_text(base64.b64encode(key.sign(manifest.read_bytes())).decode() + "\n")
    return path


def read_manifest(path: Path, key: str) -> Manifest:
    """The manifest in `path`, if `key` (base64 of 32 bytes) signed it; `ReleaseError` otherwise."""
    content, signature = _bytes(path), _bytes(_signature(path)).strip()
    try:
        public = Ed25519PublicKey.from_public_bytes(base64.b64decode(key, validate=True))
    except ValueError:
        raise ReleaseError(
            "node.toml: release.key must be an Ed25519 public key, 32 bytes in base64"
        ) from None
    try:
        public.verify(base64.b64decode(signature, validate=True), content)
    except (InvalidSignature, ValueError):
        raise ReleaseError(
            f"{path.name} is not what the key in node.toml signed: do not use this release; ask its publisher for the "
            "manifest and for the key's fingerprint by another way"
        ) from None
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        raise ReleaseError(f"{path.name}: {sentences(error)[0]}") from None


def check_installed(folder: Path, release: ReleaseFile) -> Manifest:
    """The agreed release, where the installed fedrisk is that; `ReleaseError` otherwise."""
    manifest = read_manifest(folder / release.manifest, release.key)
    if manifest.version != installed.version():
        raise ReleaseError(
            f"fedrisk {installed.version()} is installed and {manifest.version} was agreed on: install {manifest.wheel}, "
            "or get the manifest of the installed release"
        )
    if manifest.code_sha256 != installed.code_sha256():
        raise ReleaseError(
            f"the installed code of fedrisk is not that of release {manifest.version}: a file was changed, added or "
            f"removed after it was installed; install {manifest.wheel} again, and find out who changed it"
        )
    return manifest


def _signature(manifest: Path) -> Path:
    return manifest.with_name(f"{manifest.name}.sig")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        raise ReleaseError(f"{path} cannot be read: it belongs to the release, beside the wheel") from None
