"""The agency's own rules: each refuses with its Reason, before a record is read, and changes nothing."""

import json
import re
import tomllib
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import tomli_w
import yaml
from conftest import CONTRACT, MakeStudy, people, permits, write_table
from flwr.app import ConfigRecord, Message

from clients import journal_lines, recorder, rules
from clients.app import make_app, node_from_config
from clients.desk import policy_template, policy_words
from clients.node import Node, NodeError, open_node
from clients.policy import Hours, Policy, PolicyError, read_policy
from clients.rules import Situation, Verdict
from experiments.engines import LocalGrid
from federation import protocol, wire
from federation.privacy import epsilon
from federation.protocol import Ready, Reason, Refusal, Refused, RoundOrder, RoundReply, TrainPlan
from federation.release import Kind, Release
from models.contract import Contract
from models.features import layout
from models.spec import ModelSpec

POLICY = permits(budget={"life": 20.0, "delta": 1e-5})
LAWFUL = {"legal_basis": "made up for a test"}
HASH = Contract.from_dict(CONTRACT).sha256
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

    features = len(layout(Contract.from_dict(CONTRACT)).names)
    return risk.weights_of(risk.build(ModelSpec("logistic"), features))


def privacy(**changes: object) -> Change:
    return lambda plan: plan.but(privacy=plan.privacy.but(**changes))


