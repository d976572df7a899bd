"""One safetensors file a round: weights, optimiser state, noised tables and the history so far.

It is written beside its name and moved there, so a killed run finds the last whole round. Everything
in it had already left the agencies; no record is here.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from federation.protocol import Weights


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or used: one sentence."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `round` rounds. `history` is JSON-clean."""

    round: int
    config_sha256: str
    weights: Weights
    optimiser: Mapping[str, np.ndarray] = field(default_factory=dict)
    tables: Mapping[str, np.ndarray] = field(default_factory=dict)
    history: Mapping[str, Any] = field(default_factory=dict)


def write(checkpoint: Checkpoint, folder: Path) -> Path:
    """Write `folder/round-NNNNN.safetensors` durably and drop the one two rounds before."""
    arrays = {f"weights/{name}": value for name, value in checkpoint.weights.items()}
    arrays |= {f"optimiser/{name}": value for name, value in checkpoint.optimiser.items()}
    arrays |= {f"tables/{name}": value for name, value in checkpoint.tables.items()}
    facts = {
        "round": checkpoint.round,
        "config_sha256": checkpoint.config_sha256,
        "history": checkpoint.history,
    }
    path = folder / f"round-{checkpoint.round:05d}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".writing")
        with beside.open("wb") as file:
            file.write(
                save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, {"fedrisk": json.dumps(facts)})
            )
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        (folder / f"round-{checkpoint.round - 2:05d}.safetensors").unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint of round {checkpoint.round} cannot be written to {folder} ({error.strerror}): free "
            f"space there or permit it, then resume the run; the rounds before it are kept"
        ) from None
    return path


def read_last(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint in `folder`, or None; `CheckpointError` when it does not decode."""
    paths = sorted(folder.glob("round-*.safetensors"))
    if not paths:
        return None
    try:
        with safe_open(paths[-1], framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            facts = json.loads(file.metadata()["fedrisk"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{paths[-1]} is not a whole checkpoint: remove it to resume from the one before"
        ) from None

    def under(prefix: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}

    return Checkpoint(
        round=facts["round"],
        config_sha256=facts["config_sha256"],
        weights=under("weights/"),
        optimiser=under("optimiser/"),
        tables=under("tables/"),
        history=facts["history"],
    )


def write_model(weights: Weights, facts: Mapping[str, str], path: Path) -> Path:
    """The final weights with the facts to use them (model, contract, run), all strings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        save({name: np.ascontiguousarray(value) for name, value in weights.items()}, dict(facts))
    )
    return path
