"""Shared noise behind masks, whole: a coordinator and real nodes in this process, honest or not.

Five agencies, of which one may collude and one may drop out: n = 5, c = d = 1, t = 4, h = 3. The health
agencies (clinic and ward) hold a block that the others do not. `federation.secagg` alone is in test_secagg.py,
a node's files in test_masking.py.
"""

import base64
import dataclasses
import json
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
import yaml
from conftest import MakeStudy, permits
from flwr.app import Message

from clients import masking
from clients.app import make_app, node_from_config
from clients.draws import fresh_draw
from clients.ledger import Ledger
from clients.node import Node, Work, open_node
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

    def __init__(
        self, folders: Sequence[Path], push: Change | None = None, pull: Change | None = None
    ) -> None:
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
        return [dataclasses.replace(found[n], weights=in_order(found[n].weights)) for n in sorted(found)]


def in_order(weights: Weights) -> Weights:
    """In the module's order, whatever order a message or a file has: layer by layer, weight before bias."""
    names = sorted(weights, key=lambda name: (name.rpartition(".")[0], not name.endswith("weight")))
    return {name: weights[name] for name in names}


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
    return np.concatenate([value.ravel() for value in in_order(weights).values()]).astype(np.float64)


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
    unrounded = "evaluation.disclosure=none"
    study = make_shared("strategy.optimizer=fedavg", "local.learning_rate=0.7", unrounded, *privacy)
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


def test_the_same_seed_gives_the_same_weights_in_any_order_of_agencies_and_at_either_width(
    make_shared: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks are of the operating system's randomness, noise and batches of the seed: the masks leave no trace."""
    study = make_shared("privacy.sample_rate=0.5")
    first, one = federate(study, tmp_path / "a")
    federate(Study(study.experiment, study.data, study.agencies[::-1], study.compare), tmp_path / "backwards")
    same(last(tmp_path / "a"), last(tmp_path / "backwards"))
    real = Experiment._shared_noise
    bits = {o.plan.privacy.shared.bits for o in one.round_orders() if o.plan.privacy.shared}
    other = ({32, 64} - bits).pop()
    monkeypatch.setattr(Experiment, "_shared_noise", lambda self: real(self) | {"bits": other})
    wider, two = federate(study, tmp_path / "b")
    assert {o.plan.privacy.shared.bits for o in two.round_orders() if o.plan.privacy.shared} == {other}
    same(last(tmp_path / "a"), last(tmp_path / "b"))
    assert wider["final"]["metrics"] == first["final"]["metrics"]
    assert [m.content for _, m in one.sent if not is_order(m)] != [
        m.content for _, m in two.sent if not is_order(m)
    ]
    federate(make_shared("privacy.sample_rate=0.5", "seed=1"), tmp_path / "c")
    assert (flat(last(tmp_path / "a")) != flat(last(tmp_path / "c"))).any()


# --- 2. without noise it is the same as any other way of adding ----------------------------------------


def test_with_next_to_no_noise_it_is_plain_dp_sgd(make_shared: MakeStudy, tmp_path: Path) -> None:
    """Oracle: privacy=none with the same clipping and the same batches, averaged by Flower over public sizes."""
    common = ["privacy.sample_rate=0.5", "privacy.max_grad_norm=0.4", "local.learning_rate=2.0"]
    common += ["strategy.server_momentum=0.5", "local.weight_decay=0.01"]
    quiet = ["privacy.epsilon=null", "privacy.noise_multiplier=0.01", "privacy.evaluate_epsilon=1"]
    federate(make_shared(*common, *quiet), tmp_path / "shared")
    plain = [word.replace("privacy=shared", "privacy=none") for word in common]
    study = make_shared(*plain, "privacy=none")
    federate(study, tmp_path / "none")
    found, wanted = flat(last(tmp_path / "shared")), flat(last(tmp_path / "none"))
    assert np.abs(wanted).max() > 0.1
    noise = 2.0 * 0.01 * 0.4 / (0.5 * 2 * 120 * 0.6)  # of one step, where only the two holders count
    np.testing.assert_allclose(found, wanted, atol=10 * noise)
    assert (found != wanted).any()


# --- 3. agencies that fail ------------------------------------------------------------------------------


def as_stated(result: Mapping[str, Any], folder: Path) -> None:
    """ε of the result is the ledger's, or more: never less."""
    for name in NAMES:
        with ledger_of(folder, name) as ledger:
            for viewer in VIEWERS:
                said = result["agencies"][name]["epsilon_to"][viewer]
                assert said >= ledger.epsilon(1e-5, viewer) - 1e-9, (name, viewer)


@pytest.mark.parametrize(
    ("kind", "survive"), [(protocol.ROUND, 4), (protocol.AGREE, 5), (protocol.OPEN, 4)], ids=lambda v: str(v)
)
def test_one_agency_that_falls_silent_changes_nothing_for_the_others(
    make_shared: MakeStudy, tmp_path: Path, vectors: Vectors, sums: Sums, kind: str, survive: int
) -> None:
    """Silent at open after all survived, t = 4 of the 5 open: the sum is of 5. It is back in the next round."""
    study = make_shared("strategy.optimizer=fedavg")
    result, grid = federate(study, tmp_path, *loses("east", kind=kind))
    records = result["rounds"]
    survivors = NAMES if kind != protocol.ROUND else tuple(n for n in NAMES if n != "east")
    assert [record["replied"] for record in records] == [list(NAMES), list(survivors), list(NAMES)]
    assert [record["void"] for record in records] == [None] * 3
    assert records[1]["late"] == (["east"] if kind == protocol.ROUND else [])
    assert len({transcript for transcript, _ in sums}) == 1, "nobody needs new keys"
    key = list(sums)[1]
    assert sums[key][0] == survivors
    np.testing.assert_array_equal(sums[key][1], total(vectors[key][name] for name in survivors))
    assert len(vectors[key]) == 5, "it trained and charged, and only its reply was lost"
    orders = grid.round_orders()
    privacy = study.experiment.privacy_plan()
    mean = sums[key][1] * privacy.max_grad_norm / privacy.shared.steps_per_norm  # type: ignore[union-attr]
    moved = flat(orders[2].weights) - flat(orders[1].weights)
    np.testing.assert_allclose(moved, -mean / expected_people(study, orders[1], survivors), atol=2e-6)
    as_stated(result, tmp_path)
    assert result["agencies"]["east"]["rounds"] == (2 if kind == protocol.ROUND else 3)


def test_an_agency_that_refuses_leaves_the_run_and_the_others_go_on(
    make_shared: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sums: Sums
) -> None:
    real = Node._masked

    def fails(self: Node, work: Work) -> MaskedReply:
        if self.facts.name == "south" and work.order.round == 2:
            raise ValueError("a cell")
        return real(self, work)

    monkeypatch.setattr(Node, "_masked", fails)
    result, _ = federate(make_shared(), tmp_path)
    others = [name for name in NAMES if name != "south"]
    assert result["rounds"][1]["refused"] == {"south": "UNAVAILABLE"}
    assert [record["replied"] for record in result["rounds"]] == [list(NAMES), others, others]
    assert [list(survivors) for survivors, _ in sums.values()] == [list(NAMES), others, others, others]
    assert result["agencies"]["south"]["status"] == "unavailable"
    as_stated(result, tmp_path)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (protocol.ROUND, "3 agencies sent a masked vector, 4 are needed"),
        (protocol.AGREE, "3 agencies signed the list of survivors, 4 are needed"),
        (protocol.OPEN, "3 shares of 'clinic' are open, 4 are needed"),
    ],
)
def test_two_that_fall_silent_make_a_void_round_which_is_charged_and_then_forgotten(
    make_shared: MakeStudy, tmp_path: Path, kind: str, why: str, sums: Sums
) -> None:
    study = make_shared()
    result, grid = federate(study, tmp_path, *loses("east", "ward", kind=kind))
    assert [record["void"] for record in result["rounds"]] == [None, why, None]
    orders = grid.round_orders()
    same(orders[1].weights, orders[2].weights)
    assert (flat(orders[0].weights) != flat(orders[1].weights)).any()
    assert result["rounds"][2]["replied"] == list(NAMES), "both are back"
    assert orders[1].transcript == orders[0].transcript != orders[2].transcript == orders[3].transcript
    assert [order.draw for order in orders] == [0, 1, 0, 1]
    for name in NAMES:
        with ledger_of(tmp_path, name) as ledger:
            assert sum(release.kind == "train" for release in ledger.releases()) == 3
    as_stated(result, tmp_path)


