"""A ledger that was set back shows: the coordinator, and behind it a neighbour, keep the newest entry they saw.

Deployed nodes, with lifetime ledgers that several runs charge. `Ledger.holds` alone is in test_ledger.py.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from conftest import FIVE, MakeStudy, permits
from flwr.app import Message
from test_masked import NAMES, Change, Nodes, Wire, make_nodes

from clients.ledger import Ledger
from clients.node import open_node
from experiments.config import Study
from federation import protocol, wire
from federation.plan import Reason, Refused
from federation.protocol import DealOrder, Head, Keys, KeysOrder, Ready, Refusal, RoundOrder
from federation.server.result import RunFacts
from federation.server.rounds import Heads, run_federation

POLICY = permits(min_people=20, max_honest=3, budget={"life": 100.0, "delta": 1e-5})
LOCAL, SHARED = ("strategy=fedavg", "privacy=local"), ()


class Town:
    """Five agencies for good, and coordinators that come and go; each has a folder for all its runs."""

    def __init__(self, make: MakeStudy, home: Path, *overrides: str) -> None:
        self.study: Study = make("rounds=2", "privacy.epsilon=1", *overrides)
        self.home = home
        self.folders = {path.name: path for path in make_nodes(self.study, home)}
        for folder in self.folders.values():
            (folder / "policy.toml").write_text(tomli_w.dumps(POLICY))
        self.runs = 0
        self.grid = Wire(list(self.folders.values()))

    def run(self, coordinator: str = "outputs", push: Change | None = None) -> dict[str, Any]:
        """Another run. Every process is a new one."""
        self.runs += 1
        self.restart()
        folder = self.home / coordinator / f"run-{self.runs}"
        folder.mkdir(parents=True)
        self.grid = Wire(list(self.folders.values()), push)
        facts = RunFacts(folder.name, "superlink", simulation=False)
        result = run_federation(self.grid, self.study.experiment, facts, folder)
        self.restart()
        return result

    def restart(self) -> None:
        for folder in self.folders.values():
            open_node(folder).close()
        open_node.cache_clear()

    def heads(self, coordinator: str = "outputs") -> Path:
        return self.home / coordinator / "heads.json"

    def ledger(self, name: str) -> Ledger:
        path = self.folders[name] / "ledger.db"
        return Ledger(path, budget=None, scope="lifetime", people=f"{name}/people")

    def charges(self, name: str) -> list[str]:
        with self.ledger(name) as ledger:
            return [entry.order_id for entry in ledger.entries() if entry.action == "charge"]

    def head(self, name: str) -> Head:
        with self.ledger(name) as ledger:
            return Head(*ledger.head)

    def copy(self, name: str, to: str = "copy") -> None:
        """As a backup would: the file and its log."""
        for path in self.folders[name].glob("ledger.db*"):
            (self.home / to).mkdir(exist_ok=True)
            shutil.copy(path, self.home / to / path.name)

    def put_back(self, name: str, of: str = "copy") -> None:
        for path in self.folders[name].glob("ledger.db*"):
            path.unlink()
        for path in (self.home / of).iterdir():
            shutil.copy(path, self.folders[name] / path.name)

    def kept_by_peers(self) -> dict[str, Head]:
        """By whose ledger it is, what a neighbour keeps."""
        kept = {}
        for folder in self.folders.values():
            if (folder / "keeps.json").exists():
                for name, head in json.loads((folder / "keeps.json").read_text()).items():
                    kept[name] = Head(*head)
        return kept


MakeTown = Callable[..., Town]


@pytest.fixture
def make_town(make_shared: MakeStudy, tmp_path: Path) -> MakeTown:
    return lambda *overrides: Town(make_shared, tmp_path, *overrides)


def refused(result: dict[str, Any]) -> dict[str, str]:
    return {
        name: facts["reason"] for name, facts in result["agencies"].items() if facts["status"] == "refused"
    }


# --- nothing happens where nothing is wrong -------------------------------------------------------------


@pytest.mark.parametrize("overrides", [LOCAL, SHARED], ids=["local", "shared"])
def test_undisturbed_ledgers_are_charged_for_what_leaves_and_no_one_is_refused(
    make_town: MakeTown, overrides: tuple[str, ...]
) -> None:
    town = make_town(*overrides)
    for number in (1, 2):
        result = town.run()
        assert refused(result) == {}
        assert [record["replied"] for record in result["rounds"]] == [list(NAMES)] * 2
        for name in NAMES:
            assert len(town.charges(name)) == 4 * number, "two rounds, tune, test: heads cost nothing"
            with town.ledger(name) as ledger:
                actions = {entry.action for entry in ledger.entries()}
            assert actions == {"people", "plan", "filter", "reserve", "charge"}
    kept = {name: Head(*head) for name, head in json.loads(town.heads().read_text()).items()}
    assert kept == {name: town.head(name) for name in NAMES}
    assert set(town.kept_by_peers()) == set(NAMES), "each is kept by one other"
    for name, head in town.kept_by_peers().items():
        with town.ledger(name) as ledger:
            assert ledger.holds(*head)


def test_each_agency_keeps_the_one_before_it_among_those_that_take_part(make_town: MakeTown) -> None:
    """An agency without the label gets no orders and would keep nothing: it is no one's keeper."""
    town = make_town(*LOCAL)
    town.run()
    for keeper, name in zip(NAMES, NAMES[-1:] + NAMES[:-1], strict=True):
        assert list(json.loads((town.folders[keeper] / "keeps.json").read_text())) == [name]
    plan = town.study.experiment.plan("run-9", simulation=False)
    node = open_node(town.folders["south"])
    assert node._neighbour(plan) == "north"
    charity = [p.but(kind="charity") if p.name == "north" else p for p in plan.participants]
    assert node._neighbour(plan.but(participants=charity)) == "east"


