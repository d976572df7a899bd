"""What a person decided on a plan holds from the next order on; the record of it shows when it was touched."""

import errno
import json
import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeStudy, people, write_table
from test_policy import LAWFUL, POLICY, ask, deployed, orders

from clients import journal
from clients.approvals import MOST_ASKED, Approvals, ApprovalsError, asked, keep_asked, read_plan
from clients.folder import NodeError
from clients.node import open_node
from federation import wire
from federation.plan import TrainPlan
from federation.protocol import Ready, Reason, Refusal, RoundReply, StatsOrder, StatsReply
from federation.stats import StatsPlan

WHEN = datetime(2026, 1, 5, 9, 30, tzinfo=UTC)
PLAN, OTHER = "a" * 64, "b" * 64
DECIDED = ("A. Jones, DPO", "DPIA 2026-14 covers it")


@pytest.fixture
def plan(make_study: MakeStudy) -> TrainPlan:
    return make_study("rounds=2", "evaluation.checkpoints=1").experiment.plan("run-1", simulation=False)


@pytest.fixture
def decided(tmp_path: Path) -> Approvals:
    """Three decisions on two plans."""
    approvals = Approvals(tmp_path)
    approvals.approve(PLAN, *DECIDED, WHEN)
    approvals.approve(OTHER, "B. Patel", "as agreed on Monday", WHEN + timedelta(hours=1))
    approvals.withdraw(PLAN, *DECIDED, WHEN + timedelta(hours=2))
    return approvals


# --- the record ---------------------------------------------------------------------------------------


def test_the_last_decision_on_a_plan_counts_and_all_are_kept(decided: Approvals) -> None:
    assert decided.standing() == {PLAN: "withdrawn", OTHER: "approved"}
    first, *_, last = decided.decisions()
    assert (first.who, first.why, first.at) == (*DECIDED, WHEN)
    assert [decision.action for decision in decided.decisions()] == ["approved", "approved", "withdrawn"]
    decided.approve(PLAN, *DECIDED, WHEN + timedelta(hours=3))
    assert Approvals(decided.folder).standing()[PLAN] == "approved", "another process reads the same"
    assert decided.verify() == 4
    assert last.plan_sha256 == PLAN


def test_nobody_else_reads_the_record_and_none_is_none(tmp_path: Path) -> None:
    assert Approvals(tmp_path).standing() == {}
    assert Approvals(tmp_path).verify() == 0
    assert not list(tmp_path.iterdir()), "looking makes no file"
    Approvals(tmp_path).approve(PLAN, *DECIDED, WHEN)
    assert stat.S_IMODE((tmp_path / "approvals.jsonl").stat().st_mode) == 0o600


def test_the_journal_names_each_decision_without_its_reason(decided: Approvals) -> None:
    noted = [(r.kind, r.facts) for r in journal.read(decided.folder)]
    assert noted[0] == ("approved", {"plan_sha256": PLAN, "by": DECIDED[0]})
    assert [kind for kind, _ in noted] == ["approved", "approved", "withdrawn"]
    assert DECIDED[1] not in (decided.folder / "log" / "journal.jsonl").read_text()


def lines_of(decided: Approvals) -> list[bytes]:
    return decided.path.read_bytes().splitlines(keepends=True)


def changed(lines: list[bytes], number: int, **values: Any) -> list[bytes]:
    facts = json.loads(lines[number]) | values
    return [*lines[:number], json.dumps(facts).encode() + b"\n", *lines[number + 1 :]]


TOUCHED: dict[str, tuple[Callable[[list[bytes]], list[bytes]], int]] = {
    "another person": (lambda lines: changed(lines, 0, who="C. Smith"), 1),
    "another plan": (lambda lines: changed(lines, 1, plan_sha256=PLAN), 2),
    "another action": (lambda lines: changed(lines, 2, action="approved"), 3),
    "another time": (lambda lines: changed(lines, 1, at="2026-01-01T00:00:00.000+00:00"), 2),
    "removed": (lambda lines: [lines[0], lines[2]], 2),
    "removed at the start": (lambda lines: lines[1:], 1),
    "moved": (lambda lines: [lines[1], lines[0], lines[2]], 1),
    "twice": (lambda lines: [lines[0], *lines], 2),
    "not JSON": (lambda lines: [lines[0], b"[]\n", *lines[1:]], 2),
    "an empty line": (lambda lines: [lines[0], b"\n", *lines[1:]], 2),
}


