"""A demand map: what a node counts and is charged, what it refuses, what the coordinator reads, with and without masks."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import tomli_w
import yaml
from command import fedrisk, files_under
from conftest import CONTRACT, MakeStudy, people, permits, write_agencies, write_table

from clients.app import make_app, node_from_config
from clients.node import open_node
from experiments.config import MapSettings
from experiments.demand import request_of
from experiments.engines import LocalGrid, make_node_folders
from federation import wire
from federation.demand import MapPlan, MapRequest
from federation.privacy import epsilon
from federation.protocol import KeysOrder, MapOrder, MapReply, Ready, Reason, Refusal
from federation.release import Release, SharedRelease
from federation.server.demand import MapJob, run_map
from federation.server.result import RunFacts
from federation.server.rounds import RunError
from federation.server.tracking import NoTracker
from models import workload
from models.contract import Contract
from models.design import Counted

WORKLOAD: dict[str, Any] = {
    "name": "needs",
    "attributes": {
        "band": {"column": "age", "edges": [30, 60]},
        "often": {"column": "visits", "edges": [4, 8]},
    },
    "queries": [
        {"crosstab": ["band", "known"]},
        {"histogram": "sex"},
        {"rate": {"of": {"known": "yes"}, "among": {"sex": "female"}}},
        {"histogram": "often"},
    ],
}
OF_ALL = {**WORKLOAD, "queries": WORKLOAD["queries"][:3]}
COLUMNS = ["age", "visits", "known", "sex"]


def asked(study: Any, workload: dict[str, Any] = WORKLOAD, **more: Any) -> Any:
    """The study with a map to draw."""
    from dataclasses import replace

    return replace(study, map=MapSettings(workload=workload, **more))


def plan_of(
    study: Any, workload: dict[str, Any] = WORKLOAD, *, simulation: bool = False, **more: Any
) -> MapPlan:
    return request_of(asked(study, workload, **more), "run-1", simulation=simulation).plan


@pytest.fixture
def plan(make_study: MakeStudy) -> MapPlan:
    return plan_of(make_study())


# --- the plan and the wire ------------------------------------------------------------------------------


def test_a_plan_costs_what_was_asked_for_and_is_one_release(plan: MapPlan) -> None:
    (event,) = plan.releases()
    assert isinstance(event, Release)
    assert (event.kind, event.part, event.sample_rate, event.steps) == ("map", "all", 1.0, 1)
    assert epsilon(plan.releases(), plan.delta) == pytest.approx(0.5, abs=0.001)
    assert epsilon(plan.releases(), plan.delta) <= 0.5


def test_orders_and_replies_survive_the_trip(plan: MapPlan) -> None:
    message = wire.pack_map_order(MapOrder(plan, 3, "abc"), 7)
    assert wire.read_map_order(message) == MapOrder(plan, 3, "abc")
    assert wire.read_ready_order(wire.pack_ready_order(plan, 7)) == (plan, {})
    keys = KeysOrder(plan, 1)
    assert wire.read_keys_order(wire.pack_keys_order(keys, 7)) == keys
    sent = MapReply("north", np.array([-3, 2**40], np.int64), plan.releases())
    got = wire.read_reply(wire.pack_reply(sent, message))
    assert isinstance(got, MapReply)
    np.testing.assert_array_equal(got.numbers, sent.numbers)
    assert got.numbers.dtype == np.int64
    assert (got.agency, got.releases, got.head) == ("north", sent.releases, None)
    request = MapRequest(plan=plan)
    assert MapRequest.decode(request.encode()) == request


def test_a_plan_keeps_the_order_of_its_attributes(plan: MapPlan) -> None:
    """The axes of every table follow it, so both sides must read the same, though canonical JSON sorts keys."""
    contract = Contract.from_dict(CONTRACT)
    again = MapPlan.model_validate_json(plan.canonical)
    assert again.asked(contract) == plan.asked(contract)
    assert list(again.asked(contract).attributes) == list(plan.asked(contract).attributes)


# --- the node -------------------------------------------------------------------------------------------

POLICY = permits(
    releases=["train", "evaluate", "map"],
    map_columns=COLUMNS,
    budget={"life": 3.0, "delta": 1e-5},
)
NODE = {
    "name": "north",
    "kind": "police",
    "table": "north.csv",
    "contract": "contract.yaml",
    "public_size": 300,
}


def deployed(folder: Path, policy: dict[str, Any] = POLICY, rows: Sequence[dict[str, object]] = ()) -> Path:
    """A node's folder; without `rows` it has no table, and a node that looks for it says so."""
    folder.mkdir(parents=True)
    (folder / "policy.toml").write_text(tomli_w.dumps(policy))
    (folder / "node.toml").write_text(tomli_w.dumps(NODE))
    (folder / "contract.yaml").write_text(yaml.safe_dump(CONTRACT, sort_keys=False))
    if rows:
        write_table(folder / "north.csv", list(rows))
    return folder