def at(now: datetime | None = None, **standing: str) -> Situation:
    """The time, this agency's contract, and nobody's decision."""
    return Situation(now or datetime.now(UTC), Contract.from_dict(CONTRACT), standing)  # type: ignore[arg-type]


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
    "an expired purpose": (
        {"purposes": {"early-warning": LAWFUL | {"expires": date(2020, 1, 1)}}},
        lambda p: p,
        Reason.PURPOSE,
        "purposes: the plan's purpose 'early-warning' expired: its last day was 2020-01-01",
    ),
    "no contract listed": ({"contracts": []}, lambda p: p, Reason.CONTRACT, "contracts"),
    "no key contracts": ({"contracts": None}, lambda p: p, Reason.CONTRACT, "contracts"),
    "a feature that is never used": (
        {"never_columns": ["rent", "Age"]},
        lambda p: p,
        Reason.CONTRACT,
        "never_columns: the plan needs 'age'",
    ),
    "a group that is never used": ({"never_columns": ["sex"]}, lambda p: p, Reason.CONTRACT, "'sex'"),
    "a label that is never used": ({"never_columns": ["outcome"]}, lambda p: p, Reason.CONTRACT, "'outcome'"),
    "an id that is never used": ({"never_columns": ["person"]}, lambda p: p, Reason.CONTRACT, "'person'"),
    "another's column that is never used": (
        {"never_columns": ["visits"]},
        lambda p: p,
        Reason.CONTRACT,
        "'visits'",
    ),
    "another strategy": ({"strategies": ["dp_fedsgd"]}, lambda p: p, Reason.MODEL, "strategies"),
    "no key strategies": ({"strategies": None}, lambda p: p, Reason.MODEL, "strategies"),
    "fairer training": (
        {},
        lambda p: p.but(fairness={"method": "qffl", "q": 1.0}),
        Reason.MODEL,
        "fairness: the plan's fairer training 'qffl' is not listed",
    ),
    "no tables": (
        {"releases": ["train", "stats"]},
        lambda p: p,
        Reason.MODEL,
        "releases: the plan takes 'evaluate'",
    ),
    "no training": (
        {"releases": ["evaluate"]},
        lambda p: p,
        Reason.MODEL,
        "releases: the plan takes 'train'",
    ),
    "no key releases": ({"releases": None}, lambda p: p, Reason.MODEL, "releases"),
    "too many rounds": ({"max_rounds": 1}, lambda p: p, Reason.MODEL, "max_rounds"),
    "too many steps": (
        {"max_steps": 3},
        lambda p: p.but(local=p.local.but(steps=4)),
        Reason.MODEL,
        "max_steps: steps of an order: the plan has 4, the most is 3",
    ),
    "no registration": (
        {"registration_required": True},
        lambda p: p,
        Reason.REGISTRATION,
        "registration_required: no ethics panel registered the plan",
    ),
    "no masks": ({"masks_required": True}, lambda p: p, Reason.PRIVACY, "masks_required"),
    "a large clipping norm": ({"max_grad_norm": 0.5}, lambda p: p, Reason.PRIVACY, "max_grad_norm"),
    "a large sample rate": ({"max_sample_rate": 0.99}, lambda p: p, Reason.PRIVACY, "max_sample_rate"),
    "a costly order": (
        {"budget": {"life": 1e6, "delta": 1e-5, "order": 0.1}},
        lambda p: p,
        Reason.BUDGET,
        "budget.order",
    ),
    "a costly order to one viewer": (
        {"budget": {"life": 1e6, "delta": 1e-5, "order": {"coordinator": 1e6, "everybody": 0.1}}},
        lambda p: p,
        Reason.BUDGET,
        "to all the others together",
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
    log = (folder / "log" / "node.log").read_text().splitlines()
    assert len(log) == 2
    assert all(f"refused, {reason}" in line and deciding in line for line in log)


def test_every_rule_has_a_case_above_and_refuses_no_plan_that_the_others_were_asked_about(
    plan: TrainPlan,
) -> None:
    """A new rule without a case fails here."""
    keys = {verdict.rule for verdict in rules.explain(Policy(), plan, at()) if verdict.rule != "withdraw"}
    decided = {case[3].split(":")[0].split()[0] for case in REFUSALS.values()}
    with_their_own_tests = {"min_colluders", "max_honest", "ask", "hours"}  # test_masked.py; below
    assert keys - with_their_own_tests <= decided


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
        (lambda text: text.replace('"version":"5"', '"version":"4"'), Reason.VERSION),
        (lambda text: text.replace('"strategy":"fedavgm",', ""), Reason.MALFORMED),
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
    """Key by key: with every list filled in but one, that one still permits nothing."""
    with pytest.raises(Refused):
        rules.review(Policy(), change(plan), at())
    for key in POLICY:
        lacking = Policy.model_validate({other: value for other, value in POLICY.items() if other != key})
        with pytest.raises(Refused):
            rules.review(lacking, change(plan), at())


def test_a_simulation_may_carry_a_seed_and_go_without_noise_but_keeps_its_lists(plan: TrainPlan) -> None:
    simulated = Policy.model_validate(
        {"purposes": ["early-warning"], "models": ["logistic"], "simulation": True}
    )
    rules.review(simulated, privacy(**NONE)(plan.but(seed=1)), at())
    for change, reason in [
        (lambda p: p.but(purpose="ranking"), Reason.PURPOSE),
        (lambda p: p.but(model={"name": "mlp", "hidden": [4]}), Reason.MODEL),
    ]:
        with pytest.raises(Refused) as refused:
            rules.review(simulated, change(plan), at())
        assert refused.value.reason is reason


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("contracts", []),
        ("strategies", []),
        ("releases", []),
        ("never_columns", ["age"]),
        ("max_rounds", 1),
        ("masks_required", True),
        ("max_grad_norm", 1e-3),
    ],
)
def test_a_key_that_is_written_binds_a_simulation_too(plan: TrainPlan, key: str, value: object) -> None:
    """Left out they permit anything there; a person who writes one means it."""
    short = {"purposes": ["early-warning"], "models": ["logistic"], "simulation": True}
    rules.review(Policy.model_validate(short), plan, at())
    with pytest.raises(Refused, match=f"^{key}: "):
        rules.review(Policy.model_validate(short | {key: value}), plan, at())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("purpose = ['x']", "policy.toml: purpose is not a known setting"),
        ("min_people = 0", "policy.toml: min_people should be greater than or equal to 1, got 0"),
        ("models = 'logistic'", "policy.toml: models should be a valid tuple, got 'logistic'"),
        (
            "purposes = ['early-warning']",
            "policy.toml: purposes: early-warning must say why the law permits it: write [purposes.early-warning] and "
            'under it legal_basis = "...". Only a simulation lists purposes by name alone',
        ),
        (
            "[purposes.early-warning]\nexpires = 2027-03-31",
            "policy.toml: purposes: early-warning must say why the law permits it: write [purposes.early-warning] and "
            'under it legal_basis = "...". Only a simulation lists purposes by name alone',
        ),
        (
            "[purposes.early-warning]\nlegal_basis = 'x'\nuntil = 2027-03-31",
            "policy.toml: purposes.early-warning.until is not a known setting",
        ),
        (
            "contracts = ['abc']",
            "policy.toml: contracts.0 must be a contract's SHA-256, 64 small hexadecimal digits, as `fedrisk-node policy "
            "show` prints it; got 'abc'",
        ),
        (
            "releases = ['all']",
            "policy.toml: releases.0 should be 'train', 'evaluate', 'users', 'stats', 'map' or 'cohort', got 'all'",
        ),
        (
            "[hours]\ntimezone = 'London'\nfrom = '08:00'\nto = '18:00'",
            "policy.toml: hours.timezone must be a time zone that this machine knows, as Europe/London, got 'London'",
        ),
        (
            "[hours]\ntimezone = 'Europe/London'\nfrom = '08:00'\nto = '08:00'",
            "policy.toml: hours from and to must differ: leave [hours] out where orders are answered at any time",
        ),
        (
            "[hours]\ntimezone = 'Europe/London'\nfrom = '08:00'\nto = '18:00'\ndays = ['monday']",
            "policy.toml: hours.days.0 should be 'mon', 'tue', 'wed', 'thu', 'fri', 'sat' or 'sun', got 'monday'",
        ),
        ("[hours]\ntimezone = 'UTC'\nfrom = '08:00'", "policy.toml: hours.to is missing"),
        (
            "[probing]\nrefusals = 0",
            "policy.toml: probing.refusals should be greater than or equal to 1, got 0",
        ),
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
        put("node.toml", tomli_w.dumps({k: v for k, v in NODE.items() if k != "contract"})),
        "node.toml: contract is missing",
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
    assert "split.key must hold 32 bytes" in (folder / "log" / "node.log").read_text()
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


