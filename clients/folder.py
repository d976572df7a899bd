"""The small files of a node's folder: node.toml, keeps.json and log/node.log."""

import ipaddress
import json
import logging
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from federation.decision import Panel
from federation.plan import Agreed, Slug, sentences
from federation.protocol import Head
from models.contract import Contract, ContractError


class NodeError(ValueError):
    """A node folder that cannot be used: one sentence, for the person at this machine."""


class SuperLinkFile(Agreed):
    """`[superlink]`: where the federation meets. `certificate`: the coordinator's CA (PEM), else the system's store.

    `insecure` leaves out TLS and is possible on this machine's loopback alone.
    """

    address: Annotated[str, Field(pattern=r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):\d{1,5}$")]
    certificate: str | None = None
    insecure: bool = False

    @model_validator(mode="after")
    def never_in_the_clear(self) -> Self:
        if self.insecure and not is_loopback(self.address):
            raise ValueError(
                f"insecure: {self.address} is not on this machine, and nothing crosses a network in the clear: remove it"
            )
        if self.insecure and self.certificate is not None:
            raise ValueError("insecure: there is no TLS to check a certificate with: remove one of the two")
        return self


class ReleaseFile(Agreed):
    """`[release]`: the release that was agreed on. `fedrisk-node doctor` compares the installed code with it.

    `manifest` is its signed JSON file (`clients.desk.release`), `key` the publisher's Ed25519 public key in base64,
    as it came to this agency by another way than the manifest.
    """

    manifest: str
    key: Annotated[str, Field(min_length=44, max_length=44)]


class WorkerRules(Agreed):
    """`[worker]`: a new process after `orders` orders, or when it holds more than `memory_mb` (MB, resident)."""

    orders: Annotated[int, Field(ge=1)] = 1000
    memory_mb: Annotated[int, Field(ge=256)] = 8192


class NodeFile(Agreed):
    """`node.toml`: who this agency is, where its contract is, and its declared public size.

    `table` is the short form of a data.toml (`clients.records.sources.find_source`), for a simulation or a try-out.

    `dataset` names whose records the ledger is about: it outlives tables and experiments. `peers` are the
    other agencies' public keys (`python -m clients.keys`), needed for shared noise alone. `panel` is the ethics panel
    whose signatures count here; without it no approval and no registration can be verified.
    """

    name: Slug
    kind: str | None = None
    dataset: Slug = "people"
    table: str | None = None
    contract: str
    public_size: Annotated[int, Field(ge=1)]
    peers: dict[Slug, str] = Field(default_factory=dict)
    superlink: SuperLinkFile | None = None
    worker: WorkerRules = WorkerRules()
    release: ReleaseFile | None = None
    panel: Panel | None = None


def is_loopback(address: str) -> bool:
    """Whether `host:port` is this machine itself: 127.0.0.0/8, ::1 or localhost."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_node_file(path: Path) -> NodeFile:
    """`NodeError` has every problem, one to a line."""
    try:
        return NodeFile.model_validate(tomllib.loads(path.read_text()))
    except (OSError, UnicodeDecodeError):
        raise NodeError(f"{path} cannot be read: is this a node's folder?") from None
    except tomllib.TOMLDecodeError as error:
        raise NodeError(f"{path} is not TOML: {error}") from None
    except ValidationError as error:
        raise NodeError("\n".join(f"{path.name}: {line}" for line in sentences(error))) from None


def read_contract(folder: Path, name: str) -> Contract:
    """The contract that node.toml names `name`. `NodeError` has every problem."""
    try:
        return Contract.from_dict(yaml.safe_load((folder / name).read_text()))
    except (OSError, UnicodeDecodeError):
        raise NodeError(f"node.toml: the contract file {name} cannot be read") from None
    except (ContractError, yaml.YAMLError) as error:
        raise NodeError(f"the contract {name} is not usable: {error}") from None


def read_keeps(folder: Path) -> dict[str, Head]:
    """The newest heads of a neighbour's ledger that this node has seen; none where the file does not decode."""
    try:
        kept = json.loads((folder / "keeps.json").read_text())
        return {str(name): Head(int(seq), str(head)) for name, (seq, head) in kept.items()}
    except (OSError, AttributeError, TypeError, ValueError):
        return {}


def write_keeps(folder: Path, keeps: Mapping[str, Head]) -> None:
    """Whole or not at all."""
    path = folder / "keeps.json"
    beside = path.with_suffix(".writing")
    beside.write_text(json.dumps(dict(keeps)))
    beside.replace(path)


def file_log(folder: Path, name: str) -> logging.Logger:
    """The log of a node, opened at its first line: it never leaves the folder."""
    log = logging.getLogger(f"fedrisk.node.{folder}")
    log.setLevel(logging.INFO)
    log.propagate = False
    if not log.handlers:
        (folder / "log").mkdir(mode=0o700, exist_ok=True)
        handler = logging.FileHandler(folder / "log" / "node.log", delay=True)
        handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {name} %(message)s"))
        log.addHandler(handler)
    return log