@pytest.mark.parametrize("void_rounds", [0, 1])
def test_void_rounds_end_the_run_with_one_sentence_and_leave_the_weights(
    make_shared: MakeStudy, tmp_path: Path, void_rounds: int
) -> None:
    study = make_shared("rounds=4", f"void_rounds={void_rounds}")
    push, pull = loses("east", "ward", rounds=(2, 3, 4))
    with pytest.raises(RunError) as stopped:
        federate(study, tmp_path, push, pull)
    said = f"at round {2 + void_rounds} than the 4 that shared noise with 1 dropouts needs"
    assert said in str(stopped.value)
    assert "\n" not in str(stopped.value)
    found = checkpoint.read_last(tmp_path / "checkpoints")
    assert found is not None
    assert [record["void"] is None for record in found.history["rounds"]] == [True] + [False] * (
        1 + void_rounds
    )
    resumed, grid = federate(study, tmp_path)
    np.testing.assert_array_equal(flat(grid.round_orders()[0].weights), flat(found.weights))
    assert resumed["rounds"][-1]["replied"] == list(NAMES)
    as_stated(resumed, tmp_path)


def test_two_that_do_not_come_back_for_new_keys_cost_void_rounds_not_the_run(
    make_shared: MakeStudy, tmp_path: Path
) -> None:
    """Round 2 is void; in round 3 the two do not even send keys, which nobody is charged for; in 4 all are back."""
    now = [0]

    def push(name: str, message: Message) -> Message | None:
        kind = message.metadata.message_type
        if kind == protocol.ROUND:
            now[0] = wire.read_round_order(message).round
        if kind == protocol.KEYS and now[0] == 2 and name in ("east", "ward"):
            asked.append(name)
            return None if len(asked) <= 2 else message
        return None if kind == protocol.ROUND and now[0] == 2 and name in ("east", "ward") else message

    asked: list[str] = []
    result, _ = federate(make_shared("rounds=4"), tmp_path, push)
    assert [record["replied"] for record in result["rounds"]] == [
        list(NAMES),
        ["clinic", "north", "south"],
        [],
        list(NAMES),
    ]
    assert "the set-up of masks" in result["rounds"][2]["void"]
    with ledger_of(tmp_path, "clinic") as ledger:
        assert sum(release.kind == "train" for release in ledger.releases()) == 3
    as_stated(result, tmp_path)


def test_an_order_that_arrives_twice_was_charged_once_and_the_result_says_so(
    make_shared: MakeStudy, tmp_path: Path
) -> None:
    """The first reply is lost, the second says REPLAYED: its vector is gone, its charge is not."""
    study = make_shared()

    def twice(name: str, message: Message) -> Message:
        if name == "east" and message.metadata.group_id == "2":
            engines.LocalGrid.push_messages(grid, [wire.pack_round_order(wire.read_round_order(message), 2)])
        return message

    grid = Wire(sorted(make_nodes(study, tmp_path)), twice)
    assert grid.names[2] == "east"
    result = run_federation(grid, study.experiment, FACTS, tmp_path)
    assert result["rounds"][1]["refused"] == {"east": "REPLAYED"}
    assert result["rounds"][2]["replied"] == list(NAMES), "it stays in the run"
    as_stated(result, tmp_path)
    with ledger_of(tmp_path, "east") as ledger:
        said = result["agencies"]["east"]["epsilon_to"]["coordinator"]
        assert said == pytest.approx(ledger.epsilon(1e-5, "coordinator"))


def test_keys_that_too_few_send_stop_a_run_that_has_not_begun(make_shared: MakeStudy, tmp_path: Path) -> None:
    def push(name: str, message: Message) -> Message | None:
        return None if message.metadata.message_type == protocol.DEAL and name < "n" else message

    with pytest.raises(RunError, match=r"at the set-up of masks than the 4 .*the run can be resumed"):
        federate(make_shared(), tmp_path, push)
    for name in NAMES:
        with ledger_of(tmp_path, name) as ledger:
            assert ledger.releases() == ()


def test_one_that_fails_while_keys_are_dealt_is_left_out(
    make_shared: MakeStudy, tmp_path: Path, vectors: Vectors, sums: Sums
) -> None:
    def push(name: str, message: Message) -> Message | None:
        return None if message.metadata.message_type == protocol.DEAL and name == "north" else message

    result, _ = federate(make_shared(), tmp_path, push)
    others = [name for name in NAMES if name != "north"]
    assert [record["replied"] for record in result["rounds"]] == [others] * 3
    for key, (_, got) in sums.items():
        np.testing.assert_array_equal(got, total(vectors[key].values()))
    assert result["agencies"]["north"]["releases"] == []
    as_stated(result, tmp_path)


def test_last_tables_that_stay_masked_leave_a_result_that_says_so(
    make_shared: MakeStudy, tmp_path: Path
) -> None:
    result, _ = federate(make_shared(), tmp_path, *loses("east", "ward", rounds=(4,)))
    assert result["final"]["metrics"] is None
    as_stated(result, tmp_path)
    from federation.panel.report import write_report

    write_report(result, tmp_path / "report.html")


# --- 4. a coordinator that lies -------------------------------------------------------------------------


