"""Shared noise behind masks, whole: a coordinator and real nodes in this process, honest or not.

Five agencies, of which one may collude and one may drop out: n = 5, c = d = 1, t = 4, h = 3. The health
agencies (clinic and ward) hold a block that the others do not. `federation.secagg` alone is in test_secagg.py,
a node's files in test_masking.py.
"""

import base64
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import tomllib
import yaml
from conftest import MakeStudy
from flwr.app import Message

from clients import masking
from clients.app import make_app, node_from_config
from clients.ledger import Ledger
from clients.node import Node, open_node
from experiments import engines
from experiments.config import Study
from federation import masks, protocol, secagg, wire
from federation.experiment import Experiment, SettingsError
from federation.plan import Reason, Refused, TrainPlan
from federation.protocol import (
    AgreeOrder,
    DealOrder,
    Dealt,
    Keys,
    KeysOrder,
    MaskedReply,
    Opened,
    OpenOrder,
    Refusal,
    Reply,
    RoundOrder,
    Sealed,
    Signed,
    Weights,
)
from federation.release import VIEWERS, SharedRelease
from federation.secagg import Roster
from federation.server import checkpoint
from federation.server import masked as coordinator
from federation.server.result import RunFacts
from federation.server.rounds import RunError, run_federation
from models import risk
from models.features import layout

NAMES = ("clinic", "east", "north", "south", "ward")
FACTS = RunFacts("run-1", "local", simulation=True)
Change = Callable[[str, Message], Message | None]  # (agency, message) -> what arrives; None: nothing


# --- a run whose wire can be listened to and cut --------------------------------------------------------


class Wire(engines.LocalGrid):
    """Shows each order and each reply to `push` and `pull`, which may change or lose it."""

    def __init__(self, folders: Sequence[Path], push: Change | None = None, pull: Change | None = None) -> None:
        super().__init__(make_app(self.find), [{"node-dir": str(folder)} for folder in folders])
        self.names = {number: folder.name for number, folder in enumerate(folders, start=1)}
        self.push, self.pull = push or self.keep, pull or self.keep
        self.sent: list[tuple[str, Message]] = []  # everything, both ways, as it really was

    @staticmethod
    def keep(_: str, message: Message) -> Message:
        return message

    def find(self, context: Any) -> Node:
        return node_from_config(context)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        identifiers: list[str] = []
        for message in messages:
            name = self.names[message.metadata.dst_node_id]
            changed = self.push(name, message)
            if changed is None:
                identifiers.append(f"lost {len(self.sent)}")
            else:
                self.sent.append((name, changed))
                identifiers += super().push_messages([changed])
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        found = []
        for message in super().pull_messages(message_ids):
            name = self.names[message.metadata.src_node_id]
            self.sent.append((name, message))
            changed = self.pull(name, message)
            found += [] if changed is None else [changed]
        return found

    def orders(self, kind: str = protocol.ROUND) -> list[tuple[str, Message]]:
        """The orders of a kind that reached an agency."""
        return [(name, m) for name, m in self.sent if m.metadata.message_type == kind and is_order(m)]

    def round_orders(self) -> list[RoundOrder]:
        """One of each round, in order."""
        found = {o.round: o for o in (wire.read_round_order(m) for _, m in self.orders())}
        return [found[number] for number in sorted(found)]


def is_order(message: Message) -> bool:
    return "kind" not in json.loads(str(message.content["fedrisk"]["json"]))


def loses(*names: str, kind: str = protocol.ROUND, rounds: Sequence[int] = (2,)) -> tuple[Change, Change]:
    """`push` and `pull` that lose the replies of `names` to orders of `kind` in `rounds`: they did their work."""
    now = [0]

    def push(_: str, message: Message) -> Message:
        if message.metadata.message_type == protocol.ROUND:
            now[0] = wire.read_round_order(message).round
        return message

    def pull(name: str, message: Message) -> Message | None:
        lost = name in names and message.metadata.message_type == kind and now[0] in rounds
        return None if lost else message

    return push, pull


def make_nodes(study: Study, folder: Path) -> list[Path]:
    return engines.make_node_folders(
        study.agencies, study.experiment.contract, folder / "nodes", seed=0, min_people=20
    )


def federate(
    study: Study, folder: Path, push: Change | None = None, pull: Change | None = None
) -> tuple[dict[str, Any], Wire]:
    grid = Wire(make_nodes(study, folder), push, pull)
    return run_federation(grid, study.experiment, FACTS, folder), grid