def test_a_simulations_heads_lie_in_its_own_folder(make_shared: MakeStudy, tmp_path: Path) -> None:
    study = make_shared("rounds=1", *LOCAL)
    grid = Wire(make_nodes(study, tmp_path / "outputs" / "run-1"))
    facts = RunFacts("run-1", "local", simulation=True)
    run_federation(grid, study.experiment, facts, tmp_path / "outputs" / "run-1")
    assert set(json.loads((tmp_path / "outputs" / "run-1" / "heads.json").read_text())) == set(FIVE)
    assert not (tmp_path / "outputs" / "heads.json").exists(), "ledgers of other runs are other ledgers"


# --- a ledger that was set back -------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [LOCAL, SHARED], ids=["local", "shared"])
def test_an_older_ledger_is_refused_by_its_own_node_and_nothing_is_charged(
    make_town: MakeTown, overrides: tuple[str, ...]
) -> None:
    town = make_town(*overrides)
    town.run()
    town.copy("east")
    town.run()
    town.put_back("east")
    before = town.head("east")
    result = town.run()
    assert refused(result) == {"east": "LEDGER"}
    assert town.head("east") == before
    others = [name for name in NAMES if name != "east"]
    assert [record["replied"] for record in result["rounds"]] == [others] * 2
    assert result["agencies"]["east"]["releases"] == []
    assert (
        "the ledger is behind: others have seen entry"
        in (town.folders["east"] / "log" / "node.log").read_text()
    )
    assert Head(*json.loads(town.heads().read_text())["east"]).seq > before.seq, "still known"
    again = town.run()
    assert refused(again) == {"east": "LEDGER"}, "it does not wear off"


@pytest.mark.parametrize("overrides", [LOCAL, SHARED], ids=["local", "shared"])
def test_an_older_ledger_is_refused_where_only_a_neighbour_remembers(
    make_town: MakeTown, overrides: tuple[str, ...]
) -> None:
    """The coordinator has lost its heads. A reservation may be made before it hears of them, a charge not."""
    town = make_town(*overrides)
    town.run()
    town.copy("east")
    town.run()
    town.put_back("east")
    charged = town.charges("east")
    town.heads().unlink()
    result = town.run()
    assert refused(result) == {"east": "LEDGER"}
    assert town.charges("east") == charged
    others = [name for name in NAMES if name != "east"]
    assert [record["replied"] for record in result["rounds"]][-1] == others
    assert result["agencies"]["east"]["releases"] == []