class Nodes:
    """Real nodes, and the coordinator's end of the wire in the hands of whoever wants to abuse it."""

    def __init__(self, study: Study, folder: Path) -> None:
        self.plan = study.experiment.plan("run-1", simulation=True)
        self.folders = {path.name: path for path in make_nodes(study, folder)}
        self.grid = Wire(list(self.folders.values()))
        self.ids = {name: number for number, name in self.grid.names.items()}
        self.weights = risk.weights_of(
            risk.build(self.plan.model, len(layout(study.experiment.data_contract).names))
        )
        self.sealed: dict[str, Mapping[str, tuple[Sealed, ...]]] = {}
        self.roster: Any = None

    def node(self, name: str) -> Node:
        return open_node(self.folders[name])

    def ask(self, name: str, pack: Callable[..., Message], *what: Any) -> Reply:
        (reply,) = self.grid.pull_messages(self.grid.push_messages([pack(*what, self.ids[name])]))
        return wire.read_reply(reply)

    def adverts(self, plan: TrainPlan | None = None, draws: int | None = None) -> dict[str, secagg.Advert]:
        plan = plan or self.plan
        order = KeysOrder(plan, plan.rounds + 1 if draws is None else draws)
        found = {name: self.ask(name, wire.pack_keys_order, order) for name in NAMES}
        return {name: reply.advert for name, reply in found.items() if isinstance(reply, Keys)}

    def set_up(self, plan: TrainPlan | None = None) -> None:
        plan, adverts = plan or self.plan, self.adverts(plan)
        assert plan.privacy.shared is not None
        self.roster = Roster(
            plan.run_id,
            plan.sha256,
            plan.privacy.shared.threshold,
            tuple(adverts[n] for n in sorted(adverts)),
        )
        order = DealOrder(plan, self.roster.adverts)
        for name in adverts:
            dealt = self.ask(name, wire.pack_deal_order, order)
            assert isinstance(dealt, Dealt)
            self.sealed[name] = dealt.sealed

    def order(self, number: int = 1, **changes: Any) -> RoundOrder:
        facts = {"draw": number - 1, "transcript": self.roster.transcript if self.roster else ""}
        tables = ("tune",) if number - 1 in self.plan.checkpoints else ()
        last_one = number > self.plan.rounds
        order = RoundOrder(
            self.plan, number, self.weights, not last_one, (*tables, "test") if last_one else tables, **facts
        )
        return dataclasses.replace(order, **changes)

    def round(self, name: str, number: int = 1, **changes: Any) -> Reply:
        return self.ask(name, wire.pack_round_order, self.order(number, **changes))

    def rounds(self, number: int = 1, names: Sequence[str] = NAMES) -> dict[str, np.ndarray]:
        found = {name: self.round(name, number) for name in names}
        return {name: reply.vector for name, reply in found.items() if isinstance(reply, MaskedReply)}

    def agree(self, name: str, survivors: Sequence[str], draw: int = 0, **changes: Any) -> Reply:
        order = AgreeOrder(self.plan.run_id, self.roster.transcript, draw, tuple(survivors))
        return self.ask(name, wire.pack_agree_order, dataclasses.replace(order, **changes))

    def open(
        self,
        name: str,
        survivors: Sequence[str],
        signatures: Mapping[str, bytes],
        draw: int = 0,
        **changes: Any,
    ) -> Reply:
        sealed = {giver: self.sealed[giver][name][draw] for giver in self.roster.names}
        order = OpenOrder(
            self.plan.run_id, self.roster.transcript, draw, tuple(survivors), signatures, sealed
        )
        return self.ask(name, wire.pack_open_order, dataclasses.replace(order, **changes))

    def signatures(self, survivors: Sequence[str], draw: int = 0) -> dict[str, bytes]:
        found = {name: self.agree(name, survivors, draw) for name in survivors}
        return {name: reply.signature for name, reply in found.items() if isinstance(reply, Signed)}

    def opened(self, survivors: Sequence[str], draw: int = 0) -> dict[str, Mapping[str, bytes]]:
        signatures = self.signatures(survivors, draw)
        found = {name: self.open(name, survivors, signatures, draw) for name in survivors}
        return {name: reply.shares for name, reply in found.items() if isinstance(reply, Opened)}

    def state(self, name: str) -> tuple[object, ...]:
        """All that a node keeps: its ledger and the files of its masks."""
        folder = self.folders[name] / "masks"
        files = {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}
        return tuple(entry.hash for entry in self.node(name).ledger.entries()), tuple(sorted(files.items()))

    def refused(self, reason: Reason, name: str, ask: Callable[[], Reply]) -> None:
        """`ask` is refused by `name` for `reason`, and nothing there has changed."""
        before = self.state(name)
        assert ask() == Refusal(name, reason)
        assert self.state(name) == before


@pytest.fixture
def nodes(make_shared: MakeStudy, tmp_path: Path) -> Nodes:
    return Nodes(make_shared(), tmp_path)


@pytest.fixture
def ready(nodes: Nodes) -> Nodes:
    """The same, keys dealt."""
    nodes.set_up()
    return nodes


ALL_BUT_CLINIC, ALL_BUT_WARD = NAMES[1:], NAMES[:-1]


def test_an_honest_round_by_hand(ready: Nodes, vectors: Vectors) -> None:
    """The control of what follows: the same messages, honest."""
    sent = ready.rounds(1)
    opened = ready.opened(ALL_BUT_WARD)
    masked = np.sum([sent[name] for name in ALL_BUT_WARD], axis=0, dtype=sent["ward"].dtype)
    got = secagg.unmask(masked, ready.roster, 0, ALL_BUT_WARD, opened)
    hidden = vectors[ready.roster.transcript, 0]
    np.testing.assert_array_equal(got, total(hidden[name] for name in ALL_BUT_WARD))


def test_two_lists_for_two_halves_open_nothing(ready: Nodes) -> None:
    """clinic and ward are each on one list and not on the other: both seeds of both would be opened."""
    ready.rounds(1)
    lists = {name: ALL_BUT_WARD if name in ("clinic", "east") else ALL_BUT_CLINIC for name in NAMES}
    signed = {name: ready.agree(name, lists[name]) for name in NAMES}
    assert all(isinstance(reply, Signed) for reply in signed.values())
    signatures = {name: reply.signature for name, reply in signed.items() if isinstance(reply, Signed)}
    for name, mine in lists.items():
        other = ALL_BUT_CLINIC if mine == ALL_BUT_WARD else ALL_BUT_WARD
        ready.refused(Reason.MASKS, name, lambda name=name, mine=mine: ready.open(name, mine, signatures))  # type: ignore[misc]
        ready.refused(Reason.MASKS, name, lambda name=name, other=other: ready.open(name, other, signatures))  # type: ignore[misc]
        ready.refused(Reason.REPLAYED, name, lambda name=name, other=other: ready.agree(name, other))  # type: ignore[misc]


def test_a_coordinator_with_two_lists_gets_two_void_rounds(make_shared: MakeStudy, tmp_path: Path) -> None:
    """As a whole run: whoever rewrites the list for some is left with a void round."""
    now = [0]

    def push(name: str, message: Message) -> Message:
        kind = message.metadata.message_type
        if kind == protocol.ROUND:
            now[0] = wire.read_round_order(message).round
        if kind == protocol.AGREE and now[0] <= 2:
            order = wire.read_agree_order(message)
            survivors = ALL_BUT_WARD if name < "n" else ALL_BUT_CLINIC
            changed = wire.pack_agree_order(dataclasses.replace(order, survivors=survivors), 1)
            message.content = changed.content
        return message

    result, grid = federate(make_shared(), tmp_path, push)
    assert [record["void"] is None for record in result["rounds"]] == [False, False, True]
    replies = [json.loads(str(m.content["fedrisk"]["json"])) for _, m in grid.sent]
    opened = [reply for reply in replies if reply.get("kind") == "Opened"]
    assert len(opened) == 10, "of the third round and the last tables alone"