def ask(folder: Path, message: Any) -> Any:
    grid = LocalGrid(make_app(node_from_config), [{"node-dir": str(folder)}])
    (reply,) = grid.pull_messages(grid.push_messages([message]))
    return wire.read_reply(reply)


def charged(folder: Path) -> list[Any]:
    entries = open_node(folder).ledger.entries()
    return [entry.releases[0] for entry in entries if entry.action == "charge"]


def test_counts_are_charged_once_before_they_leave(tmp_path: Path, plan: MapPlan) -> None:
    folder = deployed(tmp_path / "node", rows=people(0))
    assert isinstance(ask(folder, wire.pack_ready_order(plan, 1)), Ready)
    assert charged(folder) == [], "to be ready costs nothing"
    reply = ask(folder, wire.pack_map_order(MapOrder(plan), 1))
    assert isinstance(reply, MapReply)
    (release,) = charged(folder)
    assert (release.kind, release.noise_multiplier) == ("map", plan.noise_multiplier)
    assert release.split_id == open_node(folder)._split_id(plan)
    assert reply.releases == plan.releases()
    assert reply.head == open_node(folder).head
    again = ask(folder, wire.pack_map_order(MapOrder(plan), 1))
    np.testing.assert_array_equal(again.numbers, reply.numbers)
    assert len(charged(folder)) == 1, "the same order twice is the same reply"


