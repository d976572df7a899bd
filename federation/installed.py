"""The release that this machine has installed, and the bundle by which a run names it.

Flower starts a run from a bundle (a "FAB"), which it hands out by its hash. Ours is one pyproject.toml without any
code: it says which release is wanted, and each machine runs the fedrisk that its own people installed. The bundle's
bytes are the same on every machine that has this release (nothing in it is compressed, dated or reformatted), so a
node compares a run's `fab_hash` with its own `fab_hash()` and never has to ask for a bundle.
"""

import functools
import hashlib
import io
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

PACKAGES = ("models", "federation", "clients")  # what learns, agrees and guards
SUFFIXES = (".py", ".j2", ".yaml")
SERVER_APP, CLIENT_APP = "federation.server.app:app", "clients.app:app"
RUN_CONFIG = (
    "experiment",
    "run-id",
    "stats",
    "cohort",
    "retest",
    "map",
)  # all that a run may say beside the bundle
PYPROJECT = """\
[project]
name = "fedrisk"
version = "{version}"
description = "Runs the installed fedrisk."
license = "Apache-2.0"

[tool.flwr.app]
publisher = "fedrisk"

[tool.flwr.app.components]
serverapp = "{server}"
clientapp = "{client}"

[tool.flwr.app.config]
{config}

[tool.fedrisk]
code-sha256 = "{code}"
"""


def version() -> str:
    """The installed version of fedrisk, or `not installed` where it runs from a folder."""
    try:
        return version_of("fedrisk")
    except PackageNotFoundError:
        return "not installed"


@functools.cache
def code_sha256() -> str:
    """SHA-256 over paths and contents of the installed Python files, templates and lists of `PACKAGES`.

    In the order of their paths, each as path, NUL, content, NUL; read once for the life of the process.
    """
    root = Path(__file__).resolve().parent.parent
    found = {
        path.relative_to(root).as_posix(): path
        for package in PACKAGES
        for path in (root / package).rglob("*")
        if path.suffix in SUFFIXES and path.is_file()
    }
    digest = hashlib.sha256()
    for name in sorted(found):
        digest.update(name.encode() + b"\0" + found[name].read_bytes() + b"\0")
    return digest.hexdigest()


def pyproject() -> str:
    """The bundle's one file. It names no dependencies: nobody may fetch any."""
    config = "\n".join(f'{key} = ""' for key in RUN_CONFIG)
    return PYPROJECT.format(
        version=version(), server=SERVER_APP, client=CLIENT_APP, config=config, code=code_sha256()
    )


def bundle() -> dict[str, Any]:
    """The bundle's pyproject.toml as values."""
    return tomllib.loads(pyproject())


@functools.cache
def fab() -> bytes:
    """The bundle as Flower stores and hands it out: a zip of pyproject.toml and the list of its hashes."""
    content = pyproject().encode()
    listing = f"pyproject.toml,{hashlib.sha256(content).hexdigest()},{len(content) * 8}"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (("pyproject.toml", content), (".info/CONTENT", listing.encode())):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o600 << 16
            archive.writestr(entry, data)
    return file.getvalue()


def fab_hash() -> str:
    """SHA-256 of `fab()`: the `fab_hash` that Flower says of a run of this release."""
    return hashlib.sha256(fab()).hexdigest()
