"""The agency's own rules: each refuses with its Reason, before a record is read, and changes nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import yaml
from conftest import CONTRACT, MakeStudy, people, write_table
from flwr.app import ConfigRecord, Message

from clients.app import make_app, node_from_config
from clients.node import Node, NodeError, open_node
from clients.policy import Policy, PolicyError, read_policy
from experiments.engines import LocalGrid
from federation import protocol, wire
from federation.protocol import Ready, Reason, Refusal, Refused, RoundOrder, RoundReply, TrainPlan
from models.features import layout

POLICY: dict[str, Any] = {
    "purposes": ["early-warning"],
    "models": ["logistic"],
    "budget": {"life": 20.0, "delta": 1e-5},
}
NODE: dict[str, Any] = {
    "name": "north",
    "kind": "police",
    "table": "north.csv",
    "contract": "contract.yaml",
    "public_size": 300,
}
Change = Callable[[TrainPlan], TrainPlan]


@pytest.fixture
def plan(make_study: MakeStudy) -> TrainPlan:
    """A deployed run's plan that POLICY permits."""
    return make_study("rounds=2", "evaluation.checkpoints=1").experiment.plan("run-1", simulation=False)


def deployed(folder: Path, policy: object = POLICY, node: object = NODE) -> Path:
    """A node's folder as its IT lays it out. Its table is not there: a node that looks for it says so."""
    folder.mkdir()
    (folder / "policy.toml").write_text(policy if isinstance(policy, str) else tomli_w.dumps(policy))  # type: ignore[arg-type]
    (folder / "node.toml").write_text(node if isinstance(node, str) else tomli_w.dumps(node))  # type: ignore[arg-type]
    (folder / "contract.yaml").write_text(yaml.safe_dump(CONTRACT, sort_keys=False))
    return folder


def ask(folder: Path, order: Callable[[int], Message]) -> Ready | RoundReply | Refusal:
    """What the node in `folder` replies, over the wire."""
    grid = LocalGrid(make_app(node_from_config), [{"node-dir": str(folder)}])
    (reply,) = grid.pull_messages(grid.push_messages([order(1)]))
    return wire.read_reply(reply)


def untouched(node: Node) -> bool:
    """Nothing is charged or reserved: the ledger says whose it is, and no more."""
    return [entry.action for entry in node.ledger.entries()] == ["people"]


def orders(plan: TrainPlan) -> list[Callable[[int], Message]]:
    """Both orders that a node answers."""
    weights = zero_weights()
    return [
        lambda node: wire.pack_ready_order(plan, node),
        lambda node: wire.pack_round_order(RoundOrder(plan, 1, weights, True, ("tune",)), node),
    ]


def zero_weights() -> protocol.Weights:
    from models import risk
    from models.contract import Contract

    features = len(layout(Contract.from_dict(CONTRACT)).names)
    return risk.weights_of(risk.build(risk.ModelSpec("logistic"), features))


def privacy(**changes: object) -> Change:
    return lambda plan: plan.but(privacy=plan.privacy.but(**changes))


def everyone(**changes: object) -> Change:
    return lambda plan: plan.but(participants=[p.but(**changes) for p in plan.participants])


NONE = {"mechanism": "none", "noise_multiplier": 0, "tune_sigma": 0, "test_sigma": 0}
REFUSALS: dict[str, tuple[dict[str, Any], Change, Reason, str]] = {
    "another purpose": ({}, lambda p: p.but(purpose="ranking"), Reason.PURPOSE, "purposes"),
    "another model": (
        {},
        lambda p: p.but(model={"name": "mlp", "hidden": [4]}),
        Reason.MODEL,
        "models",
    ),
    "too few agencies": ({"min_agencies": 4}, lambda p: p, Reason.CONTRACT, "min_agencies"),
    "a seed": ({}, lambda p: p.but(seed=0), Reason.PRIVACY, "simulation"),
    "no privacy": ({}, privacy(**NONE), Reason.PRIVACY, "simulation"),
    "little noise": (
        {"min_noise_multiplier": 2.0},
        privacy(noise_multiplier=1.99),
        Reason.PRIVACY,
        "min_noise_multiplier",
    ),
    "little noise on tune": ({}, privacy(tune_sigma=0.9), Reason.PRIVACY, "min_table_sigma"),
    "little noise on test": ({}, privacy(test_sigma=0.9), Reason.PRIVACY, "min_table_sigma"),
    "more noise on tune than can be drawn": ({}, privacy(tune_sigma=1e8), Reason.MALFORMED, "can be drawn"),
    "more noise on test than can be drawn": ({}, privacy(test_sigma=1e8), Reason.MALFORMED, "can be drawn"),
    "a large delta": ({"max_delta": 1e-6}, lambda p: p, Reason.PRIVACY, "max_delta"),
    "no budget": ({"budget": None}, lambda p: p, Reason.BUDGET, "budget"),
    "another contract": ({}, lambda p: p.but(contract_sha256="0" * 64), Reason.CONTRACT, "contract"),
    "another size": ({}, everyone(public_size=301), Reason.CONTRACT, "public_size"),
    "another kind": ({}, everyone(kind="health"), Reason.CONTRACT, "kind"),
    "not listed": (
        {},
        lambda p: p.but(participants=[q for q in p.participants if q.name != "north"]),
        Reason.CONTRACT,
        "does not list",
    ),
}