@pytest.mark.parametrize("case", list(TOUCHED))
def test_a_line_that_was_touched_is_named_and_no_order_is_answered(
    case: str, decided: Approvals, plan: TrainPlan, tmp_path: Path
) -> None:
    touch, line = TOUCHED[case]
    decided.path.write_bytes(b"".join(touch(lines_of(decided))))
    with pytest.raises(ApprovalsError, match=f"fails its hash chain at line {line},"):
        decided.standing()
    folder = deployed(tmp_path / "node")
    decided.path.rename(folder / "approvals.jsonl")
    assert ask(folder, orders(plan)[0]) == Refusal("north", Reason.UNAVAILABLE)
    assert f"fails its hash chain at line {line}" in (folder / "log" / "node.log").read_text()


def test_a_decision_that_was_removed_from_the_end_is_found_by_the_journal(decided: Approvals) -> None:
    """The chain alone holds: a withdrawal that disappears is what matters most."""
    decided.path.write_bytes(b"".join(lines_of(decided)[:2]))
    assert decided.standing() == {PLAN: "approved", OTHER: "approved"}
    with pytest.raises(ApprovalsError, match="does not have the decisions that the journal has"):
        decided.verify()


def test_half_a_line_of_a_crash_never_counted_and_goes(decided: Approvals) -> None:
    *_, last = lines_of(decided)
    with decided.path.open("ab") as file:
        file.write(last[:-20])
    assert decided.verify() == 3
    decided.approve(PLAN, *DECIDED, WHEN)
    assert decided.verify() == 4
    assert len(lines_of(decided)) == 4


@pytest.mark.parametrize(
    ("plan_sha256", "who", "why", "sentence"),
    [
        ("abc", *DECIDED, "named by its SHA-256"),
        (PLAN.upper(), *DECIDED, "named by its SHA-256"),
        (PLAN, " ", "x", "who must be said"),
        (PLAN, "x", "", "why must be said"),
    ],
)
def test_a_decision_that_lacks_something_is_one_sentence_and_not_written(
    tmp_path: Path, plan_sha256: str, who: str, why: str, sentence: str
) -> None:
    with pytest.raises(ApprovalsError, match=sentence):
        Approvals(tmp_path).approve(plan_sha256, who, why, WHEN)
    assert not (tmp_path / "approvals.jsonl").exists()


def test_a_reason_with_a_line_break_stays_one_line(tmp_path: Path) -> None:
    Approvals(tmp_path).approve(PLAN, "A\nB", '"}\n{' * 200, WHEN)
    assert len(lines_of(Approvals(tmp_path))) == 1
    assert Approvals(tmp_path).decisions()[0].who == "A?B"


