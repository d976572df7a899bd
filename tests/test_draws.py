"""One order is one draw: an order that comes again costs nothing, and a killed node makes the same draw again."""

import stat
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import yaml
from conftest import CONTRACT, MakeStudy, people, permits, write_table

from clients import node as nodes
from clients.app import make_app
from clients.draws import REPLIES, Draws
from clients.node import Node, open_node
from experiments.engines import LocalGrid
from federation import wire
from federation.protocol import RoundOrder, RoundReply
from models import risk
from models.features import layout

RECORDS = b"r" * 32
KILLED = -9


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A node that guards records: no simulation."""
    home = tmp_path / "north"
    home.mkdir()
    write_table(home / "people.csv", people(0, 300))
    facts = {"name": "north", "kind": "police", "table": "people.csv", "contract": "contract.yaml"}
    (home / "node.toml").write_text(tomli_w.dumps(facts | {"public_size": 300}))
    policy = permits(min_people=100, budget={"life": 50.0, "delta": 1e-5})
    (home / "policy.toml").write_text(tomli_w.dumps(policy))
    (home / "contract.yaml").write_text(yaml.safe_dump(CONTRACT, sort_keys=False))
    return home


@pytest.fixture
def order(make_study: MakeStudy) -> RoundOrder:
    experiment = make_study().experiment
    plan = experiment.plan("run-1", simulation=False)
    module = risk.build(plan.model, len(layout(experiment.data_contract).names), 0)
    return RoundOrder(plan, 1, risk.weights_of(module), True, ("tune",))


def ask(node: Node, order: RoundOrder) -> Any:
    grid = LocalGrid(make_app(lambda _: node), [{}])
    (message,) = grid.send_and_receive([wire.pack_round_order(order, 1)])
    return wire.read_reply(message)


def charges(node: Node) -> list[str]:
    return [entry.order_id for entry in node.ledger.entries() if entry.action == "charge"]


def same(one: RoundReply, other: RoundReply) -> bool:
    assert one.delta is not None
    assert other.delta is not None
    pairs = [(one.delta[name], other.delta[name]) for name in one.delta]
    pairs += [(one.tables[part], other.tables[part]) for part in one.tables]
    return all(np.array_equal(a, b) for a, b in pairs)


def test_an_order_that_comes_again_gets_the_same_reply_and_is_not_charged(
    home: Path, order: RoundOrder
) -> None:
    node = open_node(home)
    first = ask(node, order)
    before = charges(node)
    assert len(before) == 2, "a table and the training"
    again = ask(node, replace(order, heads={"north": node.head}))
    assert same(first, again)
    assert (again.releases, again.head) == (first.releases, first.head)
    assert charges(node) == before


@pytest.mark.parametrize("change", ["weights", "round", "table", "run"])
def test_whatever_is_asked_otherwise_is_another_draw_and_charged(
    home: Path, order: RoundOrder, change: str
) -> None:
    node = open_node(home)
    first = ask(node, order)
    other = {
        "weights": replace(order, weights={name: value + 1e-6 for name, value in order.weights.items()}),
        "round": replace(order, round=2),
        "table": replace(order, evaluate=()),
        "run": replace(order, plan=order.plan.but(run_id="run-2")),
    }[change]
    before = len(charges(node))
    reply = ask(node, other)
    assert len(charges(node)) == before + len(other.releases)
    assert not any(np.array_equal(first.delta[name], reply.delta[name]) for name in first.delta)


def test_a_draw_that_failed_half_way_is_the_same_draw_under_the_same_charge(
    home: Path, order: RoundOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = open_node(home)
    made: list[Any] = []
    real = Node._own_noise

    def spied(self: Node, work: nodes.Work) -> RoundReply:
        made.append(real(self, work))
        if len(made) == 1:
            raise MemoryError
        return made[-1]  # type: ignore[no-any-return]

    monkeypatch.setattr(Node, "_own_noise", spied)
    assert ask(node, order).reason == "UNAVAILABLE"
    assert len(charges(node)) == 2
    assert same(ask(node, order), made[0])
    assert len(made) == 2
    assert len(charges(node)) == 2


def test_a_draw_is_begun_anew_and_charged_where_the_records_have_changed(
    home: Path, order: RoundOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same noise the two replies would differ by what the records differ by."""
    node = open_node(home)
    made: list[Any] = []
    real = Node._own_noise
    monkeypatch.setattr(Node, "_keep_reply", lambda *_: None)  # the first reply is lost with its node
    monkeypatch.setattr(Node, "_own_noise", lambda self, work: made.append(work.draw.key) or real(self, work))
    ask(node, order)
    write_table(home / "people.csv", people(0, 300)[1:])
    node._resident.clear()
    ask(node, order)
    assert len(set(made)) == 2
    assert len(charges(node)) == 4