@pytest.mark.parametrize("case", list(REFUSALS))
def test_a_rule_refuses_with_its_reason_reads_no_record_and_changes_nothing(
    case: str, tmp_path: Path, plan: TrainPlan
) -> None:
    changes, change, reason, deciding = REFUSALS[case]
    policy = {key: value for key, value in (POLICY | changes).items() if value is not None}
    folder = deployed(tmp_path / "node", policy)
    for order in orders(change(plan)):
        assert ask(folder, order) == Refusal("north", reason)
    node = open_node(folder)
    assert untouched(node)
    assert not (folder / "split.key").exists(), "nobody was dealt into a part"
    log = (folder / "node.log").read_text().splitlines()
    assert len(log) == 2
    assert all(f"refused, {reason}" in line and deciding in line for line in log)


def test_a_plan_that_every_rule_permits_goes_on_to_the_data(tmp_path: Path, plan: TrainPlan) -> None:
    """The control: what refuses above is the rule. Here the absent table is what the node stumbles over."""
    folder = deployed(tmp_path / "node")
    for order in orders(plan):
        assert ask(folder, order) == Refusal("north", Reason.UNAVAILABLE)
    write_table(folder / "north.csv", people(0), ("visits",))
    ready, trained = (ask(folder, order) for order in orders(plan))
    assert isinstance(ready, Ready)
    assert isinstance(trained, RoundReply)
    charged = [
        entry.releases[0].kind for entry in open_node(folder).ledger.entries() if entry.action == "charge"
    ]
    assert charged == ["evaluate", "train"]


def test_a_budget_that_would_be_exceeded_is_refused_and_nothing_is_reserved(
    tmp_path: Path, plan: TrainPlan
) -> None:
    folder = deployed(tmp_path / "node", POLICY | {"budget": {"life": 0.5, "delta": 1e-5}})
    write_table(folder / "north.csv", people(0), ("visits",))
    for order in orders(plan):
        assert ask(folder, order) == Refusal("north", Reason.BUDGET)
    assert untouched(open_node(folder))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda text: text.replace('"version":"2"', '"version":"3"'), Reason.VERSION),
        (lambda text: text.replace('"rounds":2', '"rounds":0'), Reason.MALFORMED),
        (lambda text: text.replace('"rounds":2', '"rouns":2'), Reason.MALFORMED),
        (lambda text: text[:-1], Reason.MALFORMED),
        (lambda text: "[]", Reason.MALFORMED),
        (lambda text: None, Reason.MALFORMED),
    ],
)
def test_an_order_that_does_not_decode_is_refused_with_its_reason(
    tmp_path: Path, plan: TrainPlan, spoil: Callable[[str], str | None], reason: Reason
) -> None:
    folder = deployed(tmp_path / "node")
    wrong = spoil(plan.canonical)
    assert wrong != plan.canonical

    def order(node: int) -> Message:
        message = wire.pack_ready_order(plan, node)
        message.content["fedrisk"] = ConfigRecord({"json": json.dumps({"plan": wrong, "heads": {}})})
        return message

    assert ask(folder, order) == Refusal("north", reason)
    assert untouched(open_node(folder))


def test_weights_of_another_model_are_malformed_and_cost_nothing(tmp_path: Path, plan: TrainPlan) -> None:
    folder = deployed(tmp_path / "node")
    write_table(folder / "north.csv", people(0), ("visits",))
    weights = {name: value[..., :1] for name, value in zero_weights().items()}
    reply = ask(folder, lambda node: wire.pack_round_order(RoundOrder(plan, 1, weights, True), node))
    assert reply == Refusal("north", Reason.MALFORMED)
    assert not {"charge"} & {entry.action for entry in open_node(folder).ledger.entries()}


# --- the files of a node ------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [lambda p: p, privacy(**NONE), lambda p: p.but(seed=1)])
def test_the_default_policy_permits_nothing(plan: TrainPlan, change: Change) -> None:
    with pytest.raises(Refused):
        Policy().review(change(plan))
    listed = Policy(purposes=("early-warning",), models=("logistic", "mlp", "residual"))
    with pytest.raises(Refused):
        listed.review(change(plan))