@pytest.mark.parametrize(
    "survivors",
    [
        NAMES[:3],
        NAMES[::-1],
        (*NAMES[:3], "stranger"),
        (*NAMES[:3], NAMES[2], NAMES[3]),
        (),
    ],
)
def test_a_list_that_is_short_unsorted_or_of_strangers_is_not_signed(
    ready: Nodes, survivors: tuple[str, ...]
) -> None:
    ready.rounds(1)
    ready.refused(Reason.MASKS, "clinic", lambda: ready.agree("clinic", survivors))


def test_whoever_is_not_on_a_list_opens_nothing_of_it(ready: Nodes) -> None:
    """It may sign what others survived; its word does not count among theirs, and it opens nothing."""
    ready.rounds(1)
    signatures = ready.signatures(ALL_BUT_WARD)
    assert len(signatures) == 4
    ready.refused(Reason.MASKS, "ward", lambda: ready.open("ward", ALL_BUT_WARD, signatures))
    outside = ready.agree("ward", ALL_BUT_WARD)
    assert isinstance(outside, Signed)
    signatures["ward"] = outside.signature
    ready.refused(Reason.MASKS, "ward", lambda: ready.open("ward", ALL_BUT_WARD, signatures))
    del signatures["clinic"]
    ready.refused(Reason.MASKS, "east", lambda: ready.open("east", ALL_BUT_WARD, signatures))


def test_a_draw_is_masked_once_whatever_is_asked_of_it(ready: Nodes) -> None:
    """Two vectors under one mask would show their difference: the same order, other weights, an earlier draw."""
    first = ready.round("east", 2)
    assert isinstance(first, MaskedReply)
    other = {name: value + 1 for name, value in ready.weights.items()}
    for changes in ({}, {"weights": other}, {"heads": {"north": protocol.Head(9, "x")}}):
        ready.refused(Reason.REPLAYED, "east", lambda changes=changes: ready.round("east", 2, **changes))  # type: ignore[misc]
    ready.refused(Reason.REPLAYED, "east", lambda: ready.round("east", 1))
    ready.refused(Reason.REPLAYED, "east", lambda: ready.round("east", 5))
    ready.refused(Reason.REPLAYED, "east", lambda: ready.round("east", 1, draw=-1))
    assert isinstance(ready.round("east", 3), MaskedReply), "a draw may be skipped"
    ready.refused(Reason.REPLAYED, "east", lambda: ready.round("east", 2))


def test_a_draw_cannot_be_masked_again_where_only_the_ledger_remembers_it(ready: Nodes) -> None:
    """A power cut may lose the note in `masks/`: the charge is on the disk."""
    done = ready.folders["east"] / "masks" / "run-1.done"
    before = done.read_bytes()
    assert isinstance(ready.round("east", 1), MaskedReply)
    done.write_bytes(before)
    open_node.cache_clear()
    ready.refused(Reason.REPLAYED, "east", lambda: ready.round("east", 1))


def test_one_list_is_signed_for_a_draw_and_only_that_is_opened(ready: Nodes) -> None:
    ready.rounds(1)
    signatures = ready.signatures(NAMES)
    ready.refused(Reason.REPLAYED, "east", lambda: ready.agree("east", ALL_BUT_WARD))
    ready.refused(Reason.REPLAYED, "east", lambda: ready.agree("east", NAMES))
    ready.refused(Reason.MASKS, "east", lambda: ready.agree("east", NAMES, draw=1))
    for survivors, signed, draw in ((ALL_BUT_WARD, signatures, 0), (NAMES, signatures, 1), (NAMES, {}, 0)):
        ready.refused(
            Reason.MASKS,
            "east",
            lambda survivors=survivors, signed=signed, draw=draw: ready.open("east", survivors, signed, draw),  # type: ignore[misc]
        )
    once, again = (ready.open("east", NAMES, signatures) for _ in range(2))
    assert isinstance(once, Opened)
    assert once == again, "asked twice it says the same, so nothing is learnt"
    swapped = {name: (own, key) for name, (key, own) in ((n, ready.sealed[n]["east"][0]) for n in NAMES)}
    nothing = ready.open("east", NAMES, signatures, sealed=swapped)
    assert isinstance(nothing, Opened)
    assert nothing.shares == {}, "a survivor's mask key stays closed"
    ready.rounds(2)
    assert isinstance(ready.agree("east", NAMES, draw=1), Signed)
    ready.refused(Reason.MASKS, "east", lambda: ready.open("east", NAMES, signatures))


def test_a_path_is_no_run(ready: Nodes) -> None:
    """`../masks/run-1` is the same file: under a second name a second list could be signed."""
    ready.rounds(1)
    for alias in ("../masks/run-1", "./run-1", str(ready.folders["east"] / "masks" / "run-1"), "", "\0"):
        ready.refused(
            Reason.MASKS,
            "east",
            lambda alias=alias: ready.agree("east", NAMES, run_id=alias),  # type: ignore[misc]
        )
    assert isinstance(ready.agree("east", ALL_BUT_WARD), Signed)
    ready.refused(Reason.MASKS, "east", lambda: ready.agree("east", NAMES, run_id="../masks/run-1"))


def test_two_processes_of_one_node_do_not_sign_two_lists(ready: Nodes) -> None:
    """Ray's workers each keep a node in memory; what one did binds the other."""
    order = AgreeOrder("run-1", ready.roster.transcript, 0, NAMES)
    one, two = (open_node.__wrapped__(ready.folders["east"]) for _ in range(2))
    for each in (one, two):
        with pytest.raises(Refused, match="was not masked here"):
            each.agree(order)  # each has read what was done so far: nothing
    one.round(ready.order(1))
    with pytest.raises(Refused) as refused:
        two.round(ready.order(1))
    assert refused.value.reason is Reason.REPLAYED
    two.agree(order)
    with pytest.raises(Refused) as refused:
        one.agree(dataclasses.replace(order, survivors=ALL_BUT_WARD))
    assert refused.value.reason is Reason.REPLAYED
    for each in (one, two):
        each.close()


def test_keys_are_dealt_once_and_go_when_new_ones_are_made(ready: Nodes) -> None:
    order = DealOrder(ready.plan, ready.roster.adverts)
    ready.refused(Reason.REPLAYED, "east", lambda: ready.ask("east", wire.pack_deal_order, order))
    ready.rounds(1)
    old = ready.roster
    ready.adverts()
    for ask in (lambda: ready.round("east", 2), lambda: ready.agree("east", NAMES)):
        ready.refused(Reason.MASKS, "east", ask)
    ready.refused(Reason.MASKS, "east", lambda: ready.ask("east", wire.pack_deal_order, order))
    ready.set_up()
    assert ready.roster.transcript != old.transcript
    ready.refused(Reason.MASKS, "east", lambda: ready.round("east", 2, transcript=old.transcript))
    assert isinstance(ready.round("east", 1), MaskedReply), "the first draw of new keys is another draw"


