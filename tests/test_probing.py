"""Refusals are counted on the disk, and beyond the limit a new plan gets BUSY, whatever it says and the records are."""

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeStudy, people, write_table
from test_policy import POLICY, ask, deployed, orders, untouched

from clients import node as node_module
from clients.journal import read
from clients.node import Node, open_node
from clients.policy import ProbingRules
from clients.probing import ONCE, TELL, Counted, Probing, ProbingError
from federation.plan import TrainPlan
from federation.protocol import Ready, Reason, Refusal, Refused, RoundReply

START = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)


class Clock:
    """A time that a test sets."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def plan(make_study: MakeStudy) -> TrainPlan:
    return make_study("rounds=2", "evaluation.checkpoints=1").experiment.plan("run-1", simulation=False)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def is_busy(probing: Probing, plan: TrainPlan) -> str | None:
    """The sentence, where `plan` is not looked at."""
    try:
        probing.check(plan)
    except Refused as refused:
        return refused.sentence if refused.reason is Reason.BUSY else "another reason"
    return None


RULES = ProbingRules(refusals=4, per_experiment=3, hours=24)


def test_so_many_refusals_in_the_window_and_no_more(tmp_path: Path, plan: TrainPlan, clock: Clock) -> None:
    probing = Probing(tmp_path, RULES, clock)
    for number in range(3):
        assert is_busy(probing, plan) is None
        probing.refused(plan.but(run_id=f"run-{number}"), Reason.PURPOSE)
        clock.now += timedelta(hours=1)
    assert is_busy(probing, plan) == (
        "probing.per_experiment: 3 refusals of experiment small in 24 hours: no new plan is looked at for now"
    )
    other = plan.but(experiment="another")
    assert is_busy(probing, other) is None, "other studies are not held up"
    probing.refused(other, Reason.MODEL)
    assert "probing.refusals: 4 refusals in 24 hours" in str(is_busy(probing, plan.but(experiment="third")))
    clock.now = START + timedelta(hours=24, seconds=-1)
    assert is_busy(probing, plan) is not None
    clock.now = START + timedelta(hours=24)
    assert is_busy(probing, plan) is None, "the first is out of the window"
    assert probing.counted() == Counted(3, {"small": 2, "another": 1})


def test_a_restart_does_not_reset_the_count(tmp_path: Path, plan: TrainPlan, clock: Clock) -> None:
    for _ in range(3):
        Probing(tmp_path, RULES, clock).refused(plan, Reason.BUDGET)
    assert is_busy(Probing(tmp_path, RULES, clock), plan) is not None
    assert stat.S_IMODE((tmp_path / "probing.db").stat().st_mode) == 0o600


def test_a_clock_that_is_set_back_frees_nothing(tmp_path: Path, plan: TrainPlan, clock: Clock) -> None:
    probing = Probing(tmp_path, RULES, clock)
    for _ in range(3):
        probing.refused(plan, Reason.BUDGET)
    clock.now -= timedelta(days=400)
    assert is_busy(probing, plan) is not None


def test_a_plan_that_was_accepted_goes_on_also_after_a_restart(
    tmp_path: Path, plan: TrainPlan, clock: Clock
) -> None:
    probing = Probing(tmp_path, RULES, clock)
    probing.accepted(plan)
    for _ in range(10):
        probing.refused(plan.but(run_id="probe"), Reason.PRIVACY)
    for each in (probing, Probing(tmp_path, RULES, clock)):
        assert is_busy(each, plan) is None
        assert is_busy(each, plan.but(rounds=plan.rounds + 1)) is not None, "another plan is another plan"


@pytest.mark.parametrize("reason", list(Reason))
def test_what_counts(tmp_path: Path, plan: TrainPlan, clock: Clock, reason: Reason) -> None:
    probing = Probing(tmp_path, RULES, clock)
    for _ in range(2):
        probing.refused(plan, reason)
    probing.refused(plan.but(run_id="run-2"), reason)
    expected = {**dict.fromkeys(TELL, 3), **dict.fromkeys(ONCE, 2)}
    assert probing.counted().refusals == expected.get(reason, 0)


def test_a_plan_that_waits_is_counted_once_whether_for_a_person_or_for_the_morning(
    tmp_path: Path, plan: TrainPlan, clock: Clock
) -> None:
    probing = Probing(tmp_path, RULES, clock)
    for reason in (Reason.NOT_YET, Reason.CLOSED, Reason.NOT_YET):
        probing.refused(plan, reason)
    assert probing.counted().refusals == 1


def test_a_simulation_counts_nothing_and_makes_no_file(tmp_path: Path, plan: TrainPlan) -> None:
    probing = Probing(tmp_path, None)
    probing.refused(plan, Reason.PURPOSE)
    probing.accepted(plan)
    assert is_busy(probing, plan) is None
    assert not (tmp_path / "probing.db").exists()


# --- the node -----------------------------------------------------------------------------------------


def probed(folder: Path, plan: TrainPlan, times: int) -> list[Any]:
    """What the node says to `times` different plans for a purpose that is not permitted."""
    wrong = [plan.but(purpose="ranking", run_id=f"probe-{number}") for number in range(times)]
    return [ask(folder, orders(each)[0]) for each in wrong]


def rules(**probing: int) -> dict[str, Any]:
    return POLICY | {"probing": {"refusals": 3, "per_experiment": 3} | probing}


def test_a_node_that_is_probed_looks_at_no_new_plan_and_says_so_in_its_log(
    tmp_path: Path, plan: TrainPlan
) -> None:
    folder = deployed(tmp_path / "node", rules())
    write_table(folder / "north.csv", people(0), ("visits",))
    ready, first = orders(plan)
    assert isinstance(ask(folder, ready), Ready)
    assert probed(folder, plan, 4) == [Refusal("north", Reason.PURPOSE)] * 3 + [Refusal("north", Reason.BUSY)]
    good = plan.but(run_id="run-2")
    for order in orders(good):
        assert ask(folder, order) == Refusal("north", Reason.BUSY), "whatever it says"
    assert isinstance(ask(folder, first), RoundReply), "what was accepted goes on"
    assert (
        "refused, BUSY: probing.refusals: 3 refusals in 24 hours" in (folder / "log" / "node.log").read_text()
    )
    noted = [record.facts for record in read(folder) if record.kind == "refused"]
    assert [facts["reason"] for facts in noted] == ["PURPOSE"] * 3 + ["BUSY"] * 3
    assert noted[-1]["rule"] == "probing.refusals"

    node_module.open_node.cache_clear()  # as a new process
    node = open_node(folder)
    assert ask(folder, orders(good)[0]) == Refusal("north", Reason.BUSY)
    node.now = lambda: datetime.now(UTC) + timedelta(hours=24)
    assert isinstance(ask(folder, orders(good)[0]), Ready)


def test_busy_does_not_depend_on_records_but_through_the_count(tmp_path: Path, plan: TrainPlan) -> None:
    """Two agencies, one of which has too few people: the same orders after the limit get the same answers."""
    folders = [deployed(tmp_path / name, rules()) for name in ("many", "few")]
    for folder, count in zip(folders, (300, 20), strict=True):
        write_table(folder / "north.csv", people(0, count), ("visits",))
        probed(folder, plan, 3)
    answers = [[ask(folder, order) for order in orders(plan.but(run_id="new"))] for folder in folders]
    assert answers[0] == answers[1] == [Refusal("north", Reason.BUSY)] * 2


def test_a_refusal_that_depends_on_records_counts_as_well(tmp_path: Path, plan: TrainPlan) -> None:
    folder = deployed(tmp_path / "node", rules())
    write_table(folder / "north.csv", people(0, 20), ("visits",))
    said = [ask(folder, orders(plan.but(run_id=f"run-{number}"))[0]) for number in range(4)]
    assert said == [Refusal("north", Reason.UNAVAILABLE)] * 3 + [Refusal("north", Reason.BUSY)]


def test_an_acceptance_is_never_cheaper_than_a_refusal_it_reserves_the_whole_plan(
    tmp_path: Path, plan: TrainPlan
) -> None:
    """Asking for many plans that are all permitted uses up the budget, without a single draw."""
    folder = deployed(tmp_path / "node", POLICY | {"budget": {"life": 9.0, "delta": 1e-5}})
    write_table(folder / "north.csv", people(0), ("visits",))
    said = [ask(folder, orders(plan.but(run_id=f"run-{number}"))[0]) for number in range(12)]
    accepted = sum(isinstance(reply, Ready) for reply in said)
    assert 0 < accepted < 12
    assert said[-1] in (Refusal("north", Reason.BUDGET), Refusal("north", Reason.BUSY))


def test_a_count_that_cannot_be_kept_stops_the_node(tmp_path: Path, plan: TrainPlan) -> None:
    folder = deployed(tmp_path / "node", rules())
    (folder / "probing.db").write_bytes(b"not a database, and long enough to be looked at" * 40)
    with pytest.raises(ProbingError, match=r"probing\.db cannot be used \(DatabaseError\)"):
        open_node(folder).probing.check(plan)
    for order in orders(plan):
        assert ask(folder, order) == Refusal("north", Reason.UNAVAILABLE)
    assert untouched(open_node(folder))
    assert "without a count of refusals nothing is answered" in (folder / "log" / "node.log").read_text()


def test_a_refusal_that_cannot_be_counted_does_not_leave_with_its_class(
    tmp_path: Path, plan: TrainPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = deployed(tmp_path / "node", rules())
    node: Node = open_node(folder)

    def full(*_: object) -> None:
        raise ProbingError("the disk is full")

    monkeypatch.setattr(node.probing, "refused", full)
    assert probed(folder, plan, 1) == [Refusal("north", Reason.UNAVAILABLE)]