def test_a_coordinator_that_hides_heads_cannot_set_a_ledger_back(make_town: MakeTown) -> None:
    """Behind masks the neighbour's word is in its signed keys, which the coordinator must show."""
    town = make_town()
    town.run()
    town.copy("east")
    town.run()
    town.put_back("east")
    charged = town.charges("east")

    def hide(_: str, message: Message) -> Message:
        kind = message.metadata.message_type
        if kind == protocol.READY:
            plan, _heads = wire.read_ready_order(message)
            message.content = wire.pack_ready_order(plan, 1).content
        elif kind == protocol.KEYS:
            order = dataclasses.replace(wire.read_keys_order(message), heads={})
            message.content = wire.pack_keys_order(order, 1).content
        elif kind == protocol.ROUND:
            bare = dataclasses.replace(wire.read_round_order(message), heads={})
            message.content = wire.pack_round_order(bare, 1).content
        return message

    result = town.run(push=hide)
    assert refused(result) == {"east": "LEDGER"}
    assert town.charges("east") == charged
    deals = [name for name, message in town.grid.orders(protocol.DEAL) if name == "east"]
    assert deals, "it refused when it saw the keys of the others"


def test_a_neighbours_word_cannot_be_altered(make_shared: MakeStudy, tmp_path: Path) -> None:
    nodes = Nodes(make_shared(), tmp_path)
    (nodes.folders["north"] / "keeps.json").write_text(json.dumps({"east": [99, "ab"]}))
    adverts = nodes.adverts()
    assert adverts["north"].keeps == ("east", 99, "ab")
    for keeps in (None, ("east", 1, "ab"), ("ward", 99, "ab")):
        altered = adverts | {"north": dataclasses.replace(adverts["north"], keeps=keeps)}
        order = DealOrder(nodes.plan, tuple(altered.values()))
        nodes.refused(
            Reason.MASKS, "east", lambda order=order: nodes.ask("east", wire.pack_deal_order, order)
        )  # type: ignore[misc]
    honest = DealOrder(nodes.plan, tuple(adverts.values()))
    assert nodes.ask("east", wire.pack_deal_order, honest) == Refusal("east", Reason.LEDGER)


# --- another history ------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [LOCAL, SHARED], ids=["local", "shared"])
@pytest.mark.parametrize("who_remembers", ["coordinator", "neighbour"])
def test_another_history_of_the_same_length_is_refused(
    make_town: MakeTown, overrides: tuple[str, ...], who_remembers: str
) -> None:
    """The older copy grew again, as long as what was lost or longer: its own word of itself hides nothing."""
    town = make_town(*overrides)
    town.run()
    town.copy("east")
    town.run()
    lost, seen = town.head("east"), town.kept_by_peers()
    keeps = {name: (folder / "keeps.json").read_bytes() for name, folder in town.folders.items()}
    town.put_back("east")
    for folder in town.folders.values():
        (folder / "keeps.json").unlink()
    assert refused(town.run("elsewhere")) == {}, "a coordinator and neighbours who know nothing"
    assert town.head("east").seq >= lost.seq
    assert town.head("east") != lost
    assert town.head("east").seq >= seen["east"].seq
    for name, folder in town.folders.items():
        (folder / "keeps.json").unlink()
        if who_remembers == "neighbour":
            (folder / "keeps.json").write_bytes(keeps[name])
    if who_remembers == "neighbour":
        town.heads().unlink()
    charged = town.charges("east")
    assert refused(town.run()) == {"east": "LEDGER"}
    assert town.charges("east") == charged


