"""Split ids: within one, whoever stays has the same part; any other deal is another id, and losses add up."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import yaml
from conftest import CONTRACT, MakeStudy, people, permits, write_table
from flwr.app import Message
from flwr.common.serde import message_to_proto
from test_federation import federate

from clients.app import make_app, node_from_config
from clients.node import Node, open_node
from experiments.engines import LocalGrid
from experiments.stats import stats_plan
from federation import wire
from federation.plan import Part, TrainPlan
from federation.privacy import epsilon
from federation.protocol import Reason, Refusal, RoundOrder, StatsOrder, StatsReply
from models import risk
from models.features import layout

RULES: dict[str, Any] = {
    "stats_columns": ["debt"],
    "min_people": 20,
    "budget": {"life": 100.0, "delta": 1e-5},
}
NODE = {
    "name": "north",
    "kind": "police",
    "table": "north.csv",
    "contract": "contract.yaml",
    "public_size": 300,
}
PARTS = ("train", "tune", "test")
SAID = {"split": {"column": "part"}}
ROWS = {"unit": {"kind": "row"}}


@pytest.fixture
def plan(make_study: MakeStudy) -> TrainPlan:
    """A deployed run of the contract as it is in conftest: split ids do not depend on its hash."""
    return make_study().experiment.plan("run-1", simulation=False)


def table(n: int = 300) -> list[dict[str, object]]:
    return [row | {"part": PARTS[i % 3], "debt": i, "other": f"q{i}"} for i, row in enumerate(people(0, n))]


def laid_out(folder: Path, rows: list[dict[str, object]] | None, **changes: Any) -> Path:
    """A node's folder whose contract has `changes`; without `rows` there is no table."""
    folder.mkdir(parents=True)
    (folder / "policy.toml").write_text(tomli_w.dumps(permits(CONTRACT | changes, **RULES)))
    (folder / "node.toml").write_text(tomli_w.dumps(NODE))
    (folder / "contract.yaml").write_text(yaml.safe_dump(CONTRACT | changes, sort_keys=False))
    if rows is not None:
        write_table(folder / "north.csv", rows)
    return folder


def again(folder: Path, rows: list[dict[str, object]] | None = None, **changes: Any) -> Node:
    """The node in another process, with another table or contract."""
    open_node(folder).close()
    open_node.cache_clear()
    if rows is not None:
        write_table(folder / "north.csv", rows)
    if changes:
        (folder / "contract.yaml").write_text(yaml.safe_dump(CONTRACT | changes, sort_keys=False))
    return open_node(folder)


