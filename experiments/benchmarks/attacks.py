"""Agencies that lie: what one may send instead of its change, and a federation in this process where some do.

For tests and `experiments.benchmarks.poison`. Nothing here runs in a federation of real agencies.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from flwr.app import Message

from clients.app import make_app, node_from_config
from clients.node import open_node
from experiments.engines import LocalGrid
from federation import protocol, wire
from federation.experiment import Experiment
from federation.protocol import RoundReply, Weights

Changes = Mapping[str, Weights]  # agency -> the change of its own honest work
Attack = Callable[[Changes, str], Weights]  # (all changes of the round, attacker) -> what it sends instead


def wrong_shape(changes: Changes, attacker: str) -> Weights:
    """Arrays with a column less."""
    return {name: value[..., :-1] for name, value in changes[attacker].items()}


def not_a_number(changes: Changes, attacker: str) -> Weights:
    """NaN everywhere."""
    return {name: np.full_like(value, np.nan) for name, value in changes[attacker].items()}


def infinite(changes: Changes, attacker: str) -> Weights:
    """Minus infinity everywhere."""
    return {name: np.full_like(value, -np.inf) for name, value in changes[attacker].items()}


def huge(changes: Changes, attacker: str) -> Weights:
    """Its own change a million times as long, the wrong way: what is left of it is what the bound permits."""
    return scaled(changes, attacker, -1e6)


def sign_flip(changes: Changes, attacker: str) -> Weights:
    """Its own change ten times as long, the wrong way."""
    return scaled(changes, attacker, -10.0)


def scaled(changes: Changes, attacker: str, factor: float) -> Weights:
    """`factor` x its own change."""
    return {name: (factor * value).astype(np.float32) for name, value in changes[attacker].items()}


def a_little(changes: Changes, attacker: str, z: float = 1.5) -> Weights:
    """Baruch et al., A Little Is Enough, NeurIPS 2019 (arXiv:1902.06635): mean - z std of everybody's changes, by weight.

    It knows what all the others send, and stays among them. What it does not hold stays 0.
    """
    found = {}
    for name, own in changes[attacker].items():
        each = np.stack([change[name] for change in changes.values()]).astype(np.float64)
        found[name] = np.where(own != 0, each.mean(0) - z * each.std(0), 0).astype(np.float32)
    return found


def honest(changes: Changes, attacker: str) -> Weights:
    """Its own change: for attacks that are in the records."""
    return dict(changes[attacker])


ATTACKS: Mapping[str, Attack] = {
    "none": honest,
    "wrong shape": wrong_shape,
    "NaN": not_a_number,
    "infinite": infinite,
    "huge norm": huge,
    "sign flip x 10": sign_flip,
    "a little is enough": a_little,
    "labels flipped": honest,
}
BENCHED = ("none", "NaN", "huge norm", "sign flip x 10", "a little is enough", "labels flipped")
MASKED = (
    "none",
    "sign flip x 10",
    "labels flipped",
)  # what can be done behind masks, where nobody sees the others


class PoisonedGrid(LocalGrid):
    """Agencies in this process, of which `attackers` do their work and then send what `attack` makes of it."""

    def __init__(
        self, folders: Sequence[Path], attackers: Iterable[str] = (), attack: Attack = honest
    ) -> None:
        super().__init__(make_app(node_from_config), [{"node-dir": str(folder)} for folder in folders])
        self._attackers, self._attack = frozenset(attackers), attack

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        orders = list(messages)
        identifiers = list(super().push_messages(orders))
        sent = {identifier: self._sent(identifier) for identifier in identifiers}
        replies = {identifier: reply for identifier, reply in sent.items() if reply is not None}
        changes = {r.agency: r.delta for r in replies.values() if r.delta is not None}
        for order, identifier in zip(orders, identifiers, strict=True):
            reply = replies.get(identifier)
            if reply is not None and reply.agency in self._attackers and reply.delta is not None:
                poisoned = replace(reply, delta=self._attack(changes, reply.agency))
                self._replies[identifier] = wire.pack_reply(poisoned, order)
        return identifiers

    def _sent(self, identifier: str) -> RoundReply | None:
        message = self._replies[identifier]
        if message.metadata.message_type != protocol.ROUND:
            return None
        reply = wire.read_reply(message)
        return reply if isinstance(reply, RoundReply) else None


@contextmanager
def labels_flipped(nodes: Iterable[Path], experiment: Experiment) -> Iterator[None]:
    """The outcomes that the nodes train on are turned round, in memory, and turned back at the end."""
    split = experiment.settings.split
    outcomes = [open_node(node)._dataset(split.tune, split.test).part("train")[1] for node in nodes]
    for y in outcomes:
        y.neg_().add_(1)
    try:
        yield
    finally:
        for y in outcomes:
            y.neg_().add_(1)


@contextmanager
def sums_flipped(nodes: Iterable[Path], factor: int = -10) -> Iterator[None]:
    """`sign_flip` behind masks: the nodes mask `factor` x their own sum."""
    flipped = [open_node(node) for node in nodes]
    for node in flipped:
        exact = node._exact_sum
        node.__dict__["_exact_sum"] = lambda *given, exact=exact, **named: factor * exact(*given, **named)
    try:
        yield
    finally:
        for node in flipped:
            del node.__dict__["_exact_sum"]