def ledger_of(folder: Path, name: str) -> Ledger:
    path = folder / "nodes" / name / "ledger.db"
    return Ledger(path, budget=None, scope="this run alone", people=f"{name}/people")


def last(folder: Path) -> Weights:
    found = checkpoint.read_last(folder / "checkpoints")
    assert found is not None
    return found.weights


def same(one: Weights, other: Weights) -> None:
    assert set(one) == set(other)
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name])


def flat(weights: Weights) -> np.ndarray:
    return np.concatenate([value.ravel() for value in weights.values()]).astype(np.float64)


Vectors = dict[tuple[str, int], dict[str, np.ndarray]]  # by (transcript, draw), by agency


@pytest.fixture
def vectors(monkeypatch: pytest.MonkeyPatch) -> Vectors:
    """What each agency hides under its masks, before it does."""
    found: Vectors = {}
    real = masking.Masks.mask

    def mask(self: masking.Masks, plan: Any, transcript: str, draw: int, vector: np.ndarray) -> np.ndarray:
        found.setdefault((transcript, draw), {})[self.name] = vector.copy()
        return real(self, plan, transcript, draw, vector)

    monkeypatch.setattr(masking.Masks, "mask", mask)
    return found


Sums = dict[tuple[str, int], tuple[tuple[str, ...], np.ndarray]]


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> Sums:
    """What the coordinator unmasks: by (transcript, draw) who survived and their sum."""
    found: Sums = {}
    real = secagg.unmask

    def unmask(total: Any, roster: Roster, draw: int, survivors: Any, opened: Any) -> np.ndarray:
        got = real(total, roster, draw, survivors, opened)
        found[roster.transcript, draw] = (tuple(survivors), got)
        return got

    monkeypatch.setattr(coordinator.secagg, "unmask", unmask)
    return found


def total(some: Iterable[np.ndarray]) -> np.ndarray:
    """The sum of wrapped vectors as signed integers, in Python's own."""
    return np.sum([masks.unwrap(each).astype(object) for each in some], axis=0)


# --- 1. the sum is exact --------------------------------------------------------------------------------


@pytest.mark.parametrize("privacy", [(), ("privacy.sample_rate=0.3", "model=mlp", "model.hidden=[4]")])
def test_a_sum_is_the_sum_of_the_vectors_and_the_weights_are_that_by_hand(
    make_shared: MakeStudy, tmp_path: Path, vectors: Vectors, sums: Sums, privacy: tuple[str, ...]
) -> None:
    study = make_shared("strategy.optimizer=fedavg", "local.learning_rate=0.7", *privacy)
    result, grid = federate(study, tmp_path)
    plan, orders = study.experiment.plan("run-1", simulation=True), grid.round_orders()
    shared = plan.privacy.shared
    assert shared is not None
    assert list(sums) == list(vectors)
    assert [order.kinds for order in orders] == [("train",)] * 3 + [("tune", "test")]
    for key, (survivors, got) in sums.items():
        assert survivors == NAMES
        np.testing.assert_array_equal(got, total(vectors[key].values()))
    for order, after, got in zip(orders, orders[1:], [s for _, s in sums.values()], strict=False):
        moved = flat(after.weights) - flat(order.weights)
        mean = got.astype(np.float64) * plan.privacy.max_grad_norm / shared.steps_per_norm
        np.testing.assert_allclose(moved, -0.7 * mean / expected_people(study, order, NAMES), atol=2e-6)
    tables = np.split(sums[list(sums)[-1]][1] / shared.steps_per_person, 2)
    assert result["final"]["metrics"]["overall"]["people"]["value"] == pytest.approx(tables[1].sum())


def expected_people(study: Study, order: RoundOrder, survivors: Iterable[str]) -> np.ndarray:
    """q x declared people in train of the survivors that hold each coordinate, by hand from conftest."""
    q, each = study.experiment.settings.privacy.sample_rate, 120 * 0.6
    names = list(survivors)
    blocks = layout(study.experiment.data_contract).block
    columns = [len([n for n in names if b is None or n in ("clinic", "ward")]) for b in blocks]
    parts = []
    for i, value in enumerate(order.weights.values()):
        everybody = np.full(value.shape, float(len(names)))
        parts.append((everybody if i else np.broadcast_to(columns, value.shape)).ravel())
    return np.concatenate(parts) * q * each