def swap(adverts: dict[str, secagg.Advert]) -> list[secagg.Advert]:
    one, two = adverts["clinic"], adverts["ward"]
    renamed = {
        "clinic": dataclasses.replace(two, agency="clinic"),
        "ward": dataclasses.replace(one, agency="ward"),
    }
    return list((adverts | renamed).values())


def forge(adverts: dict[str, secagg.Advert], name: str = "ward", plan: str = "") -> list[secagg.Advert]:
    """Keys of the coordinator's own under a name that the plan lists."""
    key = secagg.Ed25519PrivateKey.generate()
    own = secagg.Secrets("run-1", plan, name, 4, bytes(32))
    return list((adverts | {name: secagg.advert(own, key)}).values())


ADVERTS: dict[str, Callable[[dict[str, secagg.Advert]], list[secagg.Advert]]] = {
    "swapped": swap,
    "forged": forge,
    "a stranger's": lambda adverts: forge(adverts, "stranger"),
    "too few": lambda adverts: [adverts[name] for name in NAMES[:3]],
    "without the receiver": lambda adverts: [adverts[name] for name in NAMES if name != "east"],
    "twice": lambda adverts: [*adverts.values(), adverts["clinic"]],
    "fewer draws": lambda adverts: [
        dataclasses.replace(each, mask_keys=each.mask_keys[:1]) for each in adverts.values()
    ],
}


@pytest.mark.parametrize("case", list(ADVERTS))
def test_keys_that_do_not_check_are_not_dealt_to(nodes: Nodes, case: str) -> None:
    order = DealOrder(nodes.plan, tuple(ADVERTS[case](nodes.adverts())))
    nodes.refused(Reason.MASKS, "east", lambda: nodes.ask("east", wire.pack_deal_order, order))


def test_an_agency_that_is_not_pinned_gets_no_keys(nodes: Nodes) -> None:
    """The plan lists it; the coordinator cannot make it trusted."""
    path = nodes.folders["east"] / "node.toml"
    facts = tomllib.loads(path.read_text())
    del facts["peers"]["ward"]
    path.write_text(tomli_w.dumps(facts))
    order = KeysOrder(nodes.plan, 4)
    nodes.refused(Reason.MASKS, "east", lambda: nodes.ask("east", wire.pack_keys_order, order))
    assert "node.toml has no public key of ward" in (nodes.folders["east"] / "log" / "node.log").read_text()


def test_keys_are_for_one_plan(nodes: Nodes) -> None:
    """A plan that lists fewer agencies, to the same run: the keys of one are none of the other's."""
    fewer = nodes.plan.but(
        privacy=nodes.plan.privacy.but(
            shared=nodes.plan.privacy.shared.but(agencies=ALL_BUT_WARD)  # type: ignore[union-attr]
        )
    )
    adverts = tuple(nodes.adverts().values())
    order = DealOrder(fewer, adverts)
    nodes.refused(Reason.REPLAYED, "east", lambda: nodes.ask("east", wire.pack_deal_order, order))
    nodes.refused(Reason.MASKS, "ward", lambda: nodes.ask("ward", wire.pack_keys_order, KeysOrder(fewer, 4)))
    assert len(nodes.adverts(fewer)) == 4
    nodes.refused(Reason.MASKS, "east", lambda: nodes.ask("east", wire.pack_deal_order, order))
    nodes.set_up()
    nodes.refused(Reason.MASKS, "east", lambda: nodes.round("east", 1, plan=fewer))


@pytest.mark.parametrize("draws", [1_000_000, 55, 0, -1])
def test_nobody_makes_a_million_keys(nodes: Nodes, draws: int) -> None:
    order = KeysOrder(nodes.plan, draws)
    nodes.refused(Reason.MASKS, "east", lambda: nodes.ask("east", wire.pack_keys_order, order))


def test_a_masked_plan_is_never_answered_without_masks_nor_a_plain_one_with_them(
    ready: Nodes, make_shared: MakeStudy
) -> None:
    plain = make_shared("privacy=local").experiment.plan("run-1", simulation=True)
    ready.refused(Reason.MALFORMED, "east", lambda: ready.round("east", 1, draw=None))
    ready.refused(Reason.MALFORMED, "east", lambda: ready.round("east", 1, plan=plain))
    ready.refused(Reason.MASKS, "east", lambda: ready.ask("east", wire.pack_keys_order, KeysOrder(plain, 4)))


@pytest.mark.parametrize(
    "changes",
    [
        {"train": False},
        {"train": False, "evaluate": ("test",)},
        {"evaluate": ("tune",)},
        {"round": 2},
        {"round": 4, "train": False, "evaluate": ("tune", "test")},
        {"round": 99},
        {"train": False, "evaluate": ("tune", "test"), "draw": 3},
    ],
)
def test_a_draw_is_for_what_the_plan_has_in_its_round(ready: Nodes, changes: dict[str, Any]) -> None:
    ready.refused(Reason.MALFORMED, "east", lambda: ready.round("east", 1, **changes))
    assert isinstance(ready.round("east", 1), MaskedReply)


def test_one_agency_cannot_be_singled_out_with_the_little_noise_of_others_tables(
    ready: Nodes, vectors: Vectors
) -> None:
    """An attack: one trains while the others fill in tables, whose noise is far smaller on the same grid.

    The masks do cancel on the shorter vector, so what hides the one gradient would be its own share of noise
    and theirs of another size: not the h shares that it is charged for.
    """
    tables = {"train": False, "evaluate": ("tune", "test"), "round": 4}
    victim = ready.round("east", 1)
    assert isinstance(victim, MaskedReply)
    for name in NAMES:
        if name != "east":
            ready.refused(Reason.MALFORMED, name, lambda name=name: ready.round(name, 1, **tables))  # type: ignore[misc]
    privacy = ready.plan.privacy
    train, table = privacy.gradient_release(1), privacy.table_release("test")
    assert isinstance(train, SharedRelease)
    assert isinstance(table, SharedRelease)
    assert train.share_variance > 100 * table.share_variance, "or there would be nothing to gain"


@pytest.mark.parametrize(
    "changes", [{"parameters": 1}, {"parameters": 9, "steps_per_norm": 4000}, {"cells": 1}, {"cells": 81}]
)
def test_sizes_that_lie_are_malformed_before_anything_is_reserved(
    nodes: Nodes, changes: dict[str, int]
) -> None:
    nodes.set_up()
    plan = nodes.plan.but(
        privacy=nodes.plan.privacy.but(shared=nodes.plan.privacy.shared.but(**changes))  # type: ignore[union-attr]
    )
    everything = [
        lambda: nodes.ask("east", wire.pack_ready_order, plan),
        lambda: nodes.ask("east", wire.pack_keys_order, KeysOrder(plan, 4)),
        lambda: nodes.ask("east", wire.pack_deal_order, DealOrder(plan, nodes.roster.adverts)),
        lambda: nodes.round("east", 1, plan=plan),
    ]
    for ask in everything:
        nodes.refused(Reason.MALFORMED, "east", ask)
    assert [entry.action for entry in nodes.node("east").ledger.entries()] == ["people"]


