"""The journal: what happened is written before it counts, in a chain that shows what was changed or removed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pytest
from conftest import MakeStudy, people, write_table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_policy import ask, deployed, orders

from clients import journal, journal_lines
from clients.journal import Journal, JournalError, against_ledger, files_of, read, verify
from clients.journal_lines import KINDS, Accepted, Approved, Ordered, Stopped
from clients.node import open_node
from federation import protocol as p
from federation import wire
from federation.protocol import Ready, Reason, Refusal, RoundOrder, RoundReply, TrainPlan

ROOT = Path(__file__).resolve().parent.parent
LINE = Stopped(how="asked")


@pytest.fixture
def plan(make_study: MakeStudy) -> TrainPlan:
    """A deployed run's plan that the policy of `deployed` permits."""
    return make_study("rounds=2", "evaluation.checkpoints=1").experiment.plan("run-1", simulation=False)


def written(folder: Path, n: int = 5, **options: Any) -> Path:
    """A journal of n lines; its first file."""
    for _ in range(n):
        Journal(folder, **options).write(LINE)
    return folder / "log" / "journal.jsonl"


def test_lines_are_read_as_they_were_written_in_order_and_the_chain_holds(tmp_path: Path) -> None:
    now = datetime(2026, 11, 1, 12, tzinfo=UTC)
    Journal(tmp_path, now=lambda: now).write(Approved(plan_sha256="a" * 64, by="A. Person"))
    Journal(tmp_path, now=lambda: now).write(LINE)
    first, second = read(tmp_path)
    assert (first.seq, first.kind, first.facts) == (
        1,
        "approved",
        {"plan_sha256": "a" * 64, "by": "A. Person"},
    )
    assert (second.previous, second.at) == (first.hash, "2026-11-01T12:00:00.000+00:00")
    assert verify(tmp_path) == journal.Verified(2, 1, False)
    assert read(tmp_path, since=datetime(2026, 11, 2, tzinfo=UTC)) == []


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert {path.stat().st_mode & 0o777, (path.parent / "journal.head").stat().st_mode & 0o777} == {0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_any_byte_that_is_changed_is_found_and_the_line_is_named(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("node")
    path = written(folder)
    content = bytearray(path.read_bytes())
    where = data.draw(st.integers(0, len(content) - 2))  # the last end of line: half a line, see below
    content[where] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(JournalError, match=r"at line \d|ends at line"):
        verify(folder)


CHANGES: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "a line is removed": (lambda lines: lines[:2] + lines[3:], r"at line 3 \(line 4 stands there\)"),
    "two lines change places": (lambda lines: [lines[1], lines[0], *lines[2:]], "at line 1"),
    "a line is put in twice": (lambda lines: [*lines[:2], lines[1], *lines[2:]], r"at line 3 \(line 2"),
    "the end is cut off": (lambda lines: lines[:3], "ends at line 3, and line 5 had been written"),
    "everything is cut off": (lambda lines: [], "ends at line 0, and line 5 had been written"),
}


@pytest.mark.parametrize("case", list(CHANGES))
def test_lines_that_are_removed_moved_or_put_in_are_found(case: str, tmp_path: Path) -> None:
    change, sentence = CHANGES[case]
    path = written(tmp_path)
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(JournalError, match=sentence):
        verify(tmp_path)


def test_what_was_cut_off_stays_missing_when_the_node_goes_on(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    written(tmp_path, 2)
    assert [record.seq for record in read(tmp_path)] == [1, 2, 3, 6, 7]
    with pytest.raises(JournalError, match=r"at line 4 \(line 6 stands there\)"):
        verify(tmp_path)


def test_the_chain_goes_on_in_a_new_file_and_a_file_that_is_gone_is_missed(tmp_path: Path) -> None:
    written(tmp_path, 9, largest=700)
    names = [path.name for path in files_of(tmp_path / "log")]
    assert names == ["journal.jsonl", "journal-0002.jsonl", "journal-0003.jsonl"]
    assert verify(tmp_path) == journal.Verified(9, 3, False)
    assert [record.seq for record in read(tmp_path)] == list(range(1, 10))
    (tmp_path / "log" / "journal-0002.jsonl").unlink()
    with pytest.raises(JournalError, match=r"journal-0002.jsonl is missing"):
        verify(tmp_path)


# --- crashes ------------------------------------------------------------------------------------------


def test_half_a_line_is_removed_wherever_the_crash_was_and_the_chain_holds(tmp_path: Path) -> None:
    path = written(tmp_path, 3)
    head = (path.parent / "journal.head").read_bytes()
    whole = path.read_bytes()
    written(tmp_path, 1)
    last = path.read_bytes().removeprefix(whole)
    for cut in range(1, len(last)):
        path.write_bytes(whole + last[:cut])
        (path.parent / "journal.head").write_bytes(head)  # which is written after the line
        assert verify(tmp_path).unfinished
        written(tmp_path, 1)
        kinds = [record.kind for record in read(tmp_path)]
        finished = cut == len(last) - 1  # but for its end
        assert kinds == ["stopped"] * 3 + (["stopped"] if finished else ["repaired"]) + ["stopped"], cut
        assert finished or read(tmp_path)[3].facts == {"cut_off": cut}
        assert not verify(tmp_path).unfinished


WRITERS = """
import os, random, signal, sys, time
from pathlib import Path
from clients.journal import Journal
from clients.journal_lines import Accepted

folder, turns, rng = Path(sys.argv[1]), int(sys.argv[2]), random.Random(0)
at_once = os.write


def in_pieces(handle, text):  # a disk that takes a few bytes at a time: a kill leaves half a line
    time.sleep(0.0005)
    return at_once(handle, text[:40])


def write_until_killed(name):
    os.write = in_pieces
    said = os.open(folder / f"{name}.said", os.O_WRONLY | os.O_CREAT, 0o600)
    for n in range(1, 10**6):
        Journal(folder).write(Accepted(order="round", order_id=f"{name}/{n}"))
        os.pwrite(said, f"{n:08d}".encode(), 0)


for turn in range(turns):
    pair = []
    for which in "ab":
        process = os.fork()
        if not process:
            write_until_killed(f"w{turn}{which}")
        pair.append(process)
    time.sleep(0.02 + rng.random() / 10)
    for process in pair:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
"""


def test_writers_that_are_killed_lose_no_line_that_was_written_and_break_no_chain(tmp_path: Path) -> None:
    """Forty times two writers at once, killed wherever they are."""
    command = [sys.executable, "-c", WRITERS, str(tmp_path), "40"]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    Journal(tmp_path).write(LINE)
    assert not verify(tmp_path).unfinished
    found = [record.facts["order_id"] for record in read(tmp_path) if record.kind == "accepted"]
    written = {path.stem: int(path.read_text() or 0) for path in tmp_path.glob("*.said")}
    assert sum(written.values()) > 100
    for writer, n in written.items():
        own = [int(order_id.split("/")[1]) for order_id in found if order_id.startswith(f"{writer}/")]
        assert own == list(range(1, len(own) + 1))
        assert n <= len(own) <= n + 1, "at most the one that was on its way"
    assert any(record.kind == "repaired" for record in read(tmp_path)), "the kills did cut lines"


def test_a_full_disk_is_one_sentence_and_leaves_no_half_line(tmp_path: Path) -> None:
    path = written(tmp_path, 2)
    code = (
        "import resource, signal, sys; from pathlib import Path; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"size = {path.stat().st_size + 50}; resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))\n"
        "from clients.journal import Journal, JournalError; from clients.journal_lines import Stopped\n"
        "try: Journal(Path(sys.argv[1])).write(Stopped(how='asked'))\n"
        "except JournalError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"{path} cannot be written (File too large): free some space")
    assert verify(tmp_path) == journal.Verified(2, 1, False)


# --- what may be in it --------------------------------------------------------------------------------


def test_no_kind_of_line_has_a_field_for_anything_of_a_record() -> None:
    """Every field of every kind, by name: a new one has to be argued for here."""
    fields = {f"{kind}.{name}" for kind, line in KINDS.items() for name in line.model_fields}
    of_order = {"order", "run_id", "plan_sha256", "order_id"}
    expected = {
        "ordered": of_order | {"experiment", "purpose", "registration", "retest_of", "round"},
        "accepted": of_order,
    }
    expected |= {"refused": of_order | {"reason", "rule", "sentence"}}
    expected |= {"released": of_order | {"released", "steps", "ledger_seq", "ledger_sha256"}}
    expected |= {"rules": {"policy_sha256", "contract_sha256"}}
    expected |= {"started": {"version", "code_sha256"}, "stopped": {"how"}, "repaired": {"cut_off"}}
    expected |= {"approved": {"plan_sha256", "by"}, "withdrawn": {"plan_sha256", "by"}, "left": {"by"}}
    assert fields == {f"{kind}.{name}" for kind, names in expected.items() for name in names}
    assert journal_lines.printable("a\x1b[2J\n" + "b" * 500) == "a?[2J?" + "b" * 394


def test_the_types_of_orders_are_those_of_the_protocol() -> None:
    assert {name.partition(".")[2] for name in p.ORDERS} | {"unknown"} == set(
        get_args(journal_lines.OrderType)
    )


# --- wired into the node ------------------------------------------------------------------------------


def kinds(folder: Path) -> list[tuple[str, Any]]:
    return [(record.kind, record.facts.get("order")) for record in read(folder)]


def test_each_order_and_verdict_and_release_is_a_line_before_the_answer(
    tmp_path: Path,
    plan: TrainPlan,
) -> None:
    folder = deployed(tmp_path / "node")
    write_table(folder / "north.csv", people(0), ("visits",))
    ready, trained = (ask(folder, order) for order in orders(plan))
    assert isinstance(ready, Ready)
    assert isinstance(trained, RoundReply)
    assert kinds(folder) == [
        ("ordered", "ready"),
        ("accepted", "ready"),
        ("ordered", "round"),
        ("released", "round"),
    ]
    node = open_node(folder)
    order, release = read(folder)[2:]
    assert order.facts["purpose"] == plan.purpose
    assert release.facts["released"] == ["tune table", "training"]
    assert (release.facts["steps"], release.facts["plan_sha256"]) == (plan.local.steps, plan.sha256)
    assert (release.facts["ledger_seq"], release.facts["ledger_sha256"]) == node.ledger.head
    charged = [(e.order_id, e.at) for e in node.ledger.entries() if e.action == "charge"]
    assert against_ledger(read(folder), charged, node.ledger.holds) == 0
    verify(folder)


def test_a_refusal_names_the_reason_and_the_rule_that_decided(tmp_path: Path, plan: TrainPlan) -> None:
    folder = deployed(tmp_path / "node")
    ask(folder, orders(plan.but(purpose="ranking"))[0])
    ask(folder, orders(plan)[0])  # the table is not there
    first, second = [record.facts for record in read(folder) if record.kind == "refused"]
    assert (first["reason"], first["rule"]) == ("PURPOSE", "purposes")
    assert first["sentence"] == "purposes: the plan's purpose 'ranking' is not listed"
    assert (second["reason"], second["rule"], second["sentence"]) == ("UNAVAILABLE", "", "")


def test_an_order_that_does_not_decode_is_a_line_too(tmp_path: Path, plan: TrainPlan) -> None:
    folder = deployed(tmp_path / "node")

    def spoilt(node: int) -> Any:
        message = wire.pack_ready_order(plan, node)
        message.content["fedrisk"]["json"] = "["
        return message

    assert ask(folder, spoilt) == Refusal("north", Reason.MALFORMED)
    assert kinds(folder) == [("ordered", "ready"), ("refused", "ready")]


def test_where_the_journal_cannot_be_written_nothing_leaves(
    tmp_path: Path,
    plan: TrainPlan,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = deployed(tmp_path / "node")
    write_table(folder / "north.csv", people(0), ("visits",))
    ask(folder, orders(plan)[0])

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal, "append", full)
    order = RoundOrder(plan, 1, {}, True)
    assert ask(folder, lambda node: wire.pack_round_order(order, node)) == Refusal(
        "north", Reason.UNAVAILABLE
    )
    assert "No space left on device" in (folder / "log" / "node.log").read_text()
    assert not [e for e in open_node(folder).ledger.entries() if e.action == "charge"]


def test_a_ledger_that_does_not_fit_the_journal_is_found(tmp_path: Path) -> None:
    Journal(tmp_path).write(Ordered(order="round", order_id="run/1"))
    early, late = "2020-01-01T00:00:00.000+00:00", "2999-01-01T00:00:00.000+00:00"
    known = read(tmp_path)
    assert against_ledger(known, [("run/0", early), ("run/1", late)], lambda *_: True) == 1
    with pytest.raises(JournalError, match="charge of order run/2, which the journal does not know"):
        against_ledger(known, [("run/1", late), ("run/2", late)], lambda *_: True)
    released = journal_lines.Released(
        order="round", released=("training",), ledger_seq=4, ledger_sha256="a" * 64
    )
    Journal(tmp_path).write(released)
    with pytest.raises(JournalError, match="names entry 4 of the ledger"):
        against_ledger(read(tmp_path), [], lambda *_: False)


def test_an_exported_line_is_json_that_anybody_can_check(tmp_path: Path) -> None:
    """The hash is of the other five values as canonical JSON: no code of ours is needed."""
    import hashlib

    path = written(tmp_path, 1)
    line = json.loads(path.read_text())
    values = [line[name] for name in ("seq", "at", "kind", "facts", "previous")]
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == line["hash"]
    assert Accepted(order="ready").model_dump(exclude_none=True) == {"order": "ready", "order_id": ""}