def test_the_key_is_gone_once_the_reply_is_kept_and_both_are_private(tmp_path: Path) -> None:
    draws = Draws(tmp_path / "draws")
    draw = draws.begin("run-1/1#ab", RECORDS)
    (key,) = draws.folder.iterdir()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(draws.folder.stat().st_mode) == 0o700
    assert draws.begin("run-1/1#ab", RECORDS) == replace(draw, again=True)
    assert draws.reply("run-1/1#ab") is None
    draws.keep("run-1/1#ab", b"reply")
    assert draws.reply("run-1/1#ab") == b"reply"
    (reply,) = draws.folder.iterdir()
    assert reply.suffix == ".reply"
    assert stat.S_IMODE(reply.stat().st_mode) == 0o600
    assert draw.key not in reply.read_bytes()


def test_half_a_key_is_no_key(tmp_path: Path) -> None:
    draws = Draws(tmp_path / "draws")
    draw = draws.begin("order", RECORDS)
    (key,) = draws.folder.iterdir()
    key.write_bytes(key.read_bytes()[:40])
    other = draws.begin("order", RECORDS)
    assert not other.again
    assert other.key != draw.key


def test_streams_of_one_draw_differ_by_purpose_and_do_not_depend_on_each_other(tmp_path: Path) -> None:
    draw = Draws(tmp_path / "draws").begin("order", RECORDS)
    sampling = draw.stream("sampling")
    assert sampling.bytes(32) != draw.stream("noise").bytes(32)
    sampling.bytes(1000)
    assert draw.stream("noise").bytes(32) == draw.stream("noise").bytes(32)


def test_only_the_last_replies_are_kept(tmp_path: Path) -> None:
    draws = Draws(tmp_path / "draws")
    for i in range(REPLIES + 5):
        draws.keep(f"order {i}", b"reply")
    assert len(list(draws.folder.iterdir())) == REPLIES
    assert draws.reply(f"order {REPLIES + 4}") == b"reply"


KILL = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    from clients import app, draws, ledger, node
    from federation import wire
    from flwr.common.serde import message_from_proto
    from flwr.proto.message_pb2 import Message
    from flwr.supercore.task_identity import TaskIdentity

    home, order, where = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    owner, name = {
        "before the charge": (ledger.Ledger, "charge"),
        "after the charge": (node.Node, "_own_noise"),
        "before the reply is kept": (wire, "freeze"),
        "before the key is gone": (Path, "unlink"),
        "never": (draws.Draws, "nothing"),
    }[where]
    if where != "never":
        setattr(owner, name, die)
    found = node.open_node(home)
    message = message_from_proto(Message.FromString(order.read_bytes()))
    message.metadata.__dict__["_message_id"] = "1"
    reply = app.make_app(lambda _: found)(message, None)
    sys.stdout.buffer.write(wire.freeze(wire.read_reply(reply)))
    """
)


@pytest.mark.long
@pytest.mark.parametrize(
    "where", ["before the charge", "after the charge", "before the reply is kept", "before the key is gone"]
)
def test_a_killed_node_ends_with_one_charge_for_the_one_reply_that_left(
    home: Path, order: RoundOrder, tmp_path: Path, where: str
) -> None:
    from flwr.common.serde import message_to_proto

    packed = tmp_path / "order"
    packed.write_bytes(message_to_proto(wire.pack_round_order(order, 1)).SerializeToString())

    def run(where: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-c", KILL, str(home), str(packed), where]
        return subprocess.run(command, capture_output=True, check=False, timeout=60)

    killed = run(where)
    assert (killed.returncode, killed.stdout) == (KILLED, b""), killed.stderr
    replies = [run("never") for _ in range(2)]
    assert replies[0].returncode == 0, replies[0].stderr
    assert replies[0].stdout == replies[1].stdout
    assert isinstance(wire.thaw(replies[0].stdout), RoundReply)
    node = open_node(home)
    assert charges(node) == [order.order_id] * 2, "a table and the training, once"
    assert not list((home / "draws").glob("*.key"))


def test_a_full_disk_at_the_ledger_leaves_nothing_and_the_order_can_come_again(
    home: Path, order: RoundOrder
) -> None:
    node = open_node(home)
    before = node.ledger.head
    (pages,) = node.ledger._db.execute("PRAGMA page_count").fetchone()
    node.ledger._db.execute(f"PRAGMA max_page_count = {pages}")
    replies = [ask(node, replace(order, round=number)) for number in range(1, 40)]
    refused = [reply for reply in replies if not isinstance(reply, RoundReply)]
    assert refused, "the ledger's file had room for everything"
    assert {reply.reason for reply in refused} == {"UNAVAILABLE"}
    assert len(charges(node)) == 2 * (len(replies) - len(refused)), (
        "what left is charged, and nothing else is"
    )
    node.ledger._db.execute("PRAGMA max_page_count = 1000000")
    last = replace(order, round=39)
    assert isinstance(ask(node, last), RoundReply)
    assert charges(node)[-2:] == [last.order_id] * 2
    assert node.ledger.head[0] > before[0]
    node.ledger.verify()
