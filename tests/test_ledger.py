"""The ledger: what is charged stays, what is refused changes nothing, what is tampered with shows."""

import contextlib
import hashlib
import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from clients.budget import Span
from clients.ledger import Budget, FilterOrder, Ledger, LedgerError, Limit, PlanFacts
from federation import renyi
from federation.plan import Reason, Refused
from federation.privacy import Event, LaplaceRelease, Release, SharedRelease, Spending, epsilon

ROOT = Path(__file__).resolve().parent.parent
DELTA = 1e-5
PLAN, OTHER, THIRD = (PlanFacts(letter * 64, f"run-{letter}", "heart", "care") for letter in "abc")
TRAIN = Release("train", "train", 2.0, 0.1, 50)
TABLE = Release("evaluate", "tune", 8.0, 1.0, 1)
SHARED = SharedRelease("train", "train", 1000.0, 4_000_000, 64, 5, 1, 1, 0.1, 50)
CANARY = "canary-5f1e9"
PEOPLE = "police: people of the county"


def steps(release: Release, count: int) -> Release:
    return Release(release.kind, release.part, release.noise_multiplier, release.sample_rate, count)


def open_ledger(path: Path, budget: float | Budget | None = None, **other: Any) -> Ledger:
    """A float is the ε of one limit for life."""
    if isinstance(budget, float):
        budget = (Limit("life", None, DELTA, {"coordinator": budget}),)
    return Ledger(path, **{"budget": budget, "scope": "lifetime", "people": PEOPLE, "split_id": "s", **other})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with open_ledger(path) as made:
        yield made


def on_disk(path: Path) -> dict[str, bytes]:
    """The ledger's files, without SQLite's own lock table."""
    return {
        file.name: file.read_bytes() for file in path.parent.glob(path.name + "*") if file.suffix != ".db-shm"
    }


def cost(*releases: Event) -> float:
    """The ε whose filter admits `releases` and nothing more (an ε where the filter's order jumps has none)."""
    for order in range(2, 400):
        (loss,) = Spending(orders=(order,)).plus(releases).people()
        enough = renyi.epsilon_at(float(loss[0]), DELTA, order) * (1 + 1e-12)
        if renyi.filter_order(enough, DELTA) == order:
            return enough
    raise AssertionError("choose other releases")


# --- what is charged stays --------------------------------------------------------------------------