# --- what changes with time ---------------------------------------------------------------------------

LONDON = {
    "timezone": "Europe/London",
    "days": ["mon", "tue", "wed", "thu", "fri"],
    "from": "08:00",
    "to": "18:00",
}
NIGHT = LONDON | {"from": "22:00", "to": "05:00"}


@pytest.mark.parametrize(
    ("hours", "now", "open_"),
    [
        (LONDON, "2026-01-05T08:00Z", True),  # a Monday, in winter: London is at UTC
        (LONDON, "2026-01-05T07:59Z", False),
        (LONDON, "2026-01-05T17:59Z", True),
        (LONDON, "2026-01-05T18:00Z", False),
        (LONDON, "2026-01-04T12:00Z", False),  # Sunday
        (LONDON, "2026-07-06T07:00Z", True),  # summer time: one hour earlier in UTC
        (LONDON, "2026-07-06T17:30Z", False),
        (LONDON, "2026-07-06T08:30+02:00", False),
        (NIGHT, "2026-01-05T23:00Z", True),
        (NIGHT, "2026-01-06T04:59Z", True),
        (NIGHT, "2026-01-06T05:00Z", False),
        (NIGHT, "2026-01-05T04:00Z", False),  # Monday's small hours belong to Sunday, which is not listed
        (NIGHT, "2026-01-10T04:00Z", True),  # Saturday's belong to Friday
        (NIGHT, "2026-01-10T23:00Z", False),
    ],
)
def test_working_hours_are_those_of_the_clock_on_the_wall(
    plan: TrainPlan, hours: dict[str, Any], now: str, open_: bool
) -> None:
    policy, moment = Policy.model_validate(POLICY | {"hours": hours}), datetime.fromisoformat(now)
    assert Hours.model_validate(hours).include(moment) is open_
    rules.review(policy, plan, at(moment))
    if open_:
        rules.review_now(policy, plan, at(moment))
    else:
        with pytest.raises(Refused, match=r"^hours: orders are answered") as refused:
            rules.review_now(policy, plan, at(moment))
        assert refused.value.reason is Reason.CLOSED