def test_a_simulation_may_carry_a_seed_and_go_without_noise_but_keeps_its_lists(plan: TrainPlan) -> None:
    simulated = Policy(purposes=("early-warning",), models=("logistic",), simulation=True)
    simulated.review(privacy(**NONE)(plan.but(seed=1)))
    with pytest.raises(Refused) as refused:
        simulated.review(plan.but(purpose="ranking"))
    assert refused.value.reason is Reason.PURPOSE


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("purpose = ['x']", "policy.toml: purpose is not a known setting"),
        ("min_people = 0", "policy.toml: min_people should be greater than or equal to 1, got 0"),
        ("models = 'logistic'", "policy.toml: models should be a valid tuple, got 'logistic'"),
        (
            "[budget]\nlife = -1.0\ndelta = 1e-5",
            "policy.toml: budget.life.coordinator should be greater than 0, got -1.0",
        ),
        ("[budget]\nlife = 1.0", "policy.toml: budget.delta is missing"),
        (
            "[budget]\nlife = {public = 1.0}\ndelta = 1e-5",
            "policy.toml: budget.life.coordinator is missing",
        ),
        (
            "simulation = 'maybe'",
            "policy.toml: simulation should be a valid boolean, unable to interpret input, got 'maybe'",
        ),
        ("purposes = [", "FOLDER/policy.toml is not TOML: Invalid value (at end of document)"),
    ],
)
def test_a_policy_that_cannot_be_used_is_one_sentence_and_the_node_does_not_start(
    tmp_path: Path, plan: TrainPlan, text: str, sentence: str
) -> None:
    folder = deployed(tmp_path / "node", text)
    with pytest.raises(PolicyError) as wrong:
        open_node(folder)
    assert str(wrong.value) == sentence.replace("FOLDER", str(folder))
    reply = ask(folder, lambda node: wire.pack_ready_order(plan, node))
    assert isinstance(reply, Refusal)
    assert reply.reason is Reason.UNAVAILABLE
    assert not (folder / "ledger.db").exists()


def test_every_problem_of_a_policy_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text("purpose = 1\nmin_people = 0\n")
    with pytest.raises(PolicyError) as wrong:
        read_policy(tmp_path / "policy.toml")
    assert len(str(wrong.value).splitlines()) == 2


def test_a_node_without_a_policy_does_not_start(tmp_path: Path) -> None:
    folder = deployed(tmp_path / "node")
    (folder / "policy.toml").unlink()
    with pytest.raises(PolicyError, match=r"policy.toml is missing: a node without a policy does not start"):
        open_node(folder)


def drop(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def put(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )


NO_CONTRACT = "node.toml: the contract file contract.yaml cannot be read"
NODES: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (drop("node.toml"), "FOLDER/node.toml cannot be read: is this a node's folder?"),
    "latin-1": (
        put("node.toml", "ü".encode("latin-1")),
        "FOLDER/node.toml cannot be read: is this a node's folder?",
    ),
    "not TOML": (
        put("node.toml", "name ="),
        "FOLDER/node.toml is not TOML: Invalid value (at end of document)",
    ),
    "unknown key": (
        put("node.toml", tomli_w.dumps(NODE | {"colour": "red"})),
        "node.toml: colour is not a known setting",
    ),
    "missing key": (
        put("node.toml", tomli_w.dumps({k: v for k, v in NODE.items() if k != "table"})),
        "node.toml: table is missing",
    ),
    "no size": (
        put("node.toml", tomli_w.dumps(NODE | {"public_size": 0})),
        "node.toml: public_size should be greater than or equal to 1, got 0",
    ),
    "a name in capitals": (
        put("node.toml", tomli_w.dumps(NODE | {"name": "North"})),
        "node.toml: name must be small letters, digits, - and _, at most 64, got 'North'",
    ),
    "no contract": (drop("contract.yaml"), NO_CONTRACT),
    "contract in latin-1": (put("contract.yaml", "ü".encode("latin-1")), NO_CONTRACT),
    "contract with a typo": (
        put("contract.yaml", yaml.safe_dump(CONTRACT | {"colums": 1})),
        "the contract contract.yaml is not usable: colums is not a known setting (did you mean columns?)",
    ),
}


@pytest.mark.parametrize("case", list(NODES))
def test_a_node_folder_that_cannot_be_used_is_one_sentence(
    case: str, tmp_path: Path, plan: TrainPlan
) -> None:
    spoil, sentence = NODES[case]
    folder = deployed(tmp_path / "node")
    spoil(folder)
    with pytest.raises(NodeError) as wrong:
        open_node(folder)
    assert str(wrong.value) == sentence.replace("FOLDER", str(folder))
    reply = ask(folder, lambda node: wire.pack_ready_order(plan, node))
    assert isinstance(reply, Refusal)
    assert reply.reason is Reason.UNAVAILABLE


def test_half_a_split_key_is_one_sentence_and_not_replaced(tmp_path: Path, plan: TrainPlan) -> None:
    folder = deployed(tmp_path / "node")
    write_table(folder / "north.csv", people(0), ("visits",))
    (folder / "split.key").write_bytes(b"half")
    assert ask(folder, orders(plan)[0]) == Refusal("north", Reason.UNAVAILABLE)
    assert "split.key must hold 32 bytes" in (folder / "node.log").read_text()
    assert (folder / "split.key").read_bytes() == b"half"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.1e6, -3e38])
def test_weights_that_have_diverged_are_refused_before_anything_is_charged(
    value: float, tmp_path: Path, plan: TrainPlan
) -> None:
    folder = deployed(tmp_path / "node", POLICY)
    weights = zero_weights()
    next(iter(weights.values())).flat[0] = value
    order = wire.pack_round_order(RoundOrder(plan, 1, weights, True), 1)
    assert ask(folder, lambda _: order) == Refusal("north", Reason.MALFORMED)
    assert untouched(open_node(folder))