def moved(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """One person who was in train is in test."""
    return [rows[0] | {"part": "test"}, *rows[1:]]


# --- what is another split id ----------------------------------------------------------------------------


def test_a_keyed_split_has_one_id_whatever_the_table_and_needs_none(tmp_path: Path, plan: TrainPlan) -> None:
    folder = laid_out(tmp_path / "node", None)
    split = open_node(folder)._split_id(plan)
    assert again(folder, table())._split_id(plan) == split
    assert again(folder, table(200))._split_id(plan) == split
    assert again(folder)._split_id(plan.but(tune_fraction=0.11)) != split
    (folder / "split.key").write_bytes(bytes(32))
    from clients import keys

    keys.secret.cache_clear()
    assert again(folder)._split_id(plan) != split


def test_another_person_key_or_unit_is_another_split_id(tmp_path: Path, plan: TrainPlan) -> None:
    folder = laid_out(tmp_path / "node", table())
    other_key = {"unit": CONTRACT["unit"] | {"column": "other"}}
    wider = ROWS | {"columns": CONTRACT["columns"] | {"debt": {"type": "number", "min": 0, "max": 9}}}
    as_text = ROWS | {"columns": CONTRACT["columns"] | {"age": {"type": "ordinal", "levels": ["1", "2"]}}}
    bounds = ROWS | {"columns": CONTRACT["columns"] | {"age": {"type": "number", "min": 9, "max": 99}}}
    ids = [open_node(folder)._split_id(plan)]
    ids += [again(folder, **changes)._split_id(plan) for changes in (other_key, ROWS, wider, as_text, SAID)]
    assert len(set(ids)) == 6
    assert again(folder, **bounds)._split_id(plan) == ids[2], "the same cells name a row"


@pytest.mark.parametrize("unit", [{}, ROWS])
def test_an_edited_split_column_is_another_split_id_and_the_same_table_the_same(
    unit: dict[str, Any], tmp_path: Path, plan: TrainPlan
) -> None:
    rows = table()
    folder = laid_out(tmp_path / "node", rows, **SAID, **unit)
    split = open_node(folder)._split_id(plan)
    assert again(folder, rows[::-1])._split_id(plan) == split
    assert again(folder, moved(rows))._split_id(plan) != split
    assert again(folder, rows[1:])._split_id(plan) != split
    assert again(folder, rows)._split_id(plan) == split


def test_the_split_id_is_of_the_table_in_memory(tmp_path: Path, plan: TrainPlan) -> None:
    """What is charged is about the people that are computed on, whatever is in the file by now."""
    rows = table()
    folder = laid_out(tmp_path / "node", rows, **SAID)
    node = open_node(folder)
    split = node._split_id(plan)
    write_table(folder / "north.csv", moved(rows))
    assert node._split_id(plan) == split
    assert again(folder)._split_id(plan) != split


# --- what the ledger makes of it --------------------------------------------------------------------------


def charge(node: Node, plan: TrainPlan, round: int, *evaluate: Part) -> None:
    node._charge(RoundOrder(plan, round, {}, not evaluate, evaluate), once=False)


@pytest.mark.parametrize("how", ["the same", "moved", "another key"])
def test_losses_compose_across_deals_and_only_the_worst_part_counts_within_one(
    how: str, tmp_path: Path, plan: TrainPlan
) -> None:
    rows = table()
    folder = laid_out(tmp_path / "node", rows, **({} if how == "another key" else SAID))
    charge(open_node(folder), plan, 1)
    if how == "another key":
        node = again(folder, unit=CONTRACT["unit"] | {"column": "other"})
    else:
        node = again(folder, rows if how == "the same" else moved(rows))
    charge(node, plan, plan.rounds + 1, "test")
    trained, tested = plan.train_release(), plan.table_release("test")
    delta = plan.privacy.delta
    if how == "the same":
        expected = epsilon([trained, tested], delta)
        assert expected == max(epsilon([trained], delta), epsilon([tested], delta))
    else:
        expected = epsilon([trained, replace(tested, split_id="another")], delta)
        assert expected > 1.01 * max(epsilon([trained], delta), epsilon([tested], delta))
    assert node.ledger.epsilon(delta) == pytest.approx(expected)


def test_a_reservation_of_another_deal_does_not_cover_a_charge(tmp_path: Path, plan: TrainPlan) -> None:
    rows = table()
    folder = laid_out(tmp_path / "node", rows, **SAID)
    open_node(folder)._reserve(plan)
    reserved = sum(line.claimed for line in open_node(folder).ledger.spent())
    node = again(folder, rows)
    charge(node, plan, 1)
    assert sum(line.claimed for line in node.ledger.spent()) == pytest.approx(reserved)
    node = again(folder, moved(rows))
    charge(node, plan, 2)
    assert sum(line.claimed for line in node.ledger.spent()) > reserved


# --- orders -----------------------------------------------------------------------------------------------


class Listens(LocalGrid):
    """Everything that crossed."""

    crossed = b""

    def push_messages(self, messages: Any) -> Any:
        messages = list(messages)
        found = super().push_messages(messages)
        for message in [*messages, *self._replies.values()]:
            Listens.crossed += message_to_proto(message).SerializeToString()
        return found


def test_a_run_by_a_split_column_charges_one_split_id_that_leaves_nowhere(
    make_study: MakeStudy, folder: Path, tmp_path: Path
) -> None:
    (folder / "contract.yaml").write_text(yaml.safe_dump(CONTRACT | SAID, sort_keys=False))
    for seed, name in enumerate(("north", "clinic", "south")):
        rows = [row | {"part": PARTS[i % 3]} for i, row in enumerate(people(seed))]
        write_table(folder / f"{name}.csv", rows, () if name == "clinic" else ("visits",))
    Listens.crossed = b""
    federate(make_study(), tmp_path / "run", Listens)
    nodes = [open_node(tmp_path / "run" / "nodes" / name) for name in ("north", "clinic", "south")]
    splits = [{release.split_id for release in node.ledger.releases()} for node in nodes]
    assert [len(found) for found in splits] == [1, 1, 1]
    assert len(set.union(*splits)) == 3
    for node in nodes:
        node.close()
    secrets = [
        *set.union(*splits),
        *(node._dataset(*next(iter(node._resident))).assignment for node in nodes),
    ]
    assert all(secrets)
    assert b"north" in Listens.crossed, "the control: it listens"
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != "ledger.db"]
    assert len(written) > 5
    for secret in secrets:
        assert secret.encode() not in Listens.crossed
        assert not [path for path in written if secret.encode() in path.read_bytes()]


