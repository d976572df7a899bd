"""The ledger: what is charged stays, what is refused changes nothing, what is tampered with shows."""

import contextlib
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clients.ledger import Budget, Ledger, LedgerError
from federation.privacy import Release, Spending, epsilon
from federation.protocol import Reason, Refused

ROOT = Path(__file__).resolve().parent.parent
DELTA = 1e-5
PLAN, OTHER = "a" * 64, "b" * 64
TRAIN = Release("train", "train", 2.0, 0.1, 50)
TABLE = Release("evaluate", "tune", 8.0, 1.0, 1)
CANARY = "canary-5f1e9"


def steps(release: Release, count: int) -> Release:
    return Release(release.kind, release.part, release.noise_multiplier, release.sample_rate, count)


def open_ledger(path: Path, budget: float | None = None, **other: Any) -> Ledger:
    limit = None if budget is None else Budget(budget, DELTA)
    return Ledger(path, **{"budget": limit, "scope": "lifetime", "split_id": "s", **other})


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


def cost(*releases: Release) -> float:
    return epsilon(releases, DELTA)


# --- what is charged stays --------------------------------------------------------------------------


def test_charges_outlive_the_process_and_compose_over_plans(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.charge(PLAN, "run-1/1", TRAIN)
        ledger.charge(PLAN, "run-1/1", TABLE)
    with open_ledger(path) as ledger:
        ledger.charge(OTHER, "run-2/1", TRAIN)
        assert [release.kind for release in ledger.releases()] == ["train", "evaluate", "train"]
        assert ledger.epsilon(DELTA) == cost(steps(TRAIN, 100))
        assert {release.split_id for release in ledger.releases()} == {"s"}


def test_a_draw_that_is_repeated_is_charged_again(ledger: Ledger) -> None:
    for _ in range(2):
        ledger.charge(PLAN, "run/1", TRAIN)
    assert len(ledger.releases()) == 2


def test_a_commit_waits_for_the_disk(ledger: Ledger) -> None:
    """SQLite's own promise for these two settings: one fsync of the log in every commit."""
    assert ledger._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert ledger._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_entries_tell_what_happened(path: Path) -> None:
    clock = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    with open_ledger(path, now=lambda: clock) as ledger:
        ledger.reserve(PLAN, [TRAIN, TRAIN, TABLE])
        ledger.charge(PLAN, "run/1", TRAIN)
        ledger.release_reservation(PLAN)
        entries = ledger.entries()
        assert ledger.head == (3, entries[-1].hash)
    assert [(entry.seq, entry.action, entry.order_id) for entry in entries] == [
        (1, "reserve", ""),
        (2, "charge", "run/1"),
        (3, "return", ""),
    ]
    assert [[release.steps for release in entry.releases] for entry in entries] == [[100, 1], [50], [50, 1]]
    assert {entry.at for entry in entries} == {"2026-01-02T03:04:05.000+00:00"}
    assert {entry.plan_sha256 for entry in entries} == {PLAN}


# --- splits -----------------------------------------------------------------------------------------


def test_within_a_split_parts_do_not_add_up_and_across_splits_they_do(path: Path) -> None:
    tested = Release("evaluate", "test", 2.0, 0.1, 50)
    with open_ledger(path) as ledger:
        ledger.charge(PLAN, "1", TRAIN)
        ledger.charge(OTHER, "2", tested)
        assert ledger.epsilon(DELTA) == cost(TRAIN)
    with open_ledger(path, split_id="another") as ledger:
        ledger.charge(OTHER, "3", tested)
        assert ledger.epsilon(DELTA) == cost(steps(TRAIN, 100))


def test_without_a_split_id_every_plan_may_have_dealt_people_anew(path: Path) -> None:
    with open_ledger(path, split_id=None) as ledger:
        ledger.charge(PLAN, "1", TRAIN)
        ledger.charge(PLAN, "2", Release("evaluate", "test", 2.0, 0.1, 50))
        assert ledger.epsilon(DELTA) == cost(TRAIN)
        ledger.charge(OTHER, "3", Release("evaluate", "test", 2.0, 0.1, 50))
        assert ledger.epsilon(DELTA) == cost(steps(TRAIN, 100))


def test_a_release_that_names_its_split_keeps_it(ledger: Ledger) -> None:
    named = Release("train", "train", 2.0, 0.1, 50, split_id="its own")
    ledger.reserve(PLAN, [named])
    ledger.charge(PLAN, "1", named)
    assert ledger.releases() == (named,)
    assert ledger.reservations() == {PLAN: ()}


# --- reservations and the budget --------------------------------------------------------------------


def test_reserving_again_changes_nothing(path: Path) -> None:
    with open_ledger(path, budget=cost(steps(TRAIN, 150))) as ledger:
        ledger.reserve(PLAN, [TRAIN, TRAIN])
        before, files = ledger.head, on_disk(path)
        ledger.reserve(PLAN, [TRAIN, TRAIN])
        assert (ledger.head, on_disk(path)) == (before, files)
        assert [release.steps for release in ledger.reservations()[PLAN]] == [100]
    with open_ledger(path, budget=cost(steps(TRAIN, 150))) as ledger:
        ledger.reserve(PLAN, [TRAIN, TRAIN])
        assert ledger.head == before


@pytest.mark.parametrize("act", ["reserve", "charge"])
def test_a_refusal_says_budget_and_changes_nothing(path: Path, act: str) -> None:
    sentence = r"^budget: epsilon would be .* at delta 1e-05, the budget is"
    with open_ledger(path, budget=cost(steps(TRAIN, 120))) as ledger:
        ledger.reserve(PLAN, [TRAIN])
        ledger.charge(PLAN, "1", TRAIN)
        too_much = {
            "reserve": lambda: ledger.reserve(OTHER, [TRAIN, TRAIN]),
            "charge": lambda: ledger.charge(OTHER, CANARY, steps(TRAIN, 100)),
        }
        head, files, kept = ledger.head, on_disk(path), ledger.reservations()
        with pytest.raises(Refused, match=sentence) as refused:
            too_much[act]()
        assert refused.value.reason is Reason.BUDGET
        assert CANARY not in refused.value.sentence
        assert (ledger.head, on_disk(path), ledger.reservations()) == (head, files, kept)
        ledger.reserve(OTHER, [TRAIN])  # what fits still does
        with pytest.raises(Refused):
            ledger.charge("c" * 64, "2", TRAIN)  # and what is reserved is not for others


def test_a_reservation_carries_its_plan_to_the_end(path: Path) -> None:
    with open_ledger(path, budget=cost(steps(TRAIN, 150))) as ledger:
        ledger.reserve(PLAN, [TRAIN] * 3)
        for number in range(3):
            ledger.charge(PLAN, str(number), TRAIN)
        with pytest.raises(Refused):
            ledger.charge(PLAN, "one too many", steps(TRAIN, 1))
        assert ledger.reservations() == {PLAN: ()}


def test_what_was_not_charged_comes_back_and_what_was_does_not(path: Path) -> None:
    with open_ledger(path, budget=cost(steps(TRAIN, 150))) as ledger:
        ledger.reserve(PLAN, [TRAIN] * 3)
        ledger.charge(PLAN, "1", TRAIN)
        ledger.release_reservation(PLAN)
        ledger.release_reservation(PLAN)
        assert ledger.head[0] == 3
        assert ledger.reservations() == {}
        with pytest.raises(Refused):
            ledger.reserve(OTHER, [TRAIN] * 3)
        ledger.reserve(OTHER, [TRAIN] * 2)


def test_a_release_without_noise_fits_no_budget_but_is_recorded_without_one(path: Path) -> None:
    bare = Release("train", "train", 0.0, 0.1, 50)
    with open_ledger(path, budget=100.0) as ledger, pytest.raises(Refused, match="would be inf"):
        ledger.reserve(PLAN, [bare])
    with open_ledger(path) as ledger:
        ledger.charge(PLAN, "1", bare)
        assert ledger.epsilon(DELTA) == float("inf")


def test_a_budget_that_was_lowered_holds_for_what_is_reserved_too(path: Path) -> None:
    with open_ledger(path, budget=cost(steps(TRAIN, 150))) as ledger:
        ledger.reserve(PLAN, [TRAIN] * 3)
        ledger.charge(PLAN, "1", TRAIN)
    with open_ledger(path, budget=cost(steps(TRAIN, 120))) as ledger, pytest.raises(Refused):
        ledger.charge(PLAN, "2", TRAIN)


@pytest.mark.parametrize(
    ("limit", "delta"), [(0.0, DELTA), (-1.0, DELTA), (float("inf"), DELTA), (1.0, 0.0), (1.0, 1.0)]
)
def test_a_budget_is_two_numbers_in_range(limit: float, delta: float) -> None:
    with pytest.raises(ValueError, match=r"budget\.(epsilon|delta) must be"):
        Budget(limit, delta)


Step = tuple[str, str, int]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(("reserve", "charge", "return", "reopen")),
            st.sampled_from("abc"),
            st.integers(1, 80),
        ),
        max_size=14,
    )
)
def test_whatever_happens_the_budget_holds_and_the_file_tells_the_same(
    tmp_path_factory: pytest.TempPathFactory, story: list[Step]
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger.db"
    limit = cost(steps(TRAIN, 150))
    ledger = open_ledger(path, budget=limit)
    charged: Counter[str] = Counter()
    for action, plan, count in story:
        with contextlib.suppress(Refused):
            if action == "reserve":
                ledger.reserve(plan, [steps(TRAIN, count), TABLE])
            elif action == "charge":
                ledger.charge(plan, f"{plan}/{count}", steps(TRAIN, count))
                charged[plan] += count
            elif action == "return":
                ledger.release_reservation(plan)
            else:
                ledger.close()
                ledger = open_ledger(path, budget=limit)
        claimed = [*ledger.releases(), *(r for kept in ledger.reservations().values() for r in kept)]
        assert cost(*claimed) <= limit
        if ledger._claimed is not None:
            assert ledger._claimed[1] == pytest.approx(Spending().plus(claimed).epsilon(DELTA), rel=1e-9)
    ledger.verify()
    with open_ledger(path, budget=limit) as again:
        assert (again.releases(), again.head) == (ledger.releases(), ledger.head)
        assert {p: Counter(k) for p, k in again.reservations().items()} == {
            p: Counter(k) for p, k in ledger.reservations().items()
        }
        assert sum(release.steps for release in again.releases()) == charged.total()
    ledger.close()


# --- killed processes, several processes ------------------------------------------------------------

CHILD = f"""
import sys, time
from clients.ledger import Ledger
from federation.privacy import Release
path, name, most = sys.argv[1:]
release = Release("train", "train", 2.0, 0.1, 50)
ledger = Ledger(path, budget=None, scope="lifetime", split_id="s", wait=60)
with ledger, open(f"{{path}}.{{name}}.released", "w", buffering=1) as released:
    for number in range(int(most)):
        ledger.charge({PLAN!r}, f"{{name}}/{{number}}", release)
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
                    ledger.charge(name, str(number), steps(TRAIN, 5))
                except Refused as refusal:
                    refused.append(refusal.reason)

    writers = [threading.Thread(target=spend, args=(name,)) for name in ("one", "two")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    with open_ledger(path) as ledger:
        ledger.verify()
        assert ledger.epsilon(DELTA) == limit
    assert refused == [Reason.BUDGET] * 30


def test_one_ledger_may_be_used_by_several_threads(ledger: Ledger) -> None:
    def spend(name: str) -> None:
        for number in range(20):
            ledger.charge(name, str(number), TRAIN)

    writers = [threading.Thread(target=spend, args=(name,)) for name in ("one", "two", "three")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(ledger.releases()) == len(ledger.entries()) == 60


def test_a_reservation_made_elsewhere_is_seen(path: Path) -> None:
    limit = cost(steps(TRAIN, 120))
    with open_ledger(path, budget=limit) as here, open_ledger(path, budget=limit) as there:
        here.reserve(PLAN, [TRAIN, TRAIN])
        with pytest.raises(Refused):
            there.reserve(OTHER, [TRAIN])
        there.charge(PLAN, "1", TRAIN)  # the plan's own, from another process
        assert here.releases() == there.releases()
        assert here.reservations() == there.reservations()


# --- append-only, and tampering ---------------------------------------------------------------------


def fill(ledger: Ledger) -> None:
    ledger.reserve(PLAN, [TRAIN] * 4)
    for number in range(4):
        ledger.charge(PLAN, f"run/{number}", TRAIN)
    ledger.release_reservation(PLAN)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE release SET event = '{}'",
        "UPDATE reservation SET events = '[]'",
        "UPDATE ledger SET scope = 'this run alone'",
        "DELETE FROM release WHERE seq = 3",
        "DELETE FROM reservation",
        "DELETE FROM ledger",
        "REPLACE INTO release SELECT seq, plan_sha256, order_id, kind, part, split_id, '{}', at, hash FROM release",
        "INSERT INTO reservation SELECT 99, plan_sha256, action, events, at, hash FROM reservation LIMIT 1",
    ],
)
def test_rows_cannot_be_changed(ledger: Ledger, path: Path, statement: str) -> None:
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
        (3, ["""UPDATE release SET event = replace(event, '2.0', '9.0') WHERE seq = 3"""]),
        (2, ["UPDATE release SET part = 'test' WHERE seq = 2"]),
        (5, ["UPDATE release SET split_id = 'other' WHERE seq = 5"]),
        (4, ["UPDATE release SET at = '2001-01-01' WHERE seq = 4"]),
        (1, ["UPDATE reservation SET events = '[]' WHERE seq = 1"]),
        (3, ["DELETE FROM release WHERE seq = 3"]),
        (3, ["DELETE FROM release WHERE seq = 3", "UPDATE release SET seq = seq - 1 WHERE seq > 3"]),
        (2, ["UPDATE release SET seq = -2 WHERE seq = 2", "UPDATE release SET seq = 2 WHERE seq = 3"]),
        (1, ["UPDATE ledger SET created = '2001-01-01'"]),
        (
            7,
            [
                "INSERT INTO release SELECT 7, plan_sha256, order_id, kind, part, split_id, event, at, hash FROM release LIMIT 1"
            ],
        ),
        (0, ["DELETE FROM ledger"]),
    ],
)
def test_tampering_shows(path: Path, entry: int, statements: list[str]) -> None:
    with open_ledger(path) as ledger:
        fill(ledger)
        ledger.verify()
        tamper(path, *statements)
        with pytest.raises(LedgerError, match=rf"fails its hash chain at entry {entry},"):
            ledger.verify()
    with pytest.raises(LedgerError, match=rf"fails its hash chain at entry {entry},"):
        open_ledger(path)


def test_a_ledger_that_went_back_is_not_used(ledger: Ledger, path: Path) -> None:
    fill(ledger)
    tamper(path, "DELETE FROM reservation WHERE seq = 6")
    for act in (ledger.verify, ledger.releases, lambda: ledger.charge(PLAN, "next", TRAIN)):
        with pytest.raises(LedgerError, match="ends at entry 5 but this process has seen entry 6"):
            act()


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
    tamper(path, "PRAGMA user_version = 2")
    with pytest.raises(LedgerError, match="written by a newer fedrisk"):
        open_ledger(path)


def test_a_locked_ledger_says_so_and_works_afterwards(path: Path) -> None:
    with (
        open_ledger(path, wait=0.05) as ledger,
        contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db,
    ):
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match=r"is locked by another process.*nothing was released") as error:
            ledger.charge(PLAN, CANARY, TRAIN)
        assert CANARY not in str(error.value)
        db.execute("ROLLBACK")
        ledger.charge(PLAN, "1", TRAIN)
        assert len(ledger.releases()) == 1


def test_a_full_disk_loses_nothing_and_charges_nothing(ledger: Ledger, path: Path) -> None:
    pages = ledger._pragma("page_count")
    ledger._db.execute(f"PRAGMA max_page_count = {pages}")  # SQLite then says what it says on a full disk

    def write() -> None:
        for number in range(100):
            ledger.charge(PLAN, f"{CANARY}/{number}", TRAIN)

    with pytest.raises(
        LedgerError, match=r"the disk is full: free some space.*nothing was released"
    ) as error:
        write()
    assert CANARY not in str(error.value)
    written = len(ledger.releases())
    assert charged_by(ledger) == [f"{CANARY}/{number}" for number in range(written)]
    assert written > 0
    ledger._db.execute("PRAGMA max_page_count = 1000000")
    ledger.charge(PLAN, "after", TRAIN)
    with open_ledger(path) as again:
        assert len(again.releases()) == written + 1


def test_a_read_only_ledger_says_so(ledger: Ledger) -> None:
    ledger._db.execute("PRAGMA query_only = ON")
    with pytest.raises(LedgerError, match=r"is read-only: the node's user must be able to write"):
        ledger.charge(PLAN, "1", TRAIN)
    assert ledger.releases() == ()


def test_a_closed_ledger_says_so(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.close()
        with pytest.raises(LedgerError, match="is closed: open it again"):
            ledger.charge(PLAN, "1", TRAIN)


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
            ledger.charge(PLAN, "1", TRAIN)
    assert ledger.releases() == ()
    ledger.charge(PLAN, "2", TRAIN)
    assert charged_by(ledger) == ["2"]
