"""Agencies that say "not now": asked again at the start, missing a round later, and named; who withdraws is gone."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeStudy
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from test_rounds import AGENCIES, FACTS, Answer, honest, last

from experiments.engines import LocalGrid
from federation import wire
from federation.experiment import Experiment
from federation.plan import NOT_NOW
from federation.protocol import Ready, Reason, Refusal, RoundOrder, RoundReply
from federation.server.rounds import RunError, run_federation

STATUS = {Reason.NOT_YET: "not yet", Reason.CLOSED: "closed", Reason.BUSY: "busy"}
AT_THE_START: Mapping[str, Sequence[Reason]] = dict.fromkeys(AGENCIES, ())


class Agencies:
    """A grid whose agencies say `start[name]` one after another before they are ready, and `answers[name]` in rounds."""

    def __init__(
        self,
        start: Mapping[str, Sequence[Reason]] = AT_THE_START,
        answers: Mapping[str, Answer] | None = None,
    ) -> None:
        self.asked: dict[str, int] = dict.fromkeys(AGENCIES, 0)
        answers = dict.fromkeys(AGENCIES, honest) | dict(answers or {})
        app = ClientApp()

        @app.query("ready")
        def ready(message: Message, context: Context) -> Message:
            name = str(context.node_config["name"])
            self.asked[name] += 1
            says = [*start.get(name, ()), None][min(self.asked[name], len(start.get(name, ())) + 1) - 1]
            return wire.pack_reply(Ready(name) if says is None else Refusal(name, says), message)

        @app.train("round")
        def one_round(message: Message, context: Context) -> Message:
            name = str(context.node_config["name"])
            reply = answers[name](wire.read_round_order(message), name)
            assert reply is not None
            return wire.pack_reply(reply, message)

        self.grid = LocalGrid(app, [{"name": name} for name in AGENCIES])


@pytest.fixture
def experiment(make_study: MakeStudy) -> Experiment:
    quick = ("round_timeout=0.2", "join_timeout=0.5", "engine.poll_seconds=0.01", "void_rounds=1")
    return make_study(*quick).experiment


def in_rounds(reason: Reason, rounds: Sequence[int]) -> Answer:
    """Refuses in these rounds, else is honest."""
    return lambda order, name: Refusal(name, reason) if order.round in rounds else honest(order, name)


@pytest.mark.parametrize("reason", sorted(NOT_NOW))
def test_who_says_not_now_at_the_start_is_asked_again_alone_and_takes_part(
    experiment: Experiment, tmp_path: Path, reason: Reason
) -> None:
    agencies = Agencies({"south": [reason, reason]})
    result = run_federation(agencies.grid, experiment, FACTS, tmp_path)
    assert agencies.asked == {"clinic": 1, "north": 1, "south": 3}
    assert result["agencies"]["south"]["status"] == "trained"
    assert result["agencies"]["south"]["rounds"] == 4


@pytest.mark.parametrize("reason", sorted(NOT_NOW))
def test_who_says_so_until_the_time_is_over_is_named_and_the_others_go_on(
    experiment: Experiment, tmp_path: Path, reason: Reason
) -> None:
    agencies = Agencies({"south": [reason] * 1000})
    result = run_federation(agencies.grid, experiment, FACTS, tmp_path)
    south = result["agencies"]["south"]
    assert (south["status"], south["reason"]) == (STATUS[reason], reason.value)
    assert south["releases"] == [], "it was never sent an order"
    assert 3 <= agencies.asked["south"] <= 12, (
        "a tenth of join_timeout lies between; once more in the first five rounds"
    )
    assert result["rounds"][-1]["replied"] == ["clinic", "north"]


@pytest.mark.parametrize("reason", sorted(set(Reason) - NOT_NOW - {Reason.UNAVAILABLE}))
def test_any_other_refusal_is_final_at_once(experiment: Experiment, tmp_path: Path, reason: Reason) -> None:
    agencies = Agencies({"south": [reason]})
    result = run_federation(agencies.grid, experiment, FACTS, tmp_path)
    assert agencies.asked["south"] == 1
    assert result["agencies"]["south"]["reason"] == reason.value


def test_too_few_at_the_start_says_who_and_why(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study("min_agencies=3", "join_timeout=0.1", "engine.poll_seconds=0.01")
    agencies = Agencies({"south": [Reason.NOT_YET] * 1000, "north": [Reason.CLOSED] * 1000})
    with pytest.raises(RunError, match=r"not in: north \(closed: CLOSED\), south \(not yet: NOT_YET\)"):
        run_federation(agencies.grid, study.experiment, FACTS, tmp_path)


@pytest.mark.parametrize("reason", sorted(NOT_NOW))
def test_who_says_not_now_in_a_round_misses_it_and_comes_back(
    experiment: Experiment, tmp_path: Path, reason: Reason
) -> None:
    agencies = Agencies(answers={"south": in_rounds(reason, [2, 3])})
    result = run_federation(agencies.grid, experiment, FACTS, tmp_path)
    assert [record["refused"] for record in result["rounds"]] == [
        {},
        {"south": reason.value},
        {"south": reason.value},
        {},
    ]
    assert [len(record["replied"]) for record in result["rounds"]] == [3, 2, 2, 3]
    south = result["agencies"]["south"]
    assert (south["status"], south["rounds"]) == ("trained", 2)
    charged = {
        release["kind"]: release["times"] for release in south["releases"] if release["part"] == "train"
    }
    assert charged == {"train": 2}, "an order that was refused like this was not charged"


def test_a_quorum_that_is_missed_again_and_again_ends_the_run_and_names_who_is_away(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    study = make_study("min_agencies=3", "void_rounds=1", "join_timeout=0.2", "round_timeout=0.2")
    agencies = Agencies(answers={"south": in_rounds(Reason.CLOSED, range(2, 9))})
    with pytest.raises(RunError, match=r"at round 3 than min_agencies=3 asks for; not in: south \(closed\)"):
        run_federation(agencies.grid, study.experiment, FACTS, tmp_path)
    before = last(tmp_path)
    result = run_federation(Agencies().grid, study.experiment, FACTS, tmp_path)
    assert result["rounds"][-1]["replied"] == list(AGENCIES), "in the morning it is resumed"
    assert any((before[name] != value).any() for name, value in last(tmp_path).items())


def test_who_withdraws_during_a_run_is_gone_for_good_and_the_others_go_on(
    experiment: Experiment, tmp_path: Path
) -> None:
    asked: list[int] = []

    def withdrawn(order: RoundOrder, name: str) -> RoundReply | Refusal:
        asked.append(order.round)
        return honest(order, name) if order.round == 1 else Refusal(name, Reason.WITHDRAWN)

    result = run_federation(Agencies(answers={"south": withdrawn}).grid, experiment, FACTS, tmp_path)
    south = result["agencies"]["south"]
    assert asked == [1, 2], "nothing is sent there any more"
    assert (south["status"], south["reason"], south["rounds"]) == ("withdrawn", "WITHDRAWN", 1)
    train = [release for release in south["releases"] if release["kind"] == "train"]
    assert sum(release["times"] for release in train) == 1, (
        "what it released stays released, and no more is counted"
    )
    assert [len(record["replied"]) for record in result["rounds"]] == [3, 2, 2, 2]


# --- a statistic, and masks ---------------------------------------------------------------------------


def test_a_statistic_waits_for_a_person_and_charges_nobody_who_said_not_now(
    make_study: MakeStudy, folder: Path
) -> None:
    """Real nodes: one asks a person, who approves at the second asking; one is outside its hours throughout."""
    from datetime import UTC, datetime

    import tomli_w
    from test_policy import LONDON
    from test_stats import plant, run, simulated

    from clients.approvals import Approvals
    from clients.node import open_node

    plant(folder)
    quick = ("join_timeout=0.5", "engine.poll_seconds=0.01")
    experiment, plan, homes = simulated(make_study, folder, *quick)
    rules: dict[str, Any] = {
        "simulation": True,
        "purposes": ["early-warning"],
        "stats_columns": [plan.column],
    }
    asks, closed = homes[0], homes[1]
    (asks / "policy.toml").write_text(tomli_w.dumps(rules | {"ask": True}))
    (closed / "policy.toml").write_text(tomli_w.dumps(rules | {"hours": LONDON}))
    times: list[datetime] = []

    def sunday() -> datetime:
        times.append(datetime(2026, 1, 4, 12, tzinfo=UTC))
        if len(times) == 2:
            Approvals(asks).approve(plan.sha256, "A. Jones", "it was agreed", times[-1])
        return times[-1]

    open_node(asks).now = open_node(closed).now = sunday
    found = run(experiment, plan, homes, folder)
    said = {name: (facts["status"], facts["reason"]) for name, facts in found["agencies"].items()}
    names = [home.name for home in homes]
    assert said == {
        names[0]: ("counted", None),
        names[1]: ("closed", "CLOSED"),
        names[2]: ("counted", None),
    }
    assert found["agencies"][names[1]]["releases"] == []
    assert not [e for e in open_node(closed).ledger.entries() if e.action == "charge"]


def test_behind_masks_an_agency_that_is_closed_is_a_dropout_of_that_round_alone(
    make_shared: MakeStudy, tmp_path: Path
) -> None:
    """Five real nodes, c = d = 1: one is outside its hours in the second of three rounds."""
    import tomllib
    from datetime import UTC, datetime

    import tomli_w
    from test_masked import FACTS as SHARED_FACTS
    from test_policy import LONDON

    from clients.app import make_app, node_from_config
    from clients.node import open_node
    from experiments.engines import make_node_folders

    study = make_shared()
    homes = make_node_folders(
        study.agencies, study.experiment.contract, tmp_path / "nodes", seed=0, min_people=20
    )
    away = homes[-1]
    policy = tomllib.loads((away / "policy.toml").read_text())
    (away / "policy.toml").write_text(tomli_w.dumps(policy | {"hours": LONDON}))
    node, real = open_node(away), type(open_node(away)).round
    node.now = lambda: datetime(2026, 1, 5, 12, tzinfo=UTC)

    def at_round(order: RoundOrder) -> Any:
        node.now = lambda: datetime(
            2026, 1, 4 if order.round == 2 else 5, 12, tzinfo=UTC
        )  # a Sunday, a Monday
        return real(node, order)

    make_round: Callable[[RoundOrder], Any] = at_round
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            "clients.node.Node.round",
            lambda self, order: (make_round if self is node else real.__get__(self))(order),
        )
        grid = LocalGrid(make_app(node_from_config), [{"node-dir": str(home)} for home in homes])
        result = run_federation(grid, study.experiment, SHARED_FACTS, tmp_path / "run")
    assert [record["refused"] for record in result["rounds"]] == [{}, {away.name: "CLOSED"}, {}]
    assert [record["void"] for record in result["rounds"]] == [None, None, None]
    assert [len(record["replied"]) for record in result["rounds"]] == [5, 4, 5]
    assert result["agencies"][away.name]["status"] == "trained"
