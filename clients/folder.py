"""The small files of a node's folder: node.toml, keeps.json and node.log."""

import json
import logging
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from federation.plan import Agreed, Slug, sentences
from federation.protocol import Head


class NodeError(ValueError):
    """A node folder that cannot be used: one sentence, for the person at this machine."""


class NodeFile(Agreed):
    """`node.toml`: who this agency is, where its table and contract are, and its declared public size.

    `dataset` names whose records the ledger is about: it outlives tables and experiments. `peers` are the
    other agencies' public keys (`python -m clients.keys`), needed for shared noise alone.
    """

    name: Slug
    kind: str | None = None
    dataset: Slug = "people"
    table: str
    contract: str
    public_size: Annotated[int, Field(ge=1)]
    peers: dict[Slug, str] = Field(default_factory=dict)


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
        handler = logging.FileHandler(folder / "node.log", delay=True)
        handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {name} %(message)s"))
        log.addHandler(handler)
    return log
