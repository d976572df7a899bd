"""Flower's strategies by configuration, with agreed public weights in place of row counts.

Flower does the combining. Ours are two things around it: blocks of columns that only some agencies
hold are averaged over their holders, and the optimiser's state can be saved and put back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedProx, FedYogi

from federation import wire
from federation.experiment import Strategy
from federation.protocol import Weights


@dataclass(frozen=True)
class Update:
    """One agency's valid change: its message, its delta, its public weight, and what it holds.

    `held` maps a parameter's name to a 0/1 array that broadcasts to it; absent means all of it.
    """

    message: Message
    delta: Weights
    weight: float
    held: Mapping[str, np.ndarray]


def build(settings: Strategy) -> FedAvg:
    """Flower's strategy for `settings`. Sampling of nodes is not Flower's here: every agency is asked."""
    adaptive: dict[str, Any] = {
        "eta": settings.server_learning_rate,
        "beta_1": settings.beta_1,
        "beta_2": settings.beta_2,
        "tau": settings.tau,
    }
    match settings.optimizer if settings.name == "dp_fedsgd" else settings.name:
        case "fedavg":
            return FedAvg(weighted_by_key="weight")
        case "fedprox":
            return FedProx(weighted_by_key="weight", proximal_mu=settings.proximal_mu)
        case "fedavgm":
            return FedAvgM(
                weighted_by_key="weight",
                server_learning_rate=settings.server_learning_rate,
                server_momentum=settings.server_momentum,
            )
        case "fedadam":
            return FedAdam(weighted_by_key="weight", **adaptive)
        case "fedyogi":
            return FedYogi(weighted_by_key="weight", **adaptive)


def combine(strategy: FedAvg, round_: int, weights: Weights, updates: Sequence[Update]) -> Weights:
    """The weights after a round: Flower's `aggregate_train` on `updates`, which come in name order.

    A coordinate held by the agencies H moves by sum_{i in H} w_i delta_i / sum_{i in H} w_i: others'
    deltas are zero there, so scaling by (sum of all w) / (sum of H's w) before Flower's mean gives it.
    """
    _set_current(strategy, weights)
    scale = _holder_scale(weights, updates)
    replies = [
        wire.as_strategy_reply(
            update.message,
            {name: weights[name] + update.delta[name] * scale.get(name, np.float32(1)) for name in weights},
            update.weight,
        )
        for update in updates
    ]
    combined, _ = strategy.aggregate_train(round_, replies)
    if combined is None:
        raise ValueError("Flower's strategy returned no weights")
    return {name: value.astype(np.float32) for name, value in wire.read_weights(combined).items()}


def _holder_scale(weights: Weights, updates: Sequence[Update]) -> Weights:
    total = sum(update.weight for update in updates)
    names = {name for update in updates for name in update.held}
    scale = {}
    for name in names:
        ones = np.ones_like(weights[name])
        holders = sum(update.weight * update.held.get(name, ones) * ones for update in updates)
        scale[name] = np.where(holders > 0, total / np.maximum(holders, 1e-12), 0).astype(np.float32)
    return scale


def _set_current(strategy: FedAvg, weights: Weights) -> None:
    """What Flower's `configure_train` would remember, without its sampling of nodes."""
    if isinstance(strategy, FedAvgM):
        strategy.current_arrays = wire.pack_weights(weights)
    elif isinstance(strategy, FedAdam | FedYogi):
        strategy.current_arrays = dict(weights)


def state(strategy: FedAvg, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The optimiser's state as flat named arrays; empty for strategies that keep none."""
    if isinstance(strategy, FedAvgM) and strategy.momentum_vector is not None:
        return {
            f"momentum/{name}": value for name, value in zip(names, strategy.momentum_vector, strict=True)
        }
    if isinstance(strategy, FedAdam | FedYogi) and strategy.m_t and strategy.v_t:
        first = {f"m/{name}": strategy.m_t[name] for name in names}
        return first | {f"v/{name}": strategy.v_t[name] for name in names}
    return {}


def restore(strategy: FedAvg, names: Sequence[str], saved: Mapping[str, np.ndarray]) -> None:
    """Put back what `state` returned."""
    if isinstance(strategy, FedAvgM) and saved:
        strategy.momentum_vector = [saved[f"momentum/{name}"] for name in names]
    if isinstance(strategy, FedAdam | FedYogi) and saved:
        strategy.m_t = {name: saved[f"m/{name}"] for name in names}
        strategy.v_t = {name: saved[f"v/{name}"] for name in names}


__all__ = ["Update", "build", "combine", "restore", "state"]