def test_it_is_charged_before_the_noise_is_drawn(
    tmp_path: Path, plan: MapPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = deployed(tmp_path / "node", rows=people(0))
    seen: list[int] = []

    def watched(stream: object, n: int, variance: int) -> np.ndarray:
        seen.append(len(charged(folder)))
        raise OSError("the power fails here")

    monkeypatch.setattr("clients.counting.randomness.discrete_gaussian", watched)
    assert ask(folder, wire.pack_map_order(MapOrder(plan), 1)) == Refusal("north", Reason.UNAVAILABLE)
    assert seen == [1]
    assert len(charged(folder)) == 1, "a crash wastes budget and never hides spending"


def test_killed_between_charge_and_reply_it_draws_the_same_again_and_pays_once(
    tmp_path: Path, plan: MapPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clients.node import Node

    folder = deployed(tmp_path / "node", rows=people(0))
    lost: list[MapReply] = []

    def dies(self: Node, order: object, reply: MapReply) -> None:
        lost.append(reply)
        raise OSError("the power fails here")

    with monkeypatch.context() as power:
        power.setattr(Node, "_keep_reply", dies)
        assert ask(folder, wire.pack_map_order(MapOrder(plan), 1)) == Refusal("north", Reason.UNAVAILABLE)
    again = ask(folder, wire.pack_map_order(MapOrder(plan), 1))
    np.testing.assert_array_equal(again.numbers, lost[0].numbers)
    assert len(charged(folder)) == 1
    other = plan.but(run_id="run-2")
    with monkeypatch.context() as power:
        power.setattr(Node, "_keep_reply", dies)
        ask(folder, wire.pack_map_order(MapOrder(other), 1))
    write_table(folder / "north.csv", people(1))
    open_node.cache_clear()  # a new process
    assert ask(folder, wire.pack_map_order(MapOrder(other), 1)) == Refusal("north", Reason.REPLAYED)
    assert len(charged(folder)) == 2, "with other records it would be another draw, and a plan is drawn once"


def test_the_noise_has_the_size_that_is_charged(tmp_path: Path, plan: MapPlan) -> None:
    """Two draws of the same records differ by noise alone: of std z x sensitivity on every number."""
    folder = deployed(tmp_path / "node", POLICY | {"budget": {"life": 90.0, "delta": 1e-5}}, people(0))
    runs = [plan.but(run_id=f"run-{i}") for i in range(60)]
    drawn = np.array([ask(folder, wire.pack_map_order(MapOrder(each), 1)).numbers for each in runs], float)
    design = plan.design_of(Contract.from_dict(CONTRACT), "north")
    assert design is not None
    noise = plan.noise_multiplier * design.sensitivity
    assert drawn.shape == (60, design.numbers)
    assert (drawn - drawn.mean(0)).std() == pytest.approx(noise, rel=0.1)


def test_an_agency_is_asked_only_for_what_its_kind_holds(tmp_path: Path, plan: MapPlan) -> None:
    contract = Contract.from_dict(CONTRACT)
    assert [q.name for q in plan.asked_of(contract, "north").queries] == [
        q.name for q in plan.asked(contract).queries[:3]
    ]
    assert plan.asked_of(contract, "clinic") == plan.asked(contract)
    without = plan.but(without={"north": ["sex"]})
    assert [q.name for q in without.asked_of(contract, "north").queries] == ["band by known"]


Change = Callable[[MapPlan], MapPlan]
REFUSALS: dict[str, tuple[dict[str, Any], Change, Reason, str]] = {
    "another purpose": ({}, lambda p: p.but(purpose="ranking"), Reason.PURPOSE, "purposes"),
    "a column that is not listed": (
        {"map_columns": ["age", "sex"]},
        lambda p: p,
        Reason.CONTRACT,
        "map_columns: the plan counts people by 'known'",
    ),
    "a column that is never used": (
        {"never_columns": ["sex"]},
        lambda p: p,
        Reason.CONTRACT,
        "never_columns",
    ),
    "no map": ({"releases": ["train", "evaluate", "stats"]}, lambda p: p, Reason.MODEL, "releases"),
    "masks": ({"masks_required": True}, lambda p: p, Reason.PRIVACY, "masks_required"),
    "a seed": ({}, lambda p: p.but(seed=0), Reason.PRIVACY, "simulation"),
    "no noise": (
        {},
        lambda p: p.but(mechanism="none", noise_multiplier=0),
        Reason.PRIVACY,
        "without privacy",
    ),
    "little noise": ({"min_table_sigma": 9.0}, lambda p: p, Reason.PRIVACY, "min_table_sigma"),
    "more noise than can be drawn": (
        {},
        lambda p: p.but(noise_multiplier=2100.0),
        Reason.MALFORMED,
        "can be drawn",
    ),
    "a large delta": ({"max_delta": 1e-6}, lambda p: p, Reason.PRIVACY, "max_delta"),
    "no budget": ({"budget": None}, lambda p: p, Reason.BUDGET, "budget"),
    "too much for an order": (
        {"budget": {"life": 3.0, "order": 0.1, "delta": 1e-5}},
        lambda p: p,
        Reason.BUDGET,
        "budget.order",
    ),
    "another contract": ({}, lambda p: p.but(contract_sha256="0" * 64), Reason.CONTRACT, "contract"),
    "no workload": ({}, lambda p: p.but(workload="[1]"), Reason.MALFORMED, "workload"),
    "a column that nobody has": (
        {},
        lambda p: p.but(workload=p.workload.replace('"known"]', '"shoe"]')),
        Reason.MALFORMED,
        "workload",
    ),
    "nothing that is held": (
        {},
        lambda p: p.but(without={"north": ["age", "sex", "known"]}),
        Reason.CONTRACT,
        "holds none",
    ),
    "a million cells": (
        {},
        lambda p: p.but(
            workload=json.dumps(
                {
                    "name": "large",
                    "attributes": {
                        "one": {"column": "age", "edges": list(range(1, 1000))},
                        "two": {"column": "age", "edges": list(range(1, 1000))},
                    },
                    "queries": [{"crosstab": ["one", "two"]}],
                }
            )
        ),
        Reason.MALFORMED,
        "1,002,001 cells",
    ),
    "another version": ({}, lambda p: p.but(version="99"), Reason.VERSION, "protocol '99'"),
}


@pytest.mark.parametrize("case", list(REFUSALS))
def test_a_rule_refuses_with_its_reason_before_a_record_is_read(
    case: str, tmp_path: Path, plan: MapPlan
) -> None:
    """There is no table in the folder: a node that looked for one would be UNAVAILABLE."""
    changes, change, reason, deciding = REFUSALS[case]
    policy = {key: value for key, value in (POLICY | changes).items() if value is not None}
    folder = deployed(tmp_path / "node", policy)
    for message in (wire.pack_ready_order(change(plan), 1), wire.pack_map_order(MapOrder(change(plan)), 1)):
        assert ask(folder, message) == Refusal("north", reason)
    assert [entry.action for entry in open_node(folder).ledger.entries()] == ["people"]
    assert not (folder / "split.key").exists()
    lines = (folder / "log" / "node.log").read_text().splitlines()
    assert len(lines) == 2
    assert all(f"refused, {reason}" in line and deciding in line for line in lines)


def test_a_draw_without_masks_and_masks_without_a_draw_are_malformed(
    tmp_path: Path, plan: MapPlan, make_shared: MakeStudy
) -> None:
    folder = deployed(tmp_path / "node", rows=people(0))
    assert ask(folder, wire.pack_map_order(MapOrder(plan, 0, "x"), 1)) == Refusal("north", Reason.MALFORMED)
    assert charged(folder) == []


def no_table(folder: Path) -> None:
    (folder / "north.csv").unlink()


def without_sex(folder: Path) -> None:
    write_table(folder / "north.csv", people(0), ("sex",))


def text_age(folder: Path) -> None:
    write_table(folder / "north.csv", [row | {"age": "CANARY9C4E"} for row in people(0)])


def few_people(folder: Path) -> None:
    write_table(folder / "north.csv", people(0, 49))


@pytest.mark.parametrize("spoil", [no_table, without_sex, text_age, few_people])
def test_what_depends_on_the_table_is_unavailable_and_costs_nothing(
    spoil: Callable[[Path], None], tmp_path: Path, plan: MapPlan
) -> None:
    folder = deployed(tmp_path / "node", rows=people(0))
    spoil(folder)
    for message in (wire.pack_ready_order(plan, 1), wire.pack_map_order(MapOrder(plan), 1)):
        assert ask(folder, message) == Refusal("north", Reason.UNAVAILABLE)
    assert charged(folder) == []
    assert "CANARY9C4E" not in (folder / "log" / "node.log").read_text()


# --- the coordinator ------------------------------------------------------------------------------------


def drawn(study: Any, folder: Path, spoil: Callable[[list[Path]], None] = lambda nodes: None) -> Any:
    """(map.json, series.json, node folders) of a simulated map."""
    folder.mkdir(parents=True, exist_ok=True)
    request = request_of(study, "run-1", simulation=True)
    nodes = make_node_folders(
        study.agencies,
        study.experiment.contract,
        folder / "nodes",
        seed=0,
        min_people=20,
        map_columns=COLUMNS,
    )
    spoil(nodes)
    grid = LocalGrid(make_app(node_from_config), [{"node-dir": str(node)} for node in nodes])
    facts = RunFacts("run-1", "local", simulation=True)
    found, series = run_map(grid, MapJob(study.experiment, facts, folder, request, NoTracker()))
    json.dumps(found, allow_nan=False)
    return found, series, nodes


def counts_of(found: Any, name: str, agency: str | None = None) -> dict[tuple[str, ...], float]:
    (query,) = [each for each in found["queries"] if each["name"] == name]
    cells = query["together"]["cells"] if agency is None else query["agencies"][agency]
    return {tuple(cell["levels"]): cell["value"] or 0 for cell in cells}


def known_by_band(names: Sequence[int], n: int = 300) -> dict[tuple[str, ...], int]:
    rows = [row for seed in names for row in people(seed, n)]
    bands = {"under 30": (0, 30), "30 to under 60": (30, 60), "60 or more": (60, 1000), "other": (0, 0)}
    return {
        (band, flag): sum(low <= row["age"] < high and row["known"] == at for row in rows)  # type: ignore[operator]
        for band, (low, high) in bands.items()
        for at, flag in enumerate(("no", "yes"))
    }


def test_without_noise_every_answer_is_exact(make_study: MakeStudy, tmp_path: Path) -> None:
    study = asked(make_study("privacy=none", "evaluation.disclosure=none"))
    found, _, _ = drawn(study, tmp_path / "out")
    assert counts_of(found, "band by known") == pytest.approx(known_by_band([0, 1, 2]))
    assert counts_of(found, "band by known", "clinic") == pytest.approx(known_by_band([1]))
    assert found["privacy"]["epsilon"] is None
    assert [found["agencies"][name]["people"]["value"] for name in ("north", "clinic", "south")] == [300] * 3
    assert found["people"]["value"] == 900
    often = next(query for query in found["queries"] if query["name"] == "often")
    assert often["together"]["agencies"] == ["clinic"]
    assert list(often["agencies"]) == ["clinic"]


def test_intervals_hold_the_truth_and_margins_add_up(make_study: MakeStudy, tmp_path: Path) -> None:
    study = asked(make_study("evaluation.disclosure={minimum: 1, rounding: 1}"), epsilon=2.0)
    found, _, nodes = drawn(study, tmp_path / "out")
    truth = known_by_band([0, 1, 2])
    (query,) = [each for each in found["queries"] if each["name"] == "band by known"]
    told = [cell for cell in query["together"]["cells"] if cell["publishable"]]
    assert len(told) == 6
    held = [cell["low"] <= truth[tuple(cell["levels"])] <= cell["high"] for cell in told]
    assert sum(held) >= 5
    assert sum(counts_of(found, "sex").values()) == pytest.approx(found["people"]["value"], abs=0.5)
    for node in nodes:
        assert len(charged(node)) == 1
    assert found["privacy"]["epsilon"] == pytest.approx(2.0, abs=0.01)
    assert found["privacy"]["epsilon_at_several_agencies"]["2"] > 2.5
    hold_together(found)


def hold_together(found: Any) -> None:
    """The wider intervals are those of a level at which all of them hold at 0.95 (Bonferroni), and months have none."""
    months = {name for name, each in found["attributes"].items() if each["months"]}
    compared = [
        cell
        for query in found["queries"]
        for part in (query["together"]["cells"], *query["agencies"].values())
        for cell in part
        if not months & set(query["by"])
    ]
    assert found["compared"] == {"numbers": len(compared), "level": pytest.approx(1 - 0.05 / len(compared))}
    wider = NormalDist().inv_cdf(1 - 0.025 / len(compared)) - NormalDist().inv_cdf(0.975)
    (query,) = [each for each in found["queries"] if each["name"] == "band by known"]
    for cell in query["together"]["cells"]:
        assert (cell["wide"] is None) == (not cell["publishable"])
        if cell["wide"] is not None:
            assert cell["wide"]["low"] <= cell["low"]
            assert cell["wide"]["high"] - cell["high"] == pytest.approx(wider * cell["sd"], rel=0.05)
    for query in found["queries"]:
        if months & set(query["by"]):
            assert all("wide" not in cell for cell in query["together"]["cells"])


def test_what_noise_swallows_is_withheld_and_says_what_it_would_take(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    found, _, _ = drawn(asked(make_study(), epsilon=0.1), tmp_path / "out")
    (query,) = [each for each in found["queries"] if each["name"] == "band by known"]
    cells = query["agencies"]["north"]
    assert not any(cell["publishable"] for cell in cells)
    assert all(cell["value"] is None for cell in cells)
    assert query["at_one"]["least"] > 60
    assert 0.1 < query["at_one"]["epsilon_for_minimum"] < query["epsilon_for_minimum"]


def test_behind_masks_only_a_sum_is_known_and_it_is_the_sum(make_shared: MakeStudy, tmp_path: Path) -> None:
    study = asked(make_shared("evaluation.disclosure={minimum: 1, rounding: 1}"), epsilon=4.0)
    found, _series, nodes = drawn(study, tmp_path / "out")
    assert found["not_asked"][0]["query"] == "often"
    assert "use privacy=local" in found["not_asked"][0]["why"]
    assert all(query["agencies"] == {} for query in found["queries"])
    assert all(facts["people"]["value"] is None for facts in found["agencies"].values())
    truth = known_by_band(range(5), 120)
    (query,) = [each for each in found["queries"] if each["name"] == "band by known"]
    told = [cell for cell in query["together"]["cells"] if cell["publishable"]]
    assert len(told) == 6
    assert sum(cell["low"] <= truth[tuple(cell["levels"])] <= cell["high"] for cell in told) >= 5
    for node in nodes:
        (event,) = charged(node)
        assert isinstance(event, SharedRelease)
        assert event.kind == "map"
    assert found["privacy"]["epsilon"] <= 4.0
    to = found["privacy"]["epsilon_to"]
    assert to["public"] < to["coordinator"] == found["privacy"]["epsilon"] < to["everybody"]


def test_an_agency_that_fails_behind_masks_is_named_and_the_rest_is_summed(
    make_shared: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clients.node import Node

    whole = Node.map

    def fails(self: Node, order: MapOrder) -> Any:
        if self.facts.name == "ward":
            raise OSError("the power fails here")
        return whole(self, order)

    monkeypatch.setattr(Node, "map", fails)
    study = asked(make_shared("evaluation.disclosure={minimum: 1, rounding: 1}"), OF_ALL, epsilon=4.0)
    found, _, _ = drawn(study, tmp_path / "out")
    assert found["agencies"]["ward"]["status"] == "unavailable"
    assert found["agencies"]["ward"]["epsilon"] > 0, "nobody knows whether it charged: it is counted"
    people_ = found["people"]
    assert people_["low"] <= 480 <= people_["high"]


def forbids(nodes: list[Path]) -> None:
    policy = nodes[0] / "policy.toml"
    policy.write_text(policy.read_text().replace('    "sex",\n', ""))


def test_an_agency_that_refuses_is_named_and_the_others_answer(make_study: MakeStudy, tmp_path: Path) -> None:
    study = asked(make_study("evaluation.disclosure={minimum: 1, rounding: 1}"), epsilon=2.0)
    found, _, nodes = drawn(study, tmp_path / "out", forbids)
    assert (
        found["agencies"]["clinic"] | {"people": 0}
        == {
            "kind": "health",
            "public_size": 300,
            "status": "refused",
            "reason": "CONTRACT",
            "epsilon": 0,
            "releases": [],
            "people": 0,
        }
        or found["agencies"]["north"]["status"] == "refused"
    )
    refused = [name for name, facts in found["agencies"].items() if facts["status"] == "refused"]
    assert refused == [nodes[0].name]
    assert charged(nodes[0]) == []
    assert [len(charged(node)) for node in nodes[1:]] == [1, 1]
    assert found["people"]["low"] <= 600 <= found["people"]["high"]


def test_it_can_be_asked_for_the_other_columns_alone(make_study: MakeStudy, tmp_path: Path) -> None:
    study = asked(make_study(), epsilon=2.0, without={"north": ["sex"]})
    found, _, _ = drawn(study, tmp_path / "out", lambda nodes: _strike(nodes, "north", "sex"))
    by_name = {query["name"]: query for query in found["queries"]}
    assert set(by_name["band by known"]["agencies"]) == {"north", "clinic", "south"}
    assert set(by_name["sex"]["agencies"]) == {"clinic", "south"}
    assert by_name["sex"]["together"]["agencies"] == ["clinic", "south"]


def _strike(nodes: list[Path], name: str, column: str) -> None:
    policy = next(node for node in nodes if node.name == name) / "policy.toml"
    policy.write_text(policy.read_text().replace(f'    "{column}",\n', ""))


def test_too_few_agencies_are_a_sentence(make_study: MakeStudy, tmp_path: Path) -> None:
    def all_forbid(nodes: list[Path]) -> None:
        for node in nodes:
            _strike(nodes, node.name, "known")

    with pytest.raises(RunError, match="fewer agencies took part at the start than min_agencies=1 asks for"):
        drawn(asked(make_study()), tmp_path / "out", all_forbid)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda numbers: numbers[:-1], "must have shape"),
        (lambda numbers: numbers.astype(np.float64), "type int64"),
        (lambda numbers: numbers + 2**60, "more people than"),
    ],
)
def test_a_reply_that_is_not_as_agreed_is_rejected_and_named(
    spoil: Callable[[np.ndarray], np.ndarray],
    says: str,
    make_study: MakeStudy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dataclasses import replace

    from clients.node import Node

    whole = Node.map

    def lies(self: Node, order: MapOrder) -> Any:
        reply = whole(self, order)
        assert isinstance(reply, MapReply)
        return replace(reply, numbers=spoil(reply.numbers)) if self.facts.name == "north" else reply

    monkeypatch.setattr(Node, "map", lies)
    found, _, _ = drawn(asked(make_study()), tmp_path / "out")
    assert found["agencies"]["north"]["status"] == "rejected"
    assert says in found["agencies"]["north"]["reason"]
    assert found["agencies"]["north"]["epsilon"] > 0


def test_one_agency_alone_is_enough(tmp_path: Path, make_study: MakeStudy) -> None:
    write_agencies(tmp_path, {"north": "police"})
    study = asked(make_study("evaluation.disclosure={minimum: 1, rounding: 1}"), epsilon=2.0)
    found, _, _ = drawn(study, tmp_path / "out")
    assert list(found["agencies"]) == ["north"]
    assert found["not_asked"] == [
        {"query": "often", "why": "no agency holds all of its columns, or may be asked for them"}
    ]
    assert found["people"]["low"] <= 300 <= found["people"]["high"]


def test_what_is_counted_is_not_in_a_repr() -> None:
    counted = Counted({"a": np.array([7, 7, 7])}, 3, {}, 0)
    assert "7" not in repr(counted).partition("at 0x")[0]


# --- the command ----------------------------------------------------------------------------------------


def test_the_command_says_the_price_first_and_writes_the_page(folder: Path) -> None:
    (folder / "workload.yaml").write_text(yaml.safe_dump(OF_ALL, sort_keys=False))
    common = ["experiment=own", f"data.agencies={folder}/agencies.yaml", "name=small", "tracking=none"]
    common += [f"output={folder}/outputs", "map.epsilon=1.0", f"map.workload={folder}/workload.yaml"]
    done = fedrisk("map", *common, "--plan")
    assert (done.code, done.err) == (0, "")
    assert "before anything is spent" in done.out
    assert "ε = 1.00 for one person at one agency" in done.out
    assert not (folder / "outputs").exists()
    done = fedrisk("map", *common)
    assert (done.code, done.err) == (0, "")
    (run,) = (folder / "outputs").glob("small-map-*")
    assert {"map.json", "series.json", "map.html"} <= {path.name for path in files_under(run)}
    assert f"page    {run}/map.html" in done.out
    assert json.loads((run / "map.json").read_text())["files"]["report"] == "map.html"


def test_the_workload_of_the_docs_can_be_asked() -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "demand-map.md").read_text()
    shown = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    contract = Contract.from_dict(
        CONTRACT
        | {
            "unit": {"kind": "person", "column": "person", "rows": 3, "order_by": "date"},
            "columns": CONTRACT["columns"]
            | {"need": {"type": "flag"}, "area": {"type": "category", "levels": ["north", "south"]}},
        }
    )
    queries = workload.read(shown, contract).queries
    assert [query.kind for query in queries] == [
        "count",
        "rate",
        "histogram",
        "crosstab",
        "series",
        "crosstab",
    ]
    assert [query.counts for query in queries[-2:]] == ["row", "row"]