def test_a_new_ledger_is_no_way_out(make_town: MakeTown) -> None:
    town = make_town(*LOCAL)
    town.run()
    for path in town.folders["east"].glob("ledger.db*"):
        path.unlink()
    assert refused(town.run()) == {"east": "LEDGER"}
    assert town.charges("east") == []


@pytest.mark.parametrize("seen", [Head(0, ""), Head(1, "00"), Head(-1, ""), Head(2**70, "00")])
def test_a_head_that_is_not_in_the_ledger_is_refused_and_changes_nothing(
    make_shared: MakeStudy, tmp_path: Path, seen: Head
) -> None:
    nodes = Nodes(make_shared(), tmp_path)
    for ask in (
        lambda: nodes.ask("east", lambda node: wire.pack_ready_order(nodes.plan, node, {"east": seen})),
        lambda: nodes.ask("east", wire.pack_keys_order, KeysOrder(nodes.plan, 4, {"east": seen})),
        lambda: nodes.round("east", 1, heads={"east": seen}),
    ):
        nodes.refused(Reason.LEDGER, "east", ask)


def test_a_head_that_is_in_the_ledger_is_met_at_any_later_time(
    make_shared: MakeStudy, tmp_path: Path
) -> None:
    nodes = Nodes(make_shared(), tmp_path)
    ledger = nodes.node("east").ledger
    birth = Head(0, ledger._genesis())
    seen = [birth, Head(*ledger.head)]
    nodes.set_up()
    nodes.round("east", 1)
    seen.append(Head(*ledger.head))
    nodes.round("east", 2)
    for head in seen:
        reply = nodes.ask(
            "east", lambda node, head=head: wire.pack_ready_order(nodes.plan, node, {"east": head})
        )
        assert isinstance(reply, Ready)
        assert reply.head == Head(*ledger.head)


# --- what is kept ---------------------------------------------------------------------------------------


def test_a_coordinator_never_keeps_less_than_it_knew(tmp_path: Path) -> None:
    """Two runs at once: the one that ends last may have heard less."""
    heads = Heads(tmp_path)
    assert heads.read() == {}
    heads.keep({"east": Head(9, "b"), "ward": Head(1, "w")})
    heads.keep({"east": Head(5, "a")})
    assert heads.read() == {"east": Head(9, "b"), "ward": Head(1, "w")}
    heads.keep({"east": Head(10, "c")})
    assert Heads(tmp_path).read()["east"] == Head(10, "c")
    assert [path.name for path in tmp_path.iterdir()] == ["heads.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"east": 3}', '{"east": ["x", "y"]}'])
def test_heads_that_do_not_decode_are_nobodys(tmp_path: Path, text: str) -> None:
    (tmp_path / "heads.json").write_text(text)
    assert Heads(tmp_path).read() == {}


def test_a_neighbours_head_only_grows_whoever_asks(make_shared: MakeStudy, tmp_path: Path) -> None:
    """Also where another process of the node has learnt it in between."""
    nodes = Nodes(make_shared(), tmp_path)
    nodes.set_up()
    path = nodes.folders["south"] / "keeps.json"
    one, two = (open_node.__wrapped__(nodes.folders["south"]) for _ in range(2))

    def show(node: Any, seq: int, name: str = "north") -> None:
        order: RoundOrder = nodes.order(4, heads={name: Head(seq, f"{seq}")}, draw=99)
        with pytest.raises(Refused):
            node.round(order)

    show(one, 7)
    assert json.loads(path.read_text()) == {"north": [7, "7"]}
    show(two, 5)
    show(two, 50, "ward")
    show(one, 6)
    assert json.loads(path.read_text()) == {"north": [7, "7"]}
    show(two, 8)
    assert json.loads(path.read_text()) == {"north": [8, "8"]}
    reply = nodes.ask("south", wire.pack_keys_order, KeysOrder(nodes.plan, 4))
    assert isinstance(reply, Keys)
    assert reply.advert.keeps == ("north", 8, "8")
    for node in (one, two):
        node.close()
