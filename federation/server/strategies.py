"""Flower's strategies by configuration, with agreed public weights in place of row counts.

Flower does the combining. Ours are three things around it: blocks of columns that only some agencies
hold are combined over their holders alone, a robust strategy's one change goes on through an optimiser, and the
optimiser's state can be saved and put back.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp.strategy import (
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
)

from federation import wire
from federation.experiment import ROBUST, Strategy
from federation.protocol import Weights


@dataclass(frozen=True)
class Update:
    """One agency's valid change: its message, its delta, its public weight, and what it holds.

    `held` maps a parameter's name to a 0/1 array that broadcasts to it; absent means all of it. `agency`: whose, where
    it is of one.
    """

    message: Message
    delta: Weights
    weight: float
    held: Mapping[str, np.ndarray]
    agency: str = ""


@dataclass(frozen=True)
class Combiner:
    """How changes become weights: a robust strategy makes one of them, if `settings` name one; `optimizer` moves."""

    settings: Strategy
    optimizer: FedAvg

    @property
    def is_robust(self) -> bool:
        """Whether changes are ranked or compared rather than averaged."""
        return self.settings.name in ROBUST


def build(settings: Strategy) -> Combiner:
    """Flower's strategy for `settings`. Sampling of nodes is not Flower's here: every agency is asked."""
    adaptive: dict[str, Any] = {
        "eta": settings.server_learning_rate,
        "beta_1": settings.beta_1,
        "beta_2": settings.beta_2,
        "tau": settings.tau,
    }
    by_optimizer = settings.name in ("dp_fedsgd", *ROBUST)
    optimizer: FedAvg
    match settings.optimizer if by_optimizer else settings.name:
        case "fedprox":
            optimizer = FedProx(weighted_by_key="weight", proximal_mu=settings.proximal_mu)
        case "fedavgm":
            optimizer = FedAvgM(
                weighted_by_key="weight",
                server_learning_rate=settings.server_learning_rate,
                server_momentum=settings.server_momentum,
            )
        case "fedadam":
            optimizer = FedAdam(weighted_by_key="weight", **adaptive)
        case "fedyogi":
            optimizer = FedYogi(weighted_by_key="weight", **adaptive)
        case _:
            optimizer = FedAvg(weighted_by_key="weight")
    return Combiner(settings, optimizer)


def combine(
    combiner: Combiner, round_: int, weights: Weights, updates: Sequence[Update], caught: int = 0
) -> Weights:
    """The weights after a round: Flower's `aggregate_train` on `updates`, which come in name order.

    A coordinate held by the agencies H moves by sum_{i in H} w_i delta_i / sum_{i in H} w_i: others'
    deltas are zero there, so scaling by (sum of all w) / (sum of H's w) before Flower's mean gives it.

    A robust strategy finds one change first (`_robust_change`). `caught` agencies of this round sent what cannot be
    used: so many fewer of those that it holds against are left.
    """
    strategy = combiner.optimizer
    if combiner.is_robust:
        change = _robust_change(combiner.settings, caught, round_, weights, updates)
        updates = [Update(updates[0].message, change, 1.0, {})]
    _set_current(strategy, weights)
    scale = _holder_scale(weights, updates)
    moved = [
        (
            update,
            {name: weights[name] + update.delta[name] * scale.get(name, np.float32(1)) for name in weights},
        )
        for update in updates
    ]
    combined = _aggregate(strategy, round_, moved)
    return {name: value.astype(np.float32) for name, value in combined.items()}


def _aggregate(strategy: FedAvg, round_: int, values: Sequence[tuple[Update, Weights]]) -> Weights:
    """What Flower's `strategy` makes of one set of arrays from each agency."""
    replies = [wire.as_strategy_reply(update.message, arrays, update.weight) for update, arrays in values]
    combined, _ = strategy.aggregate_train(round_, replies)
    if combined is None:
        raise ValueError("Flower's strategy returned no weights")
    return wire.read_weights(combined)


def _holder_scale(weights: Weights, updates: Sequence[Update]) -> Weights:
    total = sum(update.weight for update in updates)
    names = {name for update in updates for name in update.held}
    scale = {}
    for name in names:
        ones = np.ones_like(weights[name])
        holders = sum(update.weight * update.held.get(name, ones) * ones for update in updates)
        scale[name] = np.where(holders > 0, total / np.maximum(holders, 1e-12), 0).astype(np.float32)
    return scale


# --- robust strategies ----------------------------------------------------------------------------------


def _robust_change(
    settings: Strategy, caught: int, round_: int, weights: Weights, updates: Sequence[Update]
) -> Weights:
    """One change out of many, float64: Flower's robust strategy over the holders of each coordinate alone.

    Someone who does not hold a coordinate always says 0 there, which would win a median. So coordinates go by who
    holds them, each set to a strategy of its own; `thin_blocks` says what becomes of those that too few hold. Changes
    are combined rather than weights: distances between them do not vanish in the weights' rounding.
    """
    malicious = max(0, settings.malicious - caught)
    least = min(settings.least(caught), len(updates))
    change = {name: np.zeros(value.shape, dtype=np.float64) for name, value in weights.items()}
    for holders, where in _by_holders(weights, updates):
        if len(holders) < least and settings.thin_blocks == "leave":
            continue
        deltas = [
            (update, {name: update.delta[name][at].astype(np.float64) for name, at in where.items()})
            for update in holders
        ]
        for name, value in _aggregate(_robust(settings, malicious, len(holders)), round_, deltas).items():
            change[name][where[name]] = value
    return change


def _robust(settings: Strategy, malicious: int, agencies: int) -> FedAvg:
    """Flower's robust strategy for the changes of so many agencies. It keeps no state.

    FedTrimmedAvg cuts int(beta n) off each end: `malicious` where there are more than twice as many agencies, the
    quarter being against rounding. MultiKrum averages all but `malicious`, by public weight; the others know no
    weights.
    """
    match settings.name:
        case "fedtrimmedavg":
            cut = min(malicious, (agencies - 1) // 2)
            return FedTrimmedAvg(weighted_by_key="weight", beta=(cut + 0.25) / agencies if cut else 0.0)
        case "krum":
            return Krum(weighted_by_key="weight", num_malicious_nodes=malicious)
        case "multikrum":
            return MultiKrum(
                weighted_by_key="weight",
                num_malicious_nodes=malicious,
                num_nodes_to_select=max(1, agencies - malicious),
            )
        case _:
            return FedMedian(weighted_by_key="weight")


def _by_holders(
    weights: Weights, updates: Sequence[Update]
) -> Iterator[tuple[list[Update], dict[str, np.ndarray]]]:
    """Each set of agencies that are alone in holding some coordinates, and where those are, by parameter (bool)."""
    groups: dict[tuple[bool, ...], dict[str, np.ndarray]] = {}
    for name, value in weights.items():
        held = np.stack(
            [np.broadcast_to(update.held.get(name, 1.0), value.shape).ravel() > 0 for update in updates]
        )
        patterns, which = np.unique(held, axis=1, return_inverse=True)
        for at, pattern in enumerate(patterns.T):
            if pattern.any():
                where = (which.ravel() == at).reshape(value.shape)
                groups.setdefault(tuple(map(bool, pattern)), {})[name] = where
    for pattern, positions in groups.items():
        yield [update for update, holds in zip(updates, pattern, strict=True) if holds], positions


# --- the optimiser's state --------------------------------------------------------------------------------


def _set_current(strategy: FedAvg, weights: Weights) -> None:
    """What Flower's `configure_train` would remember, without its sampling of nodes."""
    if isinstance(strategy, FedAvgM):
        strategy.current_arrays = wire.pack_weights(weights)
    elif isinstance(strategy, FedAdam | FedYogi):
        strategy.current_arrays = dict(weights)


def state(combiner: Combiner, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The optimiser's state as flat named arrays; empty for strategies that keep none."""
    strategy = combiner.optimizer
    if isinstance(strategy, FedAvgM) and strategy.momentum_vector is not None:
        return {
            f"momentum/{name}": value for name, value in zip(names, strategy.momentum_vector, strict=True)
        }
    if isinstance(strategy, FedAdam | FedYogi) and strategy.m_t and strategy.v_t:
        first = {f"m/{name}": strategy.m_t[name] for name in names}
        return first | {f"v/{name}": strategy.v_t[name] for name in names}
    return {}


def restore(combiner: Combiner, names: Sequence[str], saved: Mapping[str, np.ndarray]) -> None:
    """Put back what `state` returned."""
    strategy = combiner.optimizer
    if isinstance(strategy, FedAvgM) and saved:
        strategy.momentum_vector = [saved[f"momentum/{name}"] for name in names]
    if isinstance(strategy, FedAdam | FedYogi) and saved:
        strategy.m_t = {name: saved[f"m/{name}"] for name in names}
        strategy.v_t = {name: saved[f"v/{name}"] for name in names}


__all__ = ["Combiner", "Update", "build", "combine", "restore", "state"]