@pytest.mark.parametrize(
    "changes", [{"steps_per_norm": 2**40}, {"steps_per_person": 2**40}, {"steps_per_norm": 2**29, "bits": 32}]
)
def test_noise_that_cannot_be_drawn_or_masked_is_malformed_before_anything_is_reserved(
    nodes: Nodes, changes: dict[str, int]
) -> None:
    plan = nodes.plan.but(
        privacy=nodes.plan.privacy.but(shared=nodes.plan.privacy.shared.but(**changes))  # type: ignore[union-attr]
    )
    nodes.refused(Reason.MALFORMED, "east", lambda: nodes.ask("east", wire.pack_ready_order, plan))


def deployed(nodes: Nodes, **policy: Any) -> TrainPlan:
    """The nodes as real ones, with a policy that a person wrote, and a plan without a seed."""
    rules = permits(min_people=20, max_honest=3, budget={"life": 20.0, "delta": 1e-5})
    for folder in nodes.folders.values():
        (folder / "policy.toml").write_text(tomli_w.dumps(rules | policy))
    nodes.plan = nodes.plan.but(seed=None)
    return nodes.plan


@pytest.mark.parametrize(
    ("policy", "line"),
    [
        ({"max_honest": 2}, "max_honest: the plan rests on 3 honest agencies, the most is 2"),
        ({"max_honest": 0}, "max_honest: the plan rests on 3"),
        ({"min_colluders": 2}, "min_colluders: the plan withstands 1, the least is 2"),
    ],
)
def test_a_plan_that_rests_on_more_honesty_than_the_policy_has_is_refused(
    nodes: Nodes, policy: dict[str, int], line: str
) -> None:
    plan = deployed(nodes, **policy)
    for ask in (
        lambda: nodes.ask("east", wire.pack_ready_order, plan),
        lambda: nodes.ask("east", wire.pack_keys_order, KeysOrder(plan, 4)),
        lambda: nodes.ask("east", wire.pack_deal_order, DealOrder(plan, ())),
        lambda: nodes.round("east", 1),
    ):
        nodes.refused(Reason.PRIVACY, "east", ask)
    log = (nodes.folders["east"] / "log" / "node.log").read_text().splitlines()
    assert len(log) == 4
    assert all(line in each for each in log)


def test_a_deployed_node_masks_noise_that_no_seed_repeats(nodes: Nodes, vectors: Vectors) -> None:
    deployed(nodes)
    for _ in range(2):
        nodes.set_up()
        nodes.rounds(1)
    one, two = vectors.values()
    assert set(one) == set(NAMES)
    for name in NAMES:
        assert (one[name] != two[name]).any()
    with pytest.raises(Refused) as refused:
        open_node(nodes.folders["east"]).round(nodes.order(2, plan=nodes.plan.but(seed=0)))
    assert refused.value.reason is Reason.PRIVACY


# --- 5. a coordinator that only listens -----------------------------------------------------------------