def test_a_run_meets_closed_when_the_hours_end_and_goes_on_when_they_begin_again(
    tmp_path: Path, plan: TrainPlan
) -> None:
    folder = deployed(tmp_path / "node", POLICY | {"hours": LONDON})
    write_table(folder / "north.csv", people(0), ("visits",))
    node, (ready, first) = open_node(folder), orders(plan)
    node.now = lambda: datetime(2026, 1, 5, 17, 0, tzinfo=UTC)
    assert isinstance(ask(folder, ready), Ready)
    node.now = lambda: datetime(2026, 1, 5, 18, 0, tzinfo=UTC)
    before = node.ledger.head
    assert ask(folder, first) == Refusal("north", Reason.CLOSED)
    assert node.ledger.head == before, "nothing was charged"
    node.now = lambda: datetime(2026, 1, 6, 8, 0, tzinfo=UTC)
    assert isinstance(ask(folder, first), RoundReply)


@pytest.mark.parametrize(
    ("zone", "last_hour", "over"),
    [
        (None, "2027-03-31T23:59Z", "2027-04-01T00:00Z"),
        ("Asia/Tokyo", "2027-03-31T14:59Z", "2027-03-31T15:00Z"),
    ],
)
def test_a_purpose_holds_through_its_last_day_where_the_agency_is(
    plan: TrainPlan, zone: str | None, last_hour: str, over: str
) -> None:
    purposes = {"early-warning": LAWFUL | {"expires": date(2027, 3, 31)}}
    hours = {} if zone is None else {"hours": LONDON | {"timezone": zone}}
    policy = Policy.model_validate(POLICY | {"purposes": purposes} | hours)
    rules.review(policy, plan, at(datetime.fromisoformat(last_hour)))
    with pytest.raises(Refused, match="expired: its last day was 2027-03-31") as refused:
        rules.review(policy, plan, at(datetime.fromisoformat(over)))
    assert refused.value.reason is Reason.PURPOSE


@pytest.mark.parametrize(
    ("of_all", "of_purpose", "asks"),
    [(False, None, False), (True, None, True), (True, False, False), (False, True, True)],
)
def test_a_purpose_says_for_itself_whether_a_person_is_asked(
    plan: TrainPlan, of_all: bool, of_purpose: bool | None, asks: bool
) -> None:
    own = {} if of_purpose is None else {"ask": of_purpose}
    policy = Policy.model_validate(POLICY | {"ask": of_all, "purposes": {"early-warning": LAWFUL | own}})
    decision = rules.deciding(rules.explain(policy, plan, at()))
    assert decision == (
        Verdict(
            "ask", Reason.NOT_YET, f"a person must approve plan {plan.sha256} first: fedrisk-node approve"
        )
        if asks
        else None
    )
    rules.review_now(policy, plan, at(**{plan.sha256: "approved"}))


# --- one order alone ----------------------------------------------------------------------------------


def test_the_cap_of_an_order_is_its_costliest_release_to_each_viewer(plan: TrainPlan) -> None:
    """Training and tables of one order are of different people, so a person's loss is the largest, not the sum."""
    releases = [plan.train_release(), plan.table_release("tune"), plan.table_release("test")]
    costliest = max(epsilon([release], 1e-5) for release in releases)
    budget = {"life": 1e6, "delta": 1e-5}
    rules.review(Policy.model_validate(POLICY | {"budget": budget | {"order": costliest + 1e-9}}), plan, at())
    with pytest.raises(Refused, match=r"^budget\.order: ") as refused:
        rules.review(
            Policy.model_validate(POLICY | {"budget": budget | {"order": costliest - 1e-9}}), plan, at()
        )
    assert refused.value.reason is Reason.BUDGET


# --- explaining ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", list(REFUSALS))
def test_explain_names_the_rule_by_which_review_refuses(case: str, plan: TrainPlan) -> None:
    changes, change, reason, _ = REFUSALS[case]
    policy = Policy.model_validate(
        {key: value for key, value in (POLICY | changes).items() if value is not None}
    )
    asked = change(plan)
    decision = rules.deciding(rules.explain(policy, asked, at()))
    if decision is None:  # node.toml decides, or what can be drawn
        rules.review(policy, asked, at())
        return
    with pytest.raises(Refused) as refused:
        rules.review(policy, asked, at())
    assert (refused.value.reason, refused.value.sentence) == (reason, f"{decision.rule}: {decision.sentence}")


