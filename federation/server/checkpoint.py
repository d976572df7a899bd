"""One safetensors file a round: weights, optimiser state, noised tables and the history so far.

It is written beside its name and moved there, so a killed run finds the last whole round. Everything
in it had already left the agencies; no record is here.

The history of every `CHAPTER` rounds is written once, to a file of its own: what a round writes does not
grow with the rounds before it.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from federation.protocol import Weights

CHAPTER = 20  # rounds


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
    *chapters, open_one = _chapters(checkpoint.history)
    facts = {
        "round": checkpoint.round,
        "config_sha256": checkpoint.config_sha256,
        "chapters": len(chapters),
        "history": {**checkpoint.history, **open_one},
    }
    content = save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, {"fedrisk": json.dumps(facts)})
    path = folder / f"round-{checkpoint.round:05d}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, chapter in enumerate(chapters, start=1):
            just_ended = number * CHAPTER == checkpoint.round
            if just_ended or not _chapter(folder, number).exists():
                _write_whole(json.dumps(chapter).encode(), _chapter(folder, number))
        _write_whole(content, path)
        (folder / f"round-{checkpoint.round - 2:05d}.safetensors").unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint of round {checkpoint.round} cannot be written to {folder} ({error.strerror}): free "
            f"space there or permit it, then resume the run; the rounds before it are kept"
        ) from None
    return path


def note_order(number: int, kinds: Sequence[str], agencies: Sequence[str], folder: Path) -> None:
    """Write durably, before it is sent, what round `number` asks of whom: agencies charge it even if we die."""
    line = json.dumps({"round": number, "kinds": list(kinds), "agencies": list(agencies)})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "orders.jsonl").open("a") as file:
            file.write(f"\n{line}\n")  # whatever a crash left unfinished above stays on a line of its own
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CheckpointError(
            f"the order of round {number} cannot be noted in {folder} ({error.strerror}), so it was not sent: free "
            f"space there or permit it, then resume the run; the rounds before it are kept"
        ) from None


def orders_after(number: int, folder: Path) -> list[tuple[list[str], list[str]]]:
    """(kinds, agencies) of the noted orders of rounds after `number`: sent, and in no checkpoint."""
    path = folder / "orders.jsonl"
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            noted = json.loads(line)
        except ValueError:
            continue  # half a line: its order was never sent
        if noted["round"] > number:
            found.append((noted["kinds"], noted["agencies"]))
    return found


def read_last(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint in `folder`, or None; `CheckpointError` when it does not decode."""
    paths = sorted(folder.glob("round-*.safetensors"))
    if not paths:
        return None
    try:
        with safe_open(paths[-1], framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            facts = json.loads(file.metadata()["fedrisk"])
        history = facts["history"]
        for number in range(facts["chapters"], 0, -1):
            chapter = json.loads(_chapter(folder, number).read_text())
            history |= {key: chapter[key] + history[key] for key in chapter}
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
        history=history,
    )


def _chapters(history: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lists of `history` by chapter; the last one is not ended yet. A checkpoint's record belongs to
    the round after the one that it measures, in which its tables came."""
    rounds, measured = history.get("rounds", []), history.get("checkpoints", [])
    ended = len(rounds) // CHAPTER
    if not ended:
        return [{}]
    return [
        {
            "rounds": rounds[start : start + CHAPTER],
            "checkpoints": [record for record in measured if start <= record["round"] < start + CHAPTER],
        }
        for start in range(0, (ended + 1) * CHAPTER, CHAPTER)
    ]


def _chapter(folder: Path, number: int) -> Path:
    return folder / f"history-{number:05d}.json"


def _write_whole(content: bytes, path: Path) -> None:
    """Write `content` beside `path`, durably, and move it there."""
    beside = path.with_suffix(".writing")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def write_model(weights: Weights, facts: Mapping[str, str], path: Path) -> Path:
    """The final weights with the facts to use them (model, contract, run), all strings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        save({name: np.ascontiguousarray(value) for name, value in weights.items()}, dict(facts))
    )
    return path