def ask(folder: Path, message: Message) -> Any:
    grid = LocalGrid(make_app(node_from_config), [{"node-dir": str(folder)}])
    (reply,) = grid.pull_messages(grid.push_messages([message]))
    return wire.read_reply(reply)


@pytest.fixture
def said(folder: Path) -> None:
    """The study's contract has a split column."""
    (folder / "contract.yaml").write_text(yaml.safe_dump(CONTRACT | SAID, sort_keys=False))


@pytest.mark.usefixtures("said")
def test_a_statistic_has_the_split_id_of_training(make_study: MakeStudy, tmp_path: Path) -> None:
    experiment = make_study().experiment
    asked = stats_plan(experiment, "run-1", "debt", 0.5, simulation=False)
    folder = laid_out(tmp_path / "node", table(), **SAID)
    assert isinstance(ask(folder, wire.pack_stats_order(StatsOrder(asked), 1)), StatsReply)
    node = open_node(folder)
    (release,) = node.ledger.releases()
    assert release.split_id == node._split_id(experiment.plan("run-2", simulation=False))
    assert release.split_id != again(folder, moved(table()))._split_id(asked)


@pytest.mark.usefixtures("said")
def test_no_record_is_read_for_an_order_that_the_policy_refuses(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    """There is no table: a node that looked for one would be UNAVAILABLE."""
    experiment = make_study().experiment
    folder = laid_out(tmp_path / "node", None, **SAID)
    train = experiment.plan("run-1", simulation=False)
    asked = stats_plan(experiment, "run-1", "debt", 0.5, simulation=False)
    features = len(layout(experiment.data_contract).names)
    weights = risk.weights_of(risk.build(train.model, features))

    def orders(purpose: str) -> list[Message]:
        return [
            wire.pack_ready_order(train.but(purpose=purpose), 1),
            wire.pack_round_order(RoundOrder(train.but(purpose=purpose), 1, weights, True), 1),
            wire.pack_stats_order(StatsOrder(asked.but(purpose=purpose)), 1),
        ]

    assert [ask(folder, order) for order in orders("ranking")] == [Refusal("north", Reason.PURPOSE)] * 3
    assert not (folder / "split.key").exists()
    assert [ask(folder, order) for order in orders("early-warning")] == [
        Refusal("north", Reason.UNAVAILABLE)
    ] * 3
    assert [entry.action for entry in open_node(folder).ledger.entries()] == ["people"], "nor is it charged"
