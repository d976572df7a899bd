"""`python -m experiments.release OUT`: what an agency's IT needs to install one release without a network, and check it.

    OUT/fedrisk-VERSION-py3-none-any.whl     the wheel
    OUT/requirements.txt                     every package of a node, pinned and with its hashes
    OUT/wheelhouse/                          their wheels: pip install --no-index --find-links wheelhouse ...
    OUT/fedrisk-VERSION.cdx.json             the bill of materials (SBOM, CycloneDX)
    OUT/fedrisk-VERSION.json, .json.sig      the manifest (`clients.desk.release`) and its Ed25519 signature

The key file holds 32 bytes, mode 0600, and must lie outside the repository; it is made where there is none. With
--no-wheelhouse nothing is downloaded, and requirements.txt has no hashes: for a test.
"""

import argparse
import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from clients.desk import release
from clients.keys import write_secret
from federation import installed

ROOT = Path(__file__).resolve().parent.parent
EXTRA = "node"


class BuildError(RuntimeError):
    """A release that cannot be made: one sentence."""


def build(out: Path, key: Path, *, wheelhouse: bool) -> Path:
    """Make the release in the empty folder `out`; returns its manifest's path. `BuildError` says why it cannot be."""
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise BuildError(f"{out} is not empty: a release is made in a new folder")
    signing = signing_key(key)
    wheel = build_wheel(out)
    version, code = wheel.name.split("-")[1], code_of(wheel)
    if code != installed.code_sha256():
        raise BuildError(
            "the wheel lacks files of the working tree, or has others: see tool.setuptools in pyproject.toml"
        )
    requirements = out / "requirements.txt"
    pins = [f"{name}=={at}" for name, at in sorted(closure("fedrisk", EXTRA).items())]
    requirements.write_text("\n".join(pins) + "\n")
    if wheelhouse:
        requirements.write_text("\n".join(hashed(download(out / "wheelhouse", requirements))) + "\n")
    sbom = bill_of_materials(out, requirements, version)
    manifest = out / f"fedrisk-{version}.json"
    facts = release.Manifest(
        version=version,
        code_sha256=code,
        wheel=wheel.name,
        wheel_sha256=sha256(wheel),
        sbom=sbom.name,
        sbom_sha256=sha256(sbom),
        requirements_sha256=sha256(requirements) if wheelhouse else None,
        created=datetime.now(UTC).replace(microsecond=0),
    )
    manifest.write_text(facts.model_dump_json(indent=2) + "\n")
    release.sign(manifest, signing)
    return manifest


def build_wheel(out: Path) -> Path:
    """The wheel of the working tree, by the setuptools that is installed here; the tree stays as it is."""
    with tempfile.TemporaryDirectory() as place:
        tree = Path(place) / "fedrisk"
        tree.mkdir()
        for name in (*installed.PACKAGES, "experiments", "conf"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, tree / name)
        _run(["-m", "build", "--wheel", "--no-isolation", "--outdir", str(out.resolve()), str(tree)])
    (wheel,) = out.glob("fedrisk-*.whl")
    return wheel


def code_of(wheel: Path) -> str:
    """What `federation.installed.code_sha256` will say where the wheel is installed."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive:
        names = (name for name in archive.namelist() if name.split("/")[0] in installed.PACKAGES)
        for name in sorted(name for name in names if Path(name).suffix in installed.SUFFIXES):
            digest.update(name.encode() + b"\0" + archive.read(name) + b"\0")
    return digest.hexdigest()


def closure(package: str, *extras: str) -> dict[str, str]:
    """Every package that `package` with `extras` needs, as installed here: name and version."""
    found: dict[str, str] = {}
    done: set[tuple[str, frozenset[str]]] = set()
    waiting = [(package, frozenset(extras))]
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in done:
            continue
        done.add((name, wanted))
        try:
            here = distribution(name)
        except PackageNotFoundError:
            raise BuildError(f"{name}, which a node needs, is not installed here: make setup") from None
        if name != package:
            found[name] = here.version.partition("+")[0]  # torch says 2.13.0+cpu
        waiting += list(_needs(here.requires or [], wanted))
    return found


def _needs(lines: Iterable[str], extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    for line in lines:
        need = Requirement(line)
        if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras or {""}):
            yield canonicalize_name(need.name), frozenset(need.extras)


def download(folder: Path, requirements: Path) -> list[Path]:
    """The wheels of `requirements`, for this Python and this kind of machine."""
    _run(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder),
          "--requirement", str(requirements)])  # fmt: skip
    return sorted(folder.glob("*.whl"))


def hashed(wheels: Iterable[Path]) -> list[str]:
    """Lines of a requirements.txt that pip installs under --require-hashes."""
    lines = []
    for wheel in wheels:
        name, version = wheel.name.split("-")[:2]
        lines.append(f"{canonicalize_name(name)}=={version} --hash=sha256:{sha256(wheel)}")
    return sorted(lines)


def bill_of_materials(out: Path, requirements: Path, version: str) -> Path:
    """The SBOM of a node, by CycloneDX's own tool, valid by its own schema."""
    path = out / f"fedrisk-{version}.cdx.json"
    _run(["-m", "cyclonedx_py", "requirements", str(requirements), "--pyproject", str(ROOT / "pyproject.toml"),
          "--output-reproducible", "--of", "JSON", "-o", str(path)])  # fmt: skip
    return path


def signing_key(path: Path) -> Ed25519PrivateKey:
    """The publisher's key, made where there is none."""
    if path.resolve().is_relative_to(ROOT):
        raise BuildError(f"{path} lies in the repository: keep the key where nobody can commit it")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_secret(path, os.urandom(32))
    if path.stat().st_mode & 0o077 or path.stat().st_size != 32:
        raise BuildError(f"{path} must hold the 32 bytes of a key for this user alone: chmod 600 {path}")
    return Ed25519PrivateKey.from_private_bytes(path.read_bytes())


def public_text(key: Ed25519PrivateKey) -> str:
    """As agencies write it into node.toml."""
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def sha256(path: Path) -> str:
    """Of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _run(arguments: list[str]) -> None:
    """Run a module of this Python; `BuildError` has its last word."""
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise BuildError(f"{' '.join(arguments[1:3])} failed: {said[-1]}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.release", description=__doc__.splitlines()[0]
    )
    parser.add_argument("out", type=Path, help="a new folder")
    default = Path.home() / ".config" / "fedrisk" / "release.key"
    parser.add_argument("--key", type=Path, default=default, help=f"the publisher's key file ({default})")
    parser.add_argument("--no-wheelhouse", action="store_true", help="download nothing")
    options = parser.parse_args()
    try:
        manifest = build(options.out, options.key, wheelhouse=not options.no_wheelhouse)
    except BuildError as error:
        raise SystemExit(f"release: {error}") from None
    print(f"manifest   {manifest}")
    print("agencies   copy it and its .sig into the node's folder, and write into node.toml:")
    print(f'           [release]\n           manifest = "{manifest.name}"')
    print(f'           key = "{public_text(signing_key(options.key))}"')


if __name__ == "__main__":
    main()