def test_charges_outlive_the_process_and_compose_over_plans(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.charge(PLAN, "run-1/1", [TRAIN])
        ledger.charge(PLAN, "run-1/1", [TABLE])
    with open_ledger(path) as ledger:
        ledger.charge(OTHER, "run-2/1", [TRAIN])
        assert [release.kind for release in ledger.releases()] == ["train", "evaluate", "train"]
        assert ledger.epsilon(DELTA) == epsilon([steps(TRAIN, 100)], DELTA)
        assert {release.split_id for release in ledger.releases()} == {"s"}


def test_a_draw_that_is_repeated_is_charged_again(ledger: Ledger) -> None:
    for _ in range(2):
        ledger.charge(PLAN, "run/1", [TRAIN])
    assert len(ledger.releases()) == 2


def test_a_commit_waits_for_the_disk(ledger: Ledger) -> None:
    """SQLite's own promise for these two settings: one fsync of the log in every commit."""
    assert ledger._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert ledger._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_entries_tell_what_happened(path: Path) -> None:
    clock = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    with open_ledger(path, now=lambda: clock) as ledger:
        ledger.reserve(PLAN, [TRAIN, TRAIN, TABLE])
        ledger.charge(PLAN, "run/1", [TRAIN])
        ledger.release_reservation(PLAN)
        entries = ledger.entries()
        assert ledger.head == (5, entries[-1].hash)
    assert [(entry.seq, entry.action, entry.order_id) for entry in entries] == [
        (1, "people", ""),
        (2, "plan", ""),
        (3, "reserve", ""),
        (4, "charge", "run/1"),
        (5, "return", ""),
    ]
    people, plan, *moves = entries
    assert [[release.steps for release in entry.releases] for entry in moves] == [[100, 1], [50], [50, 1]]
    assert {entry.at for entry in entries} == {"2026-01-02T03:04:05.000+00:00"}
    assert {entry.plan_sha256 for entry in moves} == {PLAN.sha256}
    assert (people.people, people.plan_sha256, people.releases) == (PEOPLE, "", ())
    assert (plan.plan, plan.plan_sha256, plan.releases) == (PLAN, PLAN.sha256, ())


def test_all_kinds_of_events_are_kept_as_they_were(path: Path) -> None:
    cohort = LaplaceRelease("cohort", "all", 0.25, "c")
    events = (
        replace(TRAIN, split_id="a"),
        replace(SHARED, split_id="b"),
        cohort,
        replace(TABLE, split_id="c"),
    )
    with open_ledger(path) as ledger:
        ledger.reserve(PLAN, events)
        ledger.charge(PLAN, "1", events[:3])
    with open_ledger(path) as ledger:
        assert ledger.releases() == events[:3]
        assert ledger.reservations() == {PLAN.sha256: events[3:]}


def test_histograms_are_reserved_and_used_up_one_by_one(path: Path) -> None:
    """A Laplace release has no steps to merge: three of a kind stay three."""
    cohort = LaplaceRelease("cohort", "all", 0.25, "c")
    with open_ledger(path, 2.0) as ledger:
        ledger.reserve(PLAN, [cohort] * 3)
        ledger.charge(PLAN, "1", [cohort])
        ledger.charge(PLAN, "2", [cohort])
    with open_ledger(path, 2.0) as ledger:
        assert ledger.reservations() == {PLAN.sha256: (cohort,)}
        assert ledger.releases() == (cohort,) * 2
        assert ledger.epsilon(DELTA) == 0.5
        ledger.release_reservation(PLAN)
        assert ledger.reservations() == {}


def test_a_plan_is_written_when_it_is_first_seen(path: Path) -> None:
    with open_ledger(path) as ledger, open_ledger(path) as elsewhere:
        ledger.charge(PLAN, "1", [TRAIN])
        elsewhere.reserve(PLAN, [TRAIN])
        elsewhere.charge(OTHER, "2", [TRAIN])
        ledger.charge(OTHER, "3", [TRAIN])
        plans = [entry.plan for entry in ledger.entries() if entry.action == "plan"]
    assert plans == [PLAN, OTHER]


# --- several events at once, and once only ----------------------------------------------------------


def test_several_events_are_charged_together_in_one_commit(ledger: Ledger) -> None:
    statements: list[str] = []
    ledger._db.set_trace_callback(statements.append)
    ledger.charge(PLAN, "1", [TRAIN, SHARED, TABLE])
    ledger._db.set_trace_callback(None)
    assert statements.count("COMMIT") == 1
    assert [(entry.order_id, entry.releases[0].kind) for entry in ledger.entries()[2:]] == [
        ("1", "train"),
        ("1", "train"),
        ("1", "evaluate"),
    ]


def test_all_of_the_events_fit_or_none_is_charged(path: Path) -> None:
    with open_ledger(path, budget=cost(steps(TRAIN, 120))) as ledger:
        head, files = ledger.head, on_disk(path)
        with pytest.raises(Refused):
            ledger.charge(PLAN, "1", [TRAIN, steps(TRAIN, 71)])
        assert (ledger.head, on_disk(path), ledger.charged("1")) == (head, files, False)
        ledger.charge(PLAN, "1", [TRAIN, steps(TRAIN, 70)])


def test_equal_events_of_one_charge_share_a_reservation(path: Path) -> None:
    with open_ledger(path, budget=cost(steps(TRAIN, 60))) as ledger:
        ledger.reserve(PLAN, [TRAIN])
        with pytest.raises(Refused):
            ledger.charge(PLAN, "1", [steps(TRAIN, 31), steps(TRAIN, 30)])
        ledger.charge(PLAN, "1", [steps(TRAIN, 30), steps(TRAIN, 30)])
        assert ledger.reservations() == {PLAN.sha256: ()}


def test_nothing_to_charge_is_a_mistake(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="events must be at least one"):
        ledger.charge(PLAN, "1", [])


def test_a_draw_that_may_be_made_once_is_charged_once(path: Path) -> None:
    with open_ledger(path) as ledger, open_ledger(path) as elsewhere:
        ledger.charge(PLAN, "1", [SHARED], once=True)
        head, files = ledger.head, on_disk(path)
        for other in (ledger, elsewhere):
            for plan in (PLAN, OTHER):
                with pytest.raises(Refused, match="'1' was charged before") as refused:
                    other.charge(plan, "1", [SHARED], once=True)
                assert refused.value.reason is Reason.REPLAYED
        assert (ledger.head, on_disk(path)) == (head, files)
        assert elsewhere.charged("1")
        assert not elsewhere.charged("2")
        elsewhere.charge(PLAN, "2", [SHARED], once=True)
    with open_ledger(path) as again, pytest.raises(Refused, match="'2' was charged before"):
        again.charge(PLAN, "2", [SHARED], once=True)


def test_a_charge_of_an_order_id_uses_its_index(ledger: Ledger) -> None:
    steps = ledger._db.execute("EXPLAIN QUERY PLAN SELECT 1 FROM release WHERE order_id = 'x'").fetchall()
    assert any("release_by_order" in step[-1] for step in steps)


# --- splits -----------------------------------------------------------------------------------------


def test_within_a_split_parts_do_not_add_up_and_across_splits_they_do(path: Path) -> None:
    tested = Release("evaluate", "test", 2.0, 0.1, 50)
    with open_ledger(path) as ledger:
        ledger.charge(PLAN, "1", [TRAIN])
        ledger.charge(OTHER, "2", [tested])
        assert ledger.epsilon(DELTA) == epsilon([TRAIN], DELTA)
    with open_ledger(path, split_id="another") as ledger:
        ledger.charge(OTHER, "3", [tested])
        assert ledger.epsilon(DELTA) == epsilon([steps(TRAIN, 100)], DELTA)


def test_without_a_split_id_every_plan_may_have_dealt_people_anew(path: Path) -> None:
    with open_ledger(path, split_id=None) as ledger:
        ledger.charge(PLAN, "1", [TRAIN])
        ledger.charge(PLAN, "2", [Release("evaluate", "test", 2.0, 0.1, 50)])
        assert ledger.epsilon(DELTA) == epsilon([TRAIN], DELTA)
        ledger.charge(OTHER, "3", [Release("evaluate", "test", 2.0, 0.1, 50)])
        assert ledger.epsilon(DELTA) == epsilon([steps(TRAIN, 100)], DELTA)


def test_a_release_that_names_its_split_keeps_it(ledger: Ledger) -> None:
    named = Release("train", "train", 2.0, 0.1, 50, split_id="its own")
    ledger.reserve(PLAN, [named])
    ledger.charge(PLAN, "1", [named])
    assert ledger.releases() == (named,)
    assert ledger.reservations() == {PLAN.sha256: ()}


# --- reservations and the budget --------------------------------------------------------------------


def test_reserving_again_changes_nothing(path: Path) -> None:
    with open_ledger(path, budget=cost(steps(TRAIN, 150))) as ledger:
        ledger.reserve(PLAN, [TRAIN, TRAIN])
        before, files = ledger.head, on_disk(path)
        ledger.reserve(PLAN, [TRAIN, TRAIN])
        assert (ledger.head, on_disk(path)) == (before, files)
        assert [release.steps for release in ledger.reservations()[PLAN.sha256]] == [100]
    with open_ledger(path, budget=cost(steps(TRAIN, 150))) as ledger:
        ledger.reserve(PLAN, [TRAIN, TRAIN])
        assert ledger.head == before


@pytest.mark.parametrize("act", ["reserve", "charge"])
def test_a_refusal_says_budget_and_changes_nothing(path: Path, act: str) -> None:
    sentence = r"^budget: epsilon would be .* at delta 1e-05, the budget is"
    with open_ledger(path, budget=cost(steps(TRAIN, 120))) as ledger:
        ledger.reserve(PLAN, [TRAIN])
        ledger.charge(PLAN, "1", [TRAIN])
        too_much = {
            "reserve": lambda: ledger.reserve(OTHER, [TRAIN, TRAIN]),
            "charge": lambda: ledger.charge(OTHER, CANARY, [steps(TRAIN, 100)]),
        }
        head, files, kept = ledger.head, on_disk(path), ledger.reservations()
        with pytest.raises(Refused, match=sentence) as refused:
            too_much[act]()
        assert refused.value.reason is Reason.BUDGET
        assert CANARY not in refused.value.sentence
        assert (ledger.head, on_disk(path), ledger.reservations()) == (head, files, kept)
        ledger.reserve(OTHER, [TRAIN])  # what fits still does
        with pytest.raises(Refused):
            ledger.charge(THIRD, "2", [TRAIN])  # and what is reserved is not for others


def test_a_reservation_carries_its_plan_to_the_end(path: Path) -> None:
    with open_ledger(path, budget=cost(steps(TRAIN, 150))) as ledger:
        ledger.reserve(PLAN, [TRAIN] * 3)
        for number in range(3):
            ledger.charge(PLAN, str(number), [TRAIN])
        with pytest.raises(Refused):
            ledger.charge(PLAN, "one too many", [steps(TRAIN, 1)])
        assert ledger.reservations() == {PLAN.sha256: ()}


def test_what_was_not_charged_comes_back_and_what_was_does_not(path: Path) -> None:
    with open_ledger(path, budget=cost(steps(TRAIN, 150))) as ledger:
        ledger.reserve(PLAN, [TRAIN] * 3)
        ledger.charge(PLAN, "1", [TRAIN])
        ledger.release_reservation(PLAN)
        ledger.release_reservation(PLAN)
        assert [entry.action for entry in ledger.entries()] == [
            "people",
            "plan",
            "filter",
            "reserve",
            "charge",
            "return",
        ]
        assert ledger.reservations() == {}
        with pytest.raises(Refused):
            ledger.reserve(OTHER, [TRAIN] * 3)
        ledger.reserve(OTHER, [TRAIN] * 2)


def test_a_release_without_noise_fits_no_budget_but_is_recorded_without_one(path: Path) -> None:
    bare = Release("train", "train", 0.0, 0.1, 50)
    with open_ledger(path, budget=100.0) as ledger, pytest.raises(Refused, match="would be inf"):
        ledger.reserve(PLAN, [bare])
    with open_ledger(path) as ledger:
        ledger.charge(PLAN, "1", [bare])
        assert ledger.epsilon(DELTA) == float("inf")


def test_a_budget_that_was_lowered_holds_for_what_is_reserved_too(path: Path) -> None:
    with open_ledger(path, budget=cost(steps(TRAIN, 150))) as ledger:
        ledger.reserve(PLAN, [TRAIN] * 3)
        ledger.charge(PLAN, "1", [TRAIN])
    with open_ledger(path, budget=cost(steps(TRAIN, 120))) as ledger, pytest.raises(Refused):
        ledger.charge(PLAN, "2", [TRAIN])


# --- killed processes, several processes ------------------------------------------------------------

CHILD = f"""
import sys, time
from clients.ledger import Ledger, PlanFacts
from federation.privacy import Release
path, name, most = sys.argv[1:]
plan = {PLAN!r}
release = Release("train", "train", 2.0, 0.1, 50)
ledger = Ledger(path, budget=None, scope="lifetime", people={PEOPLE!r}, split_id="s", wait=60)
with ledger, open(f"{{path}}.{{name}}.released", "w", buffering=1) as released:
    for number in range(int(most)):
        ledger.charge(plan, f"{{name}}/{{number}}", [release])
        released.write(f"{{name}}/{{number}}\\n")
        time.sleep(0.001)  # SQLite's lock is not a queue: let others have it
        if number == 0:
            print("working", flush=True)
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(path: Path) -> Iterator[Start]:
    """Starts a process that charges, then says that it released, again and again."""
    with contextlib.ExitStack() as stack:

        def begin(name: str, most: int = 1_000_000) -> "subprocess.Popen[str]":
            command = [sys.executable, "-c", CHILD, str(path), name, str(most)]
            child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            stack.enter_context(child)
            stack.callback(child.kill)
            return child

        yield begin


def charged_by(ledger: Ledger) -> list[str]:
    return [entry.order_id for entry in ledger.entries() if entry.action == "charge"]


def test_a_killed_process_never_released_what_it_did_not_charge(path: Path, start: Start) -> None:
    """20 processes, four at a time on one ledger, each killed at a random point after its first charge."""
    chance = random.Random(0)
    for batch in range(5):
        children = [start(f"child-{batch}-{number}") for number in range(4)]
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "working\n"
        for child in children:
            time.sleep(chance.uniform(0, 0.02))
            child.kill()
            child.wait()
    with open_ledger(path) as ledger:
        ledger.verify()
        charged = charged_by(ledger)
    marks = [mark for file in path.parent.glob("*.released") for mark in file.read_text().split("\n")[:-1]]
    assert len(set(charged)) == len(charged) > 20
    assert len(set(marks)) == len(marks) > 20
    assert set(marks) <= set(charged)
    assert len(charged) - len(marks) <= 20  # each process may have been killed between the two


def test_the_soak_runs() -> None:
    """Four kills of the thousand (`python -m tests.soak_ledger`)."""
    command = [sys.executable, "-m", "tests.soak_ledger", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "every release has its charge" in done.stdout


def test_two_processes_can_interleave_from_the_first_moment(path: Path, start: Start) -> None:
    children = [start(name, 80) for name in ("one", "two")]
    assert [child.wait() for child in children] == [0, 0]
    with open_ledger(path) as ledger:
        ledger.verify()
        charged = charged_by(ledger)
    for name in ("one", "two"):
        assert [order for order in charged if order.startswith(name)] == [f"{name}/{n}" for n in range(80)]


def test_two_writers_share_one_budget(path: Path) -> None:
    """Each has its own connection and its own state in memory, as two processes would."""
    limit = cost(steps(TRAIN, 30 * 5))
    refused = []

    def spend(name: str) -> None:
        with open_ledger(path, budget=limit) as ledger:
            for number in range(30):
                try:
                    ledger.charge(replace(PLAN, sha256=name), str(number), [steps(TRAIN, 5)])
                except Refused as refusal:
                    refused.append(refusal.reason)

    writers = [threading.Thread(target=spend, args=(name,)) for name in ("one", "two")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    with open_ledger(path) as ledger:
        ledger.verify()
        assert ledger.epsilon(DELTA) == epsilon([steps(TRAIN, 150)], DELTA)
    assert refused == [Reason.BUDGET] * 30


def test_one_ledger_may_be_used_by_several_threads(ledger: Ledger) -> None:
    def spend(name: str) -> None:
        for number in range(20):
            ledger.charge(replace(PLAN, sha256=name), str(number), [TRAIN])

    writers = [threading.Thread(target=spend, args=(name,)) for name in ("one", "two", "three")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(ledger.releases()) == 60
    assert len(ledger.entries()) == 60 + 1 + 3  # people, plans


def test_a_reservation_made_elsewhere_is_seen(path: Path) -> None:
    limit = cost(steps(TRAIN, 120))
    with open_ledger(path, budget=limit) as here, open_ledger(path, budget=limit) as there:
        here.reserve(PLAN, [TRAIN, TRAIN])
        with pytest.raises(Refused):
            there.reserve(OTHER, [TRAIN])
        there.charge(PLAN, "1", [TRAIN])  # the plan's own, from another process
        assert here.releases() == there.releases()
        assert here.reservations() == there.reservations()


def test_a_plan_is_reserved_once_by_two_processes_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_ledger(path) as here, open_ledger(path) as there:
        catch_up = here._catch_up

        def overtaken() -> None:
            catch_up()
            there.reserve(PLAN, [TRAIN])  # after `here` looked, before it took the lock
            monkeypatch.undo()

        monkeypatch.setattr(here, "_catch_up", overtaken)
        here.reserve(PLAN, [TRAIN, TRAIN])
        assert here.reservations() == there.reservations() == {PLAN.sha256: (replace(TRAIN, split_id="s"),)}
        assert [entry.action for entry in here.entries()] == ["people", "plan", "reserve"]


# --- append-only, and tampering ---------------------------------------------------------------------


def fill(ledger: Ledger) -> None:
    """Entries: 1 people, 2 plan, 3 filter (where there is a budget), 4 reserve, 5 to 8 charge, 9 return."""
    ledger.reserve(PLAN, [TRAIN] * 4)
    for number in range(4):
        ledger.charge(PLAN, f"run/{number}", [TRAIN])
    ledger.release_reservation(PLAN)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE release SET event = '{}'",
        "UPDATE reservation SET events = '[]'",
        "UPDATE ledger SET scope = 'this run alone'",
        "DELETE FROM release WHERE seq = 5",
        "DELETE FROM reservation",
        "DELETE FROM ledger",
        "UPDATE plan SET purpose = 'other'",
        "DELETE FROM plan",
        "UPDATE filter SET rdp_order = 3",
        "DELETE FROM filter",
        "UPDATE people SET name = 'other'",
        "DELETE FROM people",
        "INSERT INTO filter SELECT 99, 'year', viewer, rdp_order, at, hash FROM filter",
        "REPLACE INTO release SELECT seq, plan_sha256, order_id, kind, part, split_id, '{}', at, hash FROM release",
        "INSERT INTO reservation SELECT 99, plan_sha256, action, events, at, hash FROM reservation LIMIT 1",
    ],
)
def test_rows_cannot_be_changed(path: Path, statement: str) -> None:
    with open_ledger(path, budget=100.0) as ledger:
        fill(ledger)
        before = ledger.entries()
        with (
            contextlib.closing(sqlite3.connect(path)) as db,
            pytest.raises(sqlite3.IntegrityError, match="append-only"),
        ):
            db.execute(statement)
        assert ledger.entries() == before
        ledger.verify()


def tamper(path: Path, *statements: str) -> None:
    """What somebody does who can write the file and knows SQLite."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        for (trigger,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f"DROP TRIGGER {trigger}")
        for statement in statements:
            db.execute(statement)


@pytest.mark.parametrize(
    ("entry", "statements"),
    [
        (6, ["""UPDATE release SET event = replace(event, '2.0', '9.0') WHERE seq = 6"""]),
        (5, ["UPDATE release SET part = 'test' WHERE seq = 5"]),
        (8, ["UPDATE release SET split_id = 'other' WHERE seq = 8"]),
        (7, ["UPDATE release SET at = '2001-01-01' WHERE seq = 7"]),
        (4, ["UPDATE reservation SET events = '[]' WHERE seq = 4"]),
        (6, ["DELETE FROM release WHERE seq = 6"]),
        (6, ["DELETE FROM release WHERE seq = 6", "UPDATE release SET seq = seq - 1 WHERE seq > 6"]),
        (5, ["UPDATE release SET seq = -5 WHERE seq = 5", "UPDATE release SET seq = 5 WHERE seq = 6"]),
        (1, ["UPDATE ledger SET created = '2001-01-01'"]),
        (
            10,
            [
                "INSERT INTO release SELECT 10, plan_sha256, order_id, kind, part, split_id, event, at, hash FROM release LIMIT 1"
            ],
        ),
        (0, ["DELETE FROM ledger"]),
        (2, ["UPDATE plan SET purpose = 'other'"]),
        (2, ["UPDATE plan SET experiment = 'other'"]),
        (2, ["DELETE FROM plan"]),
        (3, ["UPDATE filter SET rdp_order = rdp_order + 1"]),
        (3, ["UPDATE filter SET viewer = 'public'"]),
        (3, ["DELETE FROM filter"]),
        (10, ["INSERT INTO filter SELECT 10, 'year', viewer, rdp_order, at, hash FROM filter"]),
        (1, ["UPDATE people SET at = '2001-01-01'"]),
        (1, ["DELETE FROM people"]),
    ],
)
def test_tampering_shows(path: Path, entry: int, statements: list[str]) -> None:
    with open_ledger(path, budget=100.0) as ledger:
        fill(ledger)
        ledger.verify()
        tamper(path, *statements)
        with pytest.raises(LedgerError, match=rf"fails its hash chain at entry {entry},"):
            ledger.verify()
    with pytest.raises(LedgerError, match=rf"fails its hash chain at entry {entry},"):
        open_ledger(path)


def test_a_ledger_without_its_people_is_not_a_new_one(path: Path) -> None:
    open_ledger(path).close()
    tamper(path, "DELETE FROM people")
    with pytest.raises(LedgerError, match="fails its hash chain at entry 1,"):
        open_ledger(path)


def test_a_plan_and_an_order_are_written_once(path: Path) -> None:
    """Not even a row that is chained rightly takes the place of the first."""
    with open_ledger(path, budget=100.0) as ledger:
        fill(ledger)
        with pytest.raises(LedgerError, match="takes no change"), ledger._writing() as draft:
            draft.plan(replace(PLAN, purpose="other"))
        with pytest.raises(LedgerError, match="takes no change"), ledger._writing() as draft:
            draft.fixed(FilterOrder("life", "coordinator", 1000))
        ledger.verify()


def test_a_ledger_that_went_back_is_not_used(ledger: Ledger, path: Path) -> None:
    fill(ledger)
    tamper(path, "DELETE FROM reservation WHERE seq = 8")
    for act in (ledger.verify, ledger.releases, lambda: ledger.charge(PLAN, "next", [TRAIN])):
        with pytest.raises(LedgerError, match="ends at entry 7 but this process has seen entry 8"):
            act()


# --- an older copy put back -------------------------------------------------------------------------


def files_of(path: Path) -> list[Path]:
    return [file for file in path.parent.glob(path.name + "*") if not file.name.endswith("-shm")]


def copy(path: Path, to: Path) -> None:
    """The ledger's files as they are on the disk now, `PATH-wal` too."""
    to.mkdir()
    for file in files_of(path):
        shutil.copy(file, to)


def put_back(copies: Path, path: Path) -> None:
    for file in path.parent.glob(path.name + "*"):
        file.unlink()
    for file in copies.iterdir():
        shutil.copy(file, path.parent)


def test_a_ledger_holds_what_it_wrote(path: Path) -> None:
    with open_ledger(path) as ledger, open_ledger(path) as elsewhere:
        birth = ledger._genesis()
        fill(ledger)
        entries = ledger.entries()
        for one in (ledger, elsewhere):
            assert one.holds(0, birth)
            assert all(one.holds(entry.seq, entry.hash) for entry in entries)
            assert one.holds(*ledger.head)
            assert not one.holds(0, entries[0].hash)
            assert not one.holds(1, birth)
            assert not one.holds(3, entries[3].hash)
            assert not one.holds(len(entries) + 1, entries[-1].hash)
            assert not one.holds(-1, birth)
        elsewhere.charge(OTHER, "next", [TRAIN])
        assert ledger.holds(*elsewhere.head)
    with open_ledger(path.parent / "another.db") as another:
        assert not another.holds(0, birth)


@pytest.mark.parametrize("folded", [True, False], ids=["folded in", "in PATH-wal"])
@pytest.mark.parametrize("forked", [False, True], ids=["shorter", "forked"])
def test_a_ledger_that_was_set_back_does_not_hold_its_newer_head(
    path: Path, tmp_path: Path, folded: bool, forked: bool
) -> None:
    with open_ledger(path) as ledger:
        ledger.charge(PLAN, "1", [TRAIN])
        older = ledger.head
        if folded:
            ledger._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        copy(path, tmp_path / "copies")
        wal = path.with_name(path.name + "-wal")
        assert (wal.stat().st_size == 0) is folded  # what the copy is worth without it
        ledger.charge(PLAN, "2", [TRAIN])
        newer = ledger.head
    put_back(tmp_path / "copies", path)
    with open_ledger(path) as ledger:
        ledger.verify()
        assert ledger.head == older
        if forked:
            ledger.charge(PLAN, "2, told anew", [TRAIN])
            ledger.verify()
            assert ledger.head[0] == newer[0]
        assert ledger.holds(*older)
        assert not ledger.holds(*newer)


def test_a_ledger_that_lost_its_log_does_not_hold_its_head(path: Path, tmp_path: Path) -> None:
    """`PATH` copied alone while it was in use."""
    with open_ledger(path) as ledger:
        ledger._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        ledger.charge(PLAN, "1", [TRAIN])
        head = ledger.head
        copy(path, tmp_path / "copies")
    put_back(tmp_path / "copies", path)
    with open_ledger(path) as ledger:
        assert ledger.holds(*head)
    put_back(tmp_path / "copies", path)
    path.with_name(path.name + "-wal").unlink()
    with open_ledger(path) as ledger:
        assert not ledger.holds(*head)


def test_a_ledger_that_was_set_back_under_a_running_process_shows(path: Path, tmp_path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.charge(PLAN, "1", [TRAIN])
        ledger._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        copy(path, tmp_path / "copies")
        ledger.charge(PLAN, "2", [TRAIN])
        head = ledger.head
        ledger._db.close()
        put_back(tmp_path / "copies", path)
        ledger._db = sqlite3.connect(path, isolation_level=None)  # as if this process went on with that file
        with pytest.raises(LedgerError, match="replaced by an older copy"):
            ledger.holds(*head)


# --- version 1 --------------------------------------------------------------------------------------

VERSION_1 = """
CREATE TABLE ledger (id TEXT NOT NULL, scope TEXT NOT NULL, created TEXT NOT NULL);
CREATE TABLE release (
    seq INTEGER PRIMARY KEY, plan_sha256 TEXT NOT NULL, order_id TEXT NOT NULL, kind TEXT NOT NULL,
    part TEXT NOT NULL, split_id TEXT NOT NULL, event TEXT NOT NULL, at TEXT NOT NULL, hash TEXT NOT NULL);
CREATE TABLE reservation (
    seq INTEGER PRIMARY KEY, plan_sha256 TEXT NOT NULL, action TEXT NOT NULL, events TEXT NOT NULL,
    at TEXT NOT NULL, hash TEXT NOT NULL);
CREATE TRIGGER release_no_UPDATE BEFORE UPDATE ON release
BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;
CREATE TRIGGER release_no_DELETE BEFORE DELETE ON release
BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;
CREATE TRIGGER reservation_no_UPDATE BEFORE UPDATE ON reservation
BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;
CREATE TRIGGER reservation_no_DELETE BEFORE DELETE ON reservation
BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;
CREATE TRIGGER ledger_no_UPDATE BEFORE UPDATE ON ledger
BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;
CREATE TRIGGER ledger_no_DELETE BEFORE DELETE ON ledger
BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;
CREATE TRIGGER release_in_order BEFORE INSERT ON release WHEN NEW.seq IS NOT 1 + max(
    coalesce((SELECT max(seq) FROM release), 0), coalesce((SELECT max(seq) FROM reservation), 0))
BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;
CREATE TRIGGER reservation_in_order BEFORE INSERT ON reservation WHEN NEW.seq IS NOT 1 + max(
    coalesce((SELECT max(seq) FROM release), 0), coalesce((SELECT max(seq) FROM reservation), 0))
BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END;
PRAGMA application_id = 1718774887;
PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;
"""
AT = "2026-01-02T03:04:05.000+00:00"
OLD_TRAIN = '{"mechanism":"poisson-gaussian","noise_multiplier":2.0,"sample_rate":0.1,"steps":50}'
OLD_RESERVED = (
    '[{"kind":"train","mechanism":"poisson-gaussian","noise_multiplier":2.0,"part":"train",'
    '"sample_rate":0.1,"split_id":"s","steps":100}]'
)
OLD_ROWS: list[tuple[str, tuple[Any, ...]]] = [
    ("reservation", (1, PLAN.sha256, "reserve", OLD_RESERVED, AT)),
    ("release", (2, PLAN.sha256, "run/1/train", "train", "train", "s", OLD_TRAIN, AT)),
    ("release", (3, OTHER.sha256, "run/2/train", "train", "train", "s", OLD_TRAIN, AT)),
]


def version_1(path: Path, rows: Sequence[tuple[str, tuple[Any, ...]]] = OLD_ROWS) -> list[str]:
    """A ledger as fedrisk 0.1.0 wrote it: one plan reserved 100 steps and took 50, another took 50. Its hashes."""

    def chain(before: str, table: str, row: tuple[Any, ...]) -> str:
        text = json.dumps([before, table, *row], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    birth = ("0" * 32, "lifetime", AT)
    hashes = [chain("", "ledger", birth)]
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript(VERSION_1)
        db.execute("INSERT INTO ledger VALUES (?, ?, ?)", birth)
        for table, row in rows:
            hashes.append(chain(hashes[-1], table, row))
            marks = ", ".join("?" * (len(row) + 1))
            db.execute(f"INSERT INTO {table} VALUES ({marks})", (*row, hashes[-1]))
    return hashes


def dump(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return [*db.iterdump(), str(db.execute("PRAGMA user_version").fetchone())]


def test_a_version_1_ledger_keeps_its_rows_and_its_hashes(path: Path) -> None:
    hashes = version_1(path)
    for _ in range(2):
        with open_ledger(path) as ledger:
            ledger.verify()
            entries = ledger.entries()
            assert [entry.action for entry in entries] == ["reserve", "charge", "charge", "people"]
            assert [entry.hash for entry in entries[:3]] == hashes[1:]
            assert all(ledger.holds(seq, kept) for seq, kept in enumerate(hashes))
            assert ledger.releases() == (replace(TRAIN, split_id="s"),) * 2
            assert ledger.reservations() == {PLAN.sha256: (replace(TRAIN, split_id="s"),)}
            assert ledger.charged("run/1/train")
    with open_ledger(path) as ledger:
        fill(ledger)
        ledger.verify()
        assert all(ledger.holds(seq, kept) for seq, kept in enumerate(hashes))


@pytest.mark.parametrize("span", ["life", "year", "purpose", "experiment"])
def test_what_version_1_charged_and_reserved_counts_against_every_limit(path: Path, span: Span) -> None:
    version_1(path)
    budget = (Limit(span, None, DELTA, {"coordinator": cost(steps(TRAIN, 210))}),)

    def clock() -> datetime:
        return datetime.fromisoformat(AT) + timedelta(days=300)

    for purpose in ("care", "something else"):
        new = PlanFacts(purpose, "run", f"for {purpose}", purpose)
        with open_ledger(path, budget, now=clock) as ledger:
            with pytest.raises(Refused):
                ledger.charge(new, "too much", [steps(TRAIN, 61)])
            ledger.reserve(new, [TRAIN])
            ledger.release_reservation(new)
    with open_ledger(path, budget, now=clock) as ledger:
        ledger.charge(PLAN, "what was reserved", [TRAIN])
        ledger.charge(PLAN, "what was left", [steps(TRAIN, 60)])
        with pytest.raises(Refused):
            ledger.charge(PLAN, "too much", [steps(TRAIN, 1)])


def test_a_version_1_ledger_that_was_tampered_with_is_not_made_anything_else(path: Path) -> None:
    version_1(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("DROP TRIGGER release_no_UPDATE")
        db.execute("UPDATE release SET at = '2001-01-01' WHERE seq = 2")
    before = dump(path)
    with pytest.raises(LedgerError, match="fails its hash chain at entry 2,"):
        open_ledger(path)
    assert dump(path) == before


def test_a_version_1_ledger_of_another_scope_stays_as_it_is(path: Path) -> None:
    version_1(path)
    before = dump(path)
    with pytest.raises(LedgerError, match="cannot become one of 'this run alone'"):
        open_ledger(path, scope="this run alone")
    assert dump(path) == before


KILLED = """
import os, signal, sys
from clients import ledger
statements = ledger.statements
left = int(sys.argv[2])

def killed(script):
    for number, statement in enumerate(statements(script)):
        if number == left:
            os.kill(os.getpid(), signal.SIGKILL)
        yield statement
    if left == 99:
        os.kill(os.getpid(), signal.SIGKILL)

ledger.statements = killed
ledger.Ledger(sys.argv[1], budget=None, scope="lifetime", people="x")
"""


@pytest.mark.parametrize("left", [0, 1, 9, 99], ids=lambda left: f"after {left}")
def test_a_migration_that_is_interrupted_leaves_version_1(path: Path, left: int) -> None:
    version_1(path)
    before = dump(path)
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), str(left)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert dump(path) == before
    with open_ledger(path) as ledger:
        ledger.verify()
        assert len(ledger.releases()) == 2


def test_a_migration_onto_a_full_disk_leaves_version_1(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version_1(path)
    before = dump(path)

    def full(*_: Any) -> Any:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("clients.ledger.Draft.people", full)
        with pytest.raises(LedgerError, match="the disk is full"):
            open_ledger(path)
    assert dump(path) == before
    open_ledger(path).close()


def test_two_processes_may_migrate_at_once(path: Path, start: Start) -> None:
    version_1(path)
    children = [start(name, 5) for name in ("one", "two")]
    assert [child.wait() for child in children] == [0, 0]
    with open_ledger(path) as ledger:
        ledger.verify()
        actions = [entry.action for entry in ledger.entries()]
    assert (actions.count("people"), actions.count("plan"), actions.count("charge")) == (1, 1, 12)


# --- whose ledger it is -----------------------------------------------------------------------------


def test_a_ledger_keeps_its_people(path: Path) -> None:
    open_ledger(path).close()
    before = dump(path)
    with pytest.raises(
        LedgerError, match=rf"about '{PEOPLE}' and cannot become one about 'health: patients'"
    ):
        open_ledger(path, people="health: patients")
    assert dump(path) == before


def test_nothing_new_starts_a_ledger_anew(path: Path) -> None:
    """New data (another split of the same people), a new experiment and purpose, a new process."""
    limit = cost(steps(TRAIN, 120))
    with open_ledger(path, budget=limit, split_id="2025") as ledger:
        ledger.charge(PLAN, "1", [TRAIN])
    for split, plan in (("2025", OTHER), ("2026", OTHER), ("2026", PlanFacts("d", "run-d", "new", "new"))):
        with open_ledger(path, budget=limit, split_id=split) as ledger:
            assert [round(line.spent, 6) for line in ledger.spent()] == [round(least(limit, TRAIN), 6)]
            with pytest.raises(Refused):
                ledger.charge(plan, "2", [steps(TRAIN, 71)])


def least(limit: float, *releases: Event) -> float:
    """ε of `releases` at the order of a filter for ε = `limit`."""
    order = renyi.filter_order(limit, DELTA)
    (loss,) = Spending(orders=(order,)).plus(releases).people()
    return renyi.epsilon_at(float(loss[0]), DELTA, order)


# --- trouble with the file --------------------------------------------------------------------------


def test_a_file_that_is_something_else_is_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "people.csv"
    text.write_text(f"id,name\n1,{CANARY}\n" * 100)
    other = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(other)) as db:
        db.execute(f"CREATE TABLE t AS SELECT '{CANARY}' AS cell")
        db.commit()
    for path in (text, other):
        before = path.read_bytes()
        with pytest.raises(LedgerError, match="is not a fedrisk ledger: name another file") as error:
            open_ledger(path)
        assert CANARY not in str(error.value)
        assert path.read_bytes() == before
    with pytest.raises(LedgerError, match="the ledger's folder must exist and be writable"):
        open_ledger(tmp_path)


def test_a_lifetime_ledger_is_not_made_where_its_folder_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "not-mounted" / "ledger.db"
    with pytest.raises(LedgerError, match="folder must exist"):
        open_ledger(path)
    assert not path.parent.exists()
    open_ledger(path, scope="this run alone").close()
    assert path.exists()


def test_a_ledger_keeps_its_scope(path: Path) -> None:
    open_ledger(path, scope="this run alone").close()
    with pytest.raises(LedgerError, match="a ledger of 'this run alone' and cannot become one of 'lifetime'"):
        open_ledger(path)


def test_a_newer_ledger_is_not_misread(path: Path) -> None:
    open_ledger(path).close()
    tamper(path, "PRAGMA user_version = 3")
    with pytest.raises(LedgerError, match="written by a newer fedrisk"):
        open_ledger(path)


def test_a_locked_ledger_says_so_and_works_afterwards(path: Path) -> None:
    with (
        open_ledger(path, wait=0.05) as ledger,
        contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db,
    ):
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match=r"is locked by another process.*nothing was released") as error:
            ledger.charge(PLAN, CANARY, [TRAIN])
        assert CANARY not in str(error.value)
        db.execute("ROLLBACK")
        ledger.charge(PLAN, "1", [TRAIN])
        assert len(ledger.releases()) == 1


def test_a_full_disk_loses_nothing_and_charges_nothing(ledger: Ledger, path: Path) -> None:
    pages = ledger._pragma("page_count")
    ledger._db.execute(f"PRAGMA max_page_count = {pages}")  # SQLite then says what it says on a full disk

    def write() -> None:
        for number in range(100):
            ledger.charge(PLAN, f"{CANARY}/{number}", [TRAIN])

    with pytest.raises(
        LedgerError, match=r"the disk is full: free some space.*nothing was released"
    ) as error:
        write()
    assert CANARY not in str(error.value)
    written = len(ledger.releases())
    assert charged_by(ledger) == [f"{CANARY}/{number}" for number in range(written)]
    assert written > 0
    ledger._db.execute("PRAGMA max_page_count = 1000000")
    ledger.charge(PLAN, "after", [TRAIN])
    with open_ledger(path) as again:
        assert len(again.releases()) == written + 1


def test_a_read_only_ledger_says_so(ledger: Ledger) -> None:
    ledger._db.execute("PRAGMA query_only = ON")
    with pytest.raises(LedgerError, match=r"is read-only: the node's user must be able to write"):
        ledger.charge(PLAN, "1", [TRAIN])
    assert ledger.releases() == ()


def test_a_closed_ledger_says_so(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.close()
        with pytest.raises(LedgerError, match="is closed: open it again"):
            ledger.charge(PLAN, "1", [TRAIN])


def test_a_failed_commit_is_not_taken_for_a_charge(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        """The connection, with a disk that fails at the end of a transaction."""

        def __init__(self, db: sqlite3.Connection) -> None:
            self.db = db

        def __getattr__(self, name: str) -> Any:
            return getattr(self.db, name)

        def execute(self, statement: str, *values: Any) -> Any:
            if statement == "COMMIT":
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
                raise error
            return self.db.execute(statement, *values)

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "_db", Failing(ledger._db))
        with pytest.raises(LedgerError, match="the disk reports an error"):
            ledger.charge(PLAN, "1", [TRAIN])
    assert ledger.releases() == ()
    ledger.charge(PLAN, "2", [TRAIN])
    assert charged_by(ledger) == ["2"]