def test_a_full_disk_is_one_sentence_and_nothing_was_decided(
    decided: Approvals, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(ApprovalsError, match=r"\(No space left on device\): nothing was decided"):
            decided.approve(PLAN, *DECIDED, WHEN)
    assert decided.standing()[PLAN] == "withdrawn"
    assert decided.verify() == 3


# --- the node -----------------------------------------------------------------------------------------


def asking(folder: Path, **more: Any) -> Path:
    """A node with records whose policy says: ask."""
    home = deployed(folder, POLICY | {"ask": True} | more)
    write_table(home / "north.csv", people(0), ("visits",))
    return home


def test_a_plan_waits_for_a_person_then_runs_and_a_withdrawal_stops_it(
    tmp_path: Path, plan: TrainPlan
) -> None:
    folder = asking(tmp_path / "node")
    node, approvals = open_node(folder), Approvals(folder)
    ready, first = orders(plan)
    for order in (ready, first):
        assert ask(folder, order) == Refusal("north", Reason.NOT_YET)
    assert [entry.action for entry in node.ledger.entries()] == ["people"], "nothing is reserved or charged"
    log = (folder / "log" / "node.log").read_text()
    assert f"refused, NOT_YET: ask: a person must approve plan {plan.sha256} first" in log

    approvals.approve(plan.sha256, *DECIDED, WHEN)
    assert isinstance(ask(folder, ready), Ready)
    assert isinstance(ask(folder, first), RoundReply)

    approvals.withdraw(plan.sha256, *DECIDED, WHEN)
    before = node.ledger.head
    for order in (ready, first):  # `first` had been answered: not even the stored reply leaves again
        assert ask(folder, order) == Refusal("north", Reason.WITHDRAWN)
    assert node.ledger.head == before


def test_an_approval_is_of_one_plan_alone(tmp_path: Path, plan: TrainPlan) -> None:
    folder = asking(tmp_path / "node")
    Approvals(folder).approve(plan.sha256, *DECIDED, WHEN)
    for other in (plan.but(run_id="run-2"), plan.but(rounds=3), plan.but(strategy="fedavg")):
        assert ask(folder, orders(other)[0]) == Refusal("north", Reason.NOT_YET)


def test_a_person_may_withdraw_where_nobody_was_asked(tmp_path: Path, plan: TrainPlan) -> None:
    folder = asking(tmp_path / "node", ask=False)
    ready = orders(plan)[0]
    assert isinstance(ask(folder, ready), Ready)
    Approvals(folder).withdraw(plan.sha256, *DECIDED, WHEN)
    assert ask(folder, ready) == Refusal("north", Reason.WITHDRAWN)
    assert isinstance(ask(folder, orders(plan.but(run_id="run-2"))[0]), Ready), "other plans go on"


def test_an_approval_permits_nothing_that_the_policy_does_not(tmp_path: Path, plan: TrainPlan) -> None:
    folder = asking(tmp_path / "node")
    wrong = plan.but(purpose="ranking")
    Approvals(folder).approve(wrong.sha256, *DECIDED, WHEN)
    assert ask(folder, orders(wrong)[0]) == Refusal("north", Reason.PURPOSE)


def test_a_statistic_is_asked_about_as_well(tmp_path: Path, plan: TrainPlan) -> None:
    folder = asking(
        tmp_path / "node",
        ask=False,
        purposes={"early-warning": LAWFUL | {"ask": True}},
        stats_columns=["age"],
    )
    terms = {name: getattr(plan, name) for name in set(StatsPlan.model_fields) & set(TrainPlan.model_fields)}
    stats = StatsPlan(**terms, column="age", sigma=20.0, delta=1e-5)
    order = lambda node: wire.pack_stats_order(StatsOrder(stats), node)  # noqa: E731
    assert ask(folder, order) == Refusal("north", Reason.NOT_YET)
    (waiting,) = asked(folder)
    assert waiting == stats
    Approvals(folder).approve(stats.sha256, *DECIDED, WHEN)
    assert isinstance(ask(folder, order), StatsReply)


# --- plans that wait ----------------------------------------------------------------------------------


def test_the_plan_itself_is_kept_for_whoever_decides_and_until_then(tmp_path: Path, plan: TrainPlan) -> None:
    folder = asking(tmp_path / "node")
    ask(folder, orders(plan)[0])
    (path,) = (folder / "asked").iterdir()
    assert path.name == f"{plan.sha256}.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_plan(path) == plan
    assert asked(folder) == [plan]
    Approvals(folder).approve(plan.sha256, *DECIDED, WHEN)
    assert asked(folder) == []


def test_a_plan_that_another_rule_refuses_is_not_kept(tmp_path: Path, plan: TrainPlan) -> None:
    folder = asking(tmp_path / "node")
    wrong_size = plan.but(participants=[p.but(public_size=301) for p in plan.participants])
    for wrong in (plan.but(purpose="ranking"), wrong_size):
        ask(folder, orders(wrong)[0])
    assert not (folder / "asked").exists()


def test_asking_again_and_again_fills_no_disk(tmp_path: Path, plan: TrainPlan) -> None:
    for number in range(MOST_ASKED + 5):
        keep_asked(tmp_path, plan.but(run_id=f"run-{number}"))
    assert len(asked(tmp_path)) == MOST_ASKED
    assert asked(tmp_path)[0].run_id == f"run-{MOST_ASKED + 4}"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is not a plan in JSON"),
        ("[1]", "plan.json"),
        ('{"rounds": -1}', "plan.json: rounds should be greater than or equal to 0, got -1"),
    ],
)
def test_a_file_that_is_no_plan_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(NodeError, match=sentence):
        read_plan(tmp_path / "plan.json")
    with pytest.raises(NodeError, match="cannot be read"):
        read_plan(tmp_path / "other.json")