def test_explain_tells_every_rule_even_after_the_one_that_decides(plan: TrainPlan) -> None:
    policy = Policy.model_validate(POLICY | {"models": ["mlp"], "max_rounds": 1, "hours": LONDON})
    verdicts = rules.explain(policy, plan, at(datetime(2026, 1, 4, tzinfo=UTC)))
    assert [verdict.rule for verdict in verdicts if not verdict.permits] == ["models", "max_rounds", "hours"]
    assert len(verdicts) == len(rules.explain(Policy.model_validate(POLICY), plan, at()))
    assert all(verdict.sentence for verdict in verdicts)


def test_the_words_of_a_policy_tell_every_key_of_it() -> None:
    """A key that is added must be told to whoever is responsible for data protection."""
    contract = Contract.from_dict(CONTRACT)
    whole = Policy.model_validate(
        POLICY
        | {"budget": dict.fromkeys(["life", "year", "experiment", "order"], 1.0) | {"delta": 1e-5}}
        | {"hours": LONDON, "never_columns": ["ethnicity"]}
    )
    told = {line.key.split(".")[0] for line in policy_words.show(whole, contract)}
    assert told == set(Policy.model_fields)
    text = "\n".join(f"{line.key} {line.says}" for line in policy_words.show(whole, contract))
    for said in (
        "made up for a test",
        "ethnicity",
        "08:00 to 18:00 in Europe/London",
        HASH,
        "does not expire",
    ):
        assert said in text
    nothing = "\n".join(line.says for line in policy_words.show(Policy(), contract))
    assert "no purpose is listed" in nothing
    assert "not permitted: no order can be answered" in nothing
    assert "nothing can be spent" in nothing


# --- docs/policy.md -----------------------------------------------------------------------------------

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "policy.md").read_text()


def test_the_page_on_policies_has_every_key_and_reason() -> None:
    for key in Policy.model_fields:
        assert f"`{key}`" in PAGE or f"`[{key}]`" in PAGE or f"`[{key}." in PAGE, key
    for reason in Reason:
        assert f"`{reason}`" in PAGE, reason


def test_the_example_of_the_page_is_a_policy_and_uses_every_key() -> None:
    (example,) = re.findall(r"```toml\n(# policy\.toml.*?)```", PAGE, re.DOTALL)
    found = tomllib.loads(example)
    Policy.model_validate(found)
    assert set(Policy.model_fields) - {"simulation"} == set(found)


def test_a_default_that_the_page_tells_is_the_default() -> None:
    told = dict(re.findall(r"^\| `([a-z_]+)` \| (?:none|`(.+?)`) \|", PAGE, re.MULTILINE))
    assert len(told) > 15
    values = Policy()
    for key, default in told.items():
        value = getattr(values, key)
        assert (tomllib.loads(f"x = {default}")["x"] if default else None) == (
            list(value) if isinstance(value, tuple) else value
        ), key


def test_a_plan_names_the_strategy_of_the_settings(make_study: MakeStudy) -> None:
    assert make_study("strategy=fedavgm").experiment.plan("run-1", simulation=False).strategy == "fedavgm"


@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_kind_of_release_is_explained_wherever_a_policy_is(kind: Kind) -> None:
    assert policy_words.KINDS[kind]
    listed = Policy(releases=(kind,))
    (said,) = [
        line.says
        for line in policy_words.show(listed, Contract.from_dict(CONTRACT))
        if line.key == "releases"
    ]
    assert policy_words.KINDS[kind] in said
    assert f'"{kind}"' in policy_template.POLICY
    keys = (Path(__file__).parent.parent / "docs" / "policy.md").read_text()
    assert f"`{kind}`" in next(line for line in keys.splitlines() if line.startswith("| `releases` |"))
    event = Release(kind, "test", 5.0, 1.0, 1)
    assert recorder._what(event) in get_args(journal_lines.What)
