"""`fedrisk-node init`: a node's folder, with keys that never leave it and a policy that permits nothing yet.

Nothing that is there is ever changed: a second `init` makes what is missing and says what was there.
"""

import base64
import contextlib
import hashlib
import json
import os
import ssl
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from pydantic import ValidationError

from clients import keys
from clients.desk.policy_template import POLICY
from clients.desk.setup_files import DATA, NO_SUPERLINK, NODE, SUPERLINK
from clients.folder import NodeError, NodeFile, read_node_file
from federation import installed
from federation.plan import sentences

WHAT = {
    "node.toml": "who this agency is",
    "policy.toml": "what it permits; as init makes it, nothing",
    "data.toml": "where its records are",
    "contract.yaml": "the contract of all agencies",
    "ca.crt": "the coordinator's CA",
    "node.key": "signs requests to the coordinator; never leaves",
    "node.pub": "its public half",
    "split.key": "deals people into train, tune and test; never leaves",
    "signing.key": "signs for the other agencies; never leaves",
    "log": "what happened",
}


@dataclass(frozen=True)
class Wanted:
    """What a person asked for. `contract` and `certificate` are files to copy."""

    name: str | None = None
    kind: str | None = None
    public_size: int | None = None
    superlink: str | None = None
    certificate: Path | None = None
    contract: Path | None = None


@dataclass(frozen=True)
class Made:
    """A folder as it is now: by file, whether it was "made" or was "there"; what others need; what is missing."""

    folder: str
    name: str
    files: dict[str, str]
    public_key: str
    fingerprint: str
    peer: str
    todo: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def init(folder: Path, wanted: Wanted) -> Made:
    """Make what is missing in `folder`. `NodeError` where something does not fit, and then nothing is made."""
    name = _name(folder, wanted)
    copies = {"contract.yaml": _copied(wanted.contract, "--contract"), "ca.crt": _ca(wanted.certificate)}
    there = {each for each in WHAT if (folder / each).exists()}
    texts = _texts(wanted)
    if "node.toml" in there and "table" in _read(folder / "node.toml"):
        del texts["data.toml"]  # node.toml says where the records are
    _make_folder(folder)
    for each, content in {**texts, **copies}.items():
        if content is not None:
            _write(folder / each, content)
    keys.make_node_key(folder)
    keys.secret(folder / "split.key")
    peer = f'{name} = "{keys.public_text(folder)}"'
    (folder / "log").mkdir(mode=0o700, exist_ok=True)
    public = (folder / "node.pub").read_text().strip()
    files = {each: "there" if each in there else "made" for each in WHAT if (folder / each).exists()}
    return Made(str(folder), name, files, public, fingerprint(public), peer, _todo(folder))


def fingerprint(public: str) -> str:
    """As `ssh-keygen -l` shows it: SHA-256 of an OpenSSH public key, base64."""
    digest = hashlib.sha256(base64.b64decode(public.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _name(folder: Path, wanted: Wanted) -> str:
    """The agency's name: of the folder's node.toml, else the one that is wanted, checked."""
    if (folder / "node.toml").exists():
        return _known(folder, wanted)
    if wanted.name is None:
        raise NodeError(
            f"{folder} has no node.toml yet: say --name NAME, the agency's name in the federation"
        )
    values: dict[str, Any] = {"name": wanted.name, "kind": wanted.kind, "contract": "contract.yaml"}
    values |= {"public_size": 1 if wanted.public_size is None else wanted.public_size, "table": "people.csv"}
    if wanted.superlink is not None:
        values["superlink"] = {"address": wanted.superlink}
    elif wanted.certificate is not None:
        raise NodeError("--certificate belongs to --superlink HOST:PORT: say both")
    try:
        return NodeFile.model_validate(values).name
    except ValidationError as error:
        said = [line.partition(" ") for line in sentences(error)]  # a key, and what is wrong with it
        raise NodeError("\n".join(f"--{key.replace('_', '-')} {rule}" for key, _, rule in said)) from None


def _known(folder: Path, wanted: Wanted) -> str:
    """The name in a node.toml that is there, finished or not; what is wanted must not contradict it."""
    path = folder / "node.toml"
    there = _read(path)
    superlink = there.get("superlink")
    there["superlink"] = superlink.get("address") if isinstance(superlink, dict) else None
    for key in ("name", "kind", "public_size", "superlink"):
        asked = getattr(wanted, key)
        if asked is not None and asked != there.get(key):
            raise NodeError(
                f"{path} is there already and has {key} = {there.get(key)!r} where --{key.replace('_', '-')} says "
                f"{asked!r}: edit the file, or make another folder"
            )
    return str(there.get("name", "?"))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError):
        raise NodeError(f"{path} is there already and is not TOML: mend it, or make another folder") from None


def _texts(wanted: Wanted) -> dict[str, str]:
    size = "# public_size = 3000   # how many people the agency publicly says it serves; never counted from records"
    if wanted.public_size is not None:
        size = size.removeprefix("# ").replace("3000", str(wanted.public_size))
    superlink = NO_SUPERLINK
    if wanted.superlink is not None:
        superlink = SUPERLINK.format(address=wanted.superlink)
        if wanted.certificate is None:
            superlink = superlink.replace("\ncertificate", "\n# certificate")
    kind = '# kind = "police"      # as in the contract\'s `kinds`; left out where it has none'
    node = NODE.format(
        name=wanted.name,
        kind=kind if wanted.kind is None else f"kind = {json.dumps(wanted.kind)}",
        public_size=size,
        superlink=superlink,
        version=installed.version(),
    )
    return {"node.toml": node, "policy.toml": POLICY, "data.toml": DATA}


def _copied(path: Path | None, option: str) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        raise NodeError(f"{option}: {path} is no text file that this user may read") from None


def _ca(path: Path | None) -> str | None:
    """The text of a CA's certificate, which must be one."""
    text = _copied(path, "--certificate")
    if text is None:
        return None
    try:
        x509.load_pem_x509_certificates(text.encode())
        ssl.create_default_context().load_verify_locations(cadata=text)
    except (ValueError, ssl.SSLError):
        raise NodeError(
            f"--certificate: {path} holds no certificate in PEM: ask the coordinator for ca.crt"
        ) from None
    return text


def _make_folder(folder: Path) -> None:
    """For this user alone; a folder that has something in it keeps its mode, which doctor looks at."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not any(folder.iterdir()):
            folder.chmod(0o700)
    except OSError as error:
        raise NodeError(f"{folder} cannot be a node's folder ({error.strerror})") from None


def _write(path: Path, content: str) -> None:
    """A new file; one that is there stays."""
    with contextlib.suppress(FileExistsError):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "w") as file:
            file.write(content)


def _todo(folder: Path) -> tuple[str, ...]:
    """What a person has to do next, as far as the folder shows it."""
    todo = []
    try:
        lacks_superlink = read_node_file(folder / "node.toml").superlink is None
    except NodeError as error:
        todo += [f"{line}: edit the file" for line in str(error).splitlines()]
        lacks_superlink = False
    if not (folder / "contract.yaml").exists():
        todo.append(f"put the agreed contract into {folder / 'contract.yaml'}")
    if lacks_superlink:
        todo.append("write [superlink] into node.toml: the coordinator sends its address and its ca.crt")
    todo.append("say in data.toml where the records are, and in policy.toml what you permit")
    todo.append(f"fedrisk-node doctor {folder}")
    return tuple(todo)