def test_no_part_of_a_vector_is_in_anything_that_was_sent(
    make_shared: MakeStudy, tmp_path: Path, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact: list[np.ndarray] = []
    for step in ("_exact_sum", "_exact_table"):
        real = getattr(Node, step)

        def keep(self: Node, *what: Any, real: Any = real) -> np.ndarray:
            exact.append(real(self, *what))
            return exact[-1]

        monkeypatch.setattr(Node, step, keep)
    _, grid = federate(make_shared(), tmp_path, *loses("ward", rounds=(2,)))
    sent = b"".join(
        record_bytes(message) + str(message.content["fedrisk"]["json"]).encode() for _, message in grid.sent
    )
    hidden = [vector for each in vectors.values() for vector in each.values()]
    hidden += [masks.wrap(values, 32) for values in exact] + [masks.wrap(values, 64) for values in exact]
    assert len(hidden) == 4 * 5 + 2 * (3 + 2) * 5
    for vector in hidden:
        raw = vector.tobytes()
        size = min(64, len(raw))
        windows = {raw[at : at + size] for at in range(0, len(raw) - size + 1, vector.itemsize)}
        assert not [
            w for w in windows if w.count(0) < size - 4 and (w in sent or base64.b64encode(w) in sent)
        ]
    (masked,) = (m for n, m in grid.sent if n == "east" and not is_order(m) and "masked" in m.content["fedrisk"]
                 and m.metadata.group_id == "1")  # fmt: skip
    assert record_bytes(masked)[-64:] in sent, "the search finds what is there"


def record_bytes(message: Message) -> bytes:
    """The arrays of a message as they travel."""
    return b"".join(value for value in message.content["fedrisk"].values() if isinstance(value, bytes))


def test_a_late_vector_stays_hidden_when_all_else_of_its_draw_is_open(ready: Nodes, vectors: Vectors) -> None:
    """ward is late: its mask key is opened, which takes its pair masks away, and its self-mask is not."""
    roster, first = ready.roster, ready.rounds(1)
    before = ready.opened(NAMES)
    sent = ready.rounds(2)
    opened = ready.opened(ALL_BUT_WARD, draw=1)
    assert [sorted(shares) for shares in opened.values()] == [list(NAMES)] * 4
    seeds = dict(secagg._seeds(roster, ALL_BUT_WARD, opened))
    earlier = dict(secagg._seeds(roster, NAMES, before))
    secrets = ready.node("ward").masks._session("run-1").secrets
    assert seeds["ward"] == secrets.mask_seed(1)
    assert earlier["ward"] == secrets.self_seed(0)

    def stripped(vector: np.ndarray, draw: int, key_seed: bytes, self_seed: bytes | None) -> np.ndarray:
        key = secagg._mask_key(key_seed, "run-1", "ward", draw)
        added, subtracted = secagg._pair_keys(key, roster, draw, "ward", NAMES)
        own = [] if self_seed is None else [secagg._self_key(self_seed, roster, draw, "ward")]
        return masks.add_masks(vector, subtracted, [*added, *own])

    late, hidden = sent["ward"], vectors[roster.transcript, 1]["ward"]
    np.testing.assert_array_equal(
        stripped(late, 1, seeds["ward"], secrets.self_seed(1)), hidden
    )  # the control
    for self_seed in (None, *earlier.values(), *seeds.values(), secrets.self_seed(0)):
        assert (stripped(late, 1, seeds["ward"], self_seed) != hidden).mean() > 0.9
    hidden = vectors[roster.transcript, 0]["ward"]
    np.testing.assert_array_equal(
        stripped(first["ward"], 0, secrets.mask_seed(0), earlier["ward"]), hidden
    )  # the control
    for key_seed in (*seeds.values(), *earlier.values()):  # of one draw; another's key is another key
        assert (stripped(first["ward"], 0, key_seed, earlier["ward"]) != hidden).mean() > 0.9


# --- 6. the noise ---------------------------------------------------------------------------------------


def within(values: np.ndarray, variance: float, sigmas: float = 4) -> bool:
    """Whether the mean square of `values` is what `variance` gives, to `sigmas` of its own deviation."""
    return bool(
        abs(np.mean(np.square(values.astype(float))) / variance - 1) < sigmas * (2 / values.size) ** 0.5
    )


def test_every_agency_adds_its_whole_share_to_every_coordinate_held_there_or_not(nodes: Nodes) -> None:
    """east holds no care block: its noise there is as large as anywhere, or it would be others' that hides them."""
    nodes.set_up()
    release = nodes.plan.train_release()
    assert isinstance(release, SharedRelease)
    node = nodes.node("east")
    work = Work(nodes.order(1, train=True), node._records(nodes.plan), torch.nn.Module(), fresh_draw())
    drawn = np.array(
        [
            node._share(dataclasses.replace(work, order=nodes.order(i, train=True)), "train", release)
            for i in range(1, 2001)
        ]
    )  # the seed is of the round
    held = np.append(node._held.numpy(), 1.0)  # and the bias
    assert drawn.shape == (2000, held.size)
    assert 0 < (held == 0).sum() < held.size
    for column in drawn.T:
        assert within(column, release.share_variance)
    assert within(drawn[:, held == 0], release.share_variance)
    assert not within(drawn[:, held == 0], release.share_variance * 0.9), "2,000 draws can tell"


def test_the_noise_of_a_sum_is_a_share_of_each_survivor(
    make_shared: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sums: Sums
) -> None:
    """With nothing in them, the sums are the noise: of 5, and of 4 where one dropped out."""
    monkeypatch.setattr(
        Node,
        "_exact_sum",
        lambda self, work, *_: np.zeros(work.order.plan.privacy.shared.parameters, np.int64),
    )
    monkeypatch.setattr(
        Node, "_exact_table", lambda self, work, *_: np.zeros(work.order.plan.privacy.shared.cells, np.int64)
    )
    study = make_shared("model=mlp", "model.hidden=[128]", "evaluation.bins=200")
    result, _ = federate(study, tmp_path, *loses("north", rounds=(2,)))
    plan = study.experiment.plan("run-1", simulation=True)
    train, table = plan.train_release(), plan.table_release("test")
    assert isinstance(train, SharedRelease)
    assert isinstance(table, SharedRelease)
    assert table != plan.train_release()
    found = list(sums.values())
    assert [len(survivors) for survivors, _ in found] == [5, 4, 5, 5]
    for survivors, got in found[:3]:
        assert got.size == train.dimension > 700
        assert within(got, len(survivors) * train.share_variance)
        for wrong in (train.honest, 1, 2 * len(survivors)):
            assert not within(got, wrong * train.share_variance)
    test = found[3][1][table.dimension :]
    assert test.size == 800
    assert within(test, 5 * table.share_variance)
    # the intervals of the result know it: variance of a cell, in people
    assert coordinator.noise_variance(plan, "test", "+4") == pytest.approx(
        4 * table.share_variance / plan.privacy.shared.steps_per_person**2  # type: ignore[union-attr]
    )
    assert result["final"]["metrics"]["agencies"] == {}


def test_an_agency_with_nobody_in_the_batch_adds_its_noise_and_is_charged(
    make_shared: MakeStudy, tmp_path: Path, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Node._exact_sum

    def empty(self: Node, *what: Any) -> np.ndarray:
        got = real(self, *what)
        assert not got.any(), "a chance of 1e-9 draws nobody"
        return got

    monkeypatch.setattr(Node, "_exact_sum", empty)
    study = make_shared("privacy.sample_rate=1e-9", "privacy.epsilon=null", "privacy.noise_multiplier=1.0",
                        "privacy.evaluate_epsilon=1", "local.learning_rate=1e-9")  # fmt: skip
    federate(study, tmp_path)
    rounds = list(vectors.values())[:3]
    assert all((each[name] != 0).mean() > 0.9 for each in rounds for name in NAMES)
    for name in NAMES:
        with ledger_of(tmp_path, name) as ledger:
            assert sum(release.kind == "train" for release in ledger.releases()) == 3


# --- 7. nodes that forget -------------------------------------------------------------------------------


class Forgetful(Wire):
    """Each message meets a new process, as under a stock SuperNode: nothing is in memory."""

    node: Node | None = None

    def find(self, context: Any) -> Node:
        self.close()
        self.node = open_node.__wrapped__(Path(str(context.node_config["node-dir"])))
        return self.node

    def close(self) -> None:
        if self.node is not None:
            self.node.close()


def test_a_run_is_the_same_where_every_message_meets_a_new_process(
    make_shared: MakeStudy, tmp_path: Path
) -> None:
    study = make_shared("rounds=2")
    federate(study, tmp_path / "kept")
    grid = Forgetful(make_nodes(study, tmp_path / "forgot"), *loses("clinic", kind=protocol.AGREE))
    result = run_federation(grid, study.experiment, FACTS, tmp_path / "forgot")
    grid.close()
    same(last(tmp_path / "kept"), last(tmp_path / "forgot"))
    assert [record["void"] for record in result["rounds"]] == [None, None]


def test_a_node_that_lost_its_masks_sits_one_round_out_and_is_back(
    make_shared: MakeStudy, tmp_path: Path, sums: Sums
) -> None:
    def push(name: str, message: Message) -> Message:
        if name == "ward" and message.metadata.group_id == "2":
            for path in (tmp_path / "nodes" / "ward" / "masks").iterdir():
                path.unlink()
        return message

    result, grid = federate(make_shared(), tmp_path, push)
    assert result["rounds"][1]["refused"] == {"ward": "MASKS"}
    assert [record["void"] for record in result["rounds"]] == [None] * 3
    assert [record["replied"] for record in result["rounds"]] == [
        list(NAMES),
        list(ALL_BUT_WARD),
        list(NAMES),
    ]
    orders = grid.round_orders()
    assert orders[1].transcript != orders[2].transcript
    assert result["agencies"]["ward"]["status"] == "trained"
    as_stated(result, tmp_path)
    with ledger_of(tmp_path, "ward") as ledger:
        assert sum(release.kind == "train" for release in ledger.releases()) == 2, "nothing for the lost one"


def test_half_of_a_note_was_never_acted_on(ready: Nodes) -> None:
    """A crash in the middle of a line; the line before it is what is so."""
    ready.rounds(1)
    ready.signatures(NAMES)
    path = ready.folders["east"] / "masks" / "run-1.done"
    for half in ('\n{"transcript": "', '\n{"transcript"', "\n", "\n[]\n", '\n{"masked": 7}\n'):
        with path.open("a") as file:
            file.write(half)
        ready.refused(Reason.REPLAYED, "east", lambda: ready.agree("east", ALL_BUT_WARD))
    assert isinstance(ready.round("east", 2), MaskedReply)
    path.unlink()
    ready.refused(Reason.MASKS, "east", lambda: ready.agree("east", NAMES, draw=1))


def test_secrets_go_with_the_last_draw(make_shared: MakeStudy, tmp_path: Path) -> None:
    study = make_shared("rounds=1", "evaluation.checkpoints=0")
    during: set[str] = set()

    def push(name: str, message: Message) -> Message:
        during.update(path.name for path in (tmp_path / "nodes" / name).glob("masks/*"))
        return message

    federate(study, tmp_path, push)
    assert during == {"run-1.keys", "run-1.done"}
    assert not list(tmp_path.glob("nodes/*/masks/*"))


# --- 8. a coordinator that dies -------------------------------------------------------------------------

WHOLE: list[Weights] = []  # of the run that nobody stopped, once


@pytest.mark.parametrize(
    ("kind", "order", "dies_at"),
    [
        (protocol.ROUND, True, 2),
        (protocol.ROUND, False, 2),
        (protocol.AGREE, False, 2),
        (protocol.OPEN, False, 2),
        (protocol.KEYS, False, 0),
        (protocol.OPEN, False, 4),
    ],
)
def test_a_run_whose_coordinator_died_goes_on_to_the_same_weights(
    make_shared: MakeStudy, tmp_path: Path, kind: str, order: bool, dies_at: int
) -> None:
    """With new keys; what was asked and got lost was charged, and the result says so."""
    study = make_shared()
    if not WHOLE:
        federate(study, tmp_path / "whole")
        WHOLE.append(last(tmp_path / "whole"))
    now = [0]

    def push(_: str, message: Message) -> Message:
        if message.metadata.message_type == protocol.ROUND:
            now[0] = wire.read_round_order(message).round
        return dies(message) if order else message

    def dies(message: Message) -> Message:
        if message.metadata.message_type == kind and now[0] == dies_at:
            raise KeyboardInterrupt
        return message

    pull = None if order else lambda _, message: dies(message)
    with pytest.raises(KeyboardInterrupt):
        federate(study, tmp_path / "stopped", push, pull)
    resumed, _ = federate(study, tmp_path / "stopped")
    same(WHOLE[0], last(tmp_path / "stopped"))
    assert [record["round"] for record in resumed["rounds"]] == [1, 2, 3]
    as_stated(resumed, tmp_path / "stopped")
    for name in NAMES:
        with ledger_of(tmp_path / "stopped", name) as ledger:
            charged = {(r.kind, r.part): 0 for r in ledger.releases()}
            for release in ledger.releases():
                charged[release.kind, release.part] += 1
        assert charged["train", "train"] == (4 if dies_at == 2 and not order else 3)


# --- 9. what the result says ----------------------------------------------------------------------------


def test_the_result_states_the_loss_to_each_viewer_as_the_ledgers_do(
    make_shared: MakeStudy, tmp_path: Path
) -> None:
    result, _ = federate(make_shared("rounds=4", "evaluation.checkpoints=2"), tmp_path)
    said = result["privacy"]
    for name in NAMES:
        to = result["agencies"][name]["epsilon_to"]
        assert 0 < to["public"] < to["coordinator"] < to["everybody"]
        with ledger_of(tmp_path, name) as ledger:
            for viewer in VIEWERS:
                assert to[viewer] == pytest.approx(ledger.epsilon(1e-5, viewer), rel=1e-9)
        assert result["agencies"][name]["epsilon"]["total"] == to["coordinator"]
        assert to == pytest.approx(said["epsilon_to"])
    assert said["epsilon_busiest"] == said["epsilon_to"]["coordinator"] <= 3.0
    several = said["epsilon_at_several_to"]
    assert several["coordinator"] == said["epsilon_at_several_agencies"]
    for viewer in VIEWERS:
        assert list(several[viewer]) == ["1", "2", "3"]
        assert several[viewer]["1"] == pytest.approx(said["epsilon_to"][viewer])
        assert several[viewer]["1"] < several[viewer]["2"] < several[viewer]["3"]
    facts = {key: said["shared"][key] for key in ("agencies", "colluders", "dropouts", "honest", "threshold")}
    assert result["tables"] == "summed"
    assert result["analysis"]["recalibration"] == {}
    assert facts == {"agencies": list(NAMES), "colluders": 1, "dropouts": 1, "honest": 3, "threshold": 4}
    assert said["mechanism"] == "shared"
    for record in (*result["checkpoints"], result["final"]):
        assert record["metrics"]["agencies"] == {}
        assert record["metrics"]["overall"]["people"]["value"] is not None
        assert record["metrics"]["agency_gaps"] == record["metrics"]["between_agencies"] == {}
        assert record["epsilon_busiest"] <= said["epsilon_busiest"]
    assert json.loads(json.dumps(result)) == result


# --- 10. what cannot be shared --------------------------------------------------------------------------

REFUSED: dict[str, tuple[list[str], str]] = {
    "too many may drop out": (
        ["privacy.dropouts=2"],
        "privacy.shared noise can be shared by more than 2 x dropouts + colluders = 5 agencies, got 5: lower "
        "privacy.dropouts or privacy.colluders, or use privacy=local",
    ),
    "too many may collude": (["privacy.colluders=3"], "2 x dropouts + colluders = 5 agencies, got 5"),
    "another strategy": (
        ["strategy=fedadam"],
        "strategy must be dp_fedsgd where privacy is shared, got fedadam: behind masks there is only a sum, so "
        "nothing that needs each agency's own steps, loss or rank can be used",
    ),
    "own steps": (["local.steps=2"], "local.steps must be 1 for strategy dp_fedsgd"),
}


def plan_of(make: MakeStudy, *overrides: str) -> TrainPlan:
    return make(*overrides).experiment.plan("run-1", simulation=True)


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_cannot_be_shared_is_refused_with_one_sentence(make_shared: MakeStudy, case: str) -> None:
    overrides, sentence = REFUSED[case]
    with pytest.raises(SettingsError) as refused:
        plan_of(make_shared, *overrides)
    assert sentence in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_two_agencies_cannot_share(make_shared: MakeStudy, tmp_path: Path) -> None:
    listing = yaml.safe_load((tmp_path / "agencies.yaml").read_text())
    listing["agencies"] = listing["agencies"][:2]
    (tmp_path / "agencies.yaml").write_text(yaml.safe_dump(listing))
    with pytest.raises(SettingsError, match="of two, each learns the other's sum") as refused:
        plan_of(make_shared, "privacy.dropouts=0")
    assert len(str(refused.value).splitlines()) == 1


def test_weights_that_are_not_public_sizes_cannot_be_shared(make_shared: MakeStudy, tmp_path: Path) -> None:
    listing = yaml.safe_load((tmp_path / "agencies.yaml").read_text())
    listing["agencies"][0]["weight"] = 7.0
    (tmp_path / "agencies.yaml").write_text(yaml.safe_dump(listing))
    with pytest.raises(SettingsError, match="each agency's weight must be its public_size") as refused:
        plan_of(make_shared)
    assert len(str(refused.value).splitlines()) == 1
