"""The access log: who consulted whose score and what they did, unchangeable without being found out."""

import csv
import io
import json
import os
import pwd
import sqlite3
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer
from click.testing import Result
from scoring_node import AS_OF, to_score, write_model, write_node
from typer.testing import CliRunner

from clients.scoring import command
from clients.scoring.access import AccessError, AccessLog, who

START = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
app = typer.Typer(pretty_exceptions_enable=False)
for name in ("score", "review", "access"):
    app.command(name)(getattr(command, name))


class Clock:
    """One minute later every time."""

    def __init__(self) -> None:
        self.at = START - timedelta(minutes=1)

    def __call__(self) -> datetime:
        self.at += timedelta(minutes=1)
        return self.at


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log of one run with two records and a review of one."""
    path = tmp_path / "access.db"
    with AccessLog(path, now=Clock()) as log:
        log.scored(
            user="ann",
            run="r1",
            purpose="early-warning",
            model="m1",
            records={"P-1": True, "P-2": False},
            note="rehearsal",
        )
        log.reviewed(user="bo", reference="P-1", action="override", reason="paid  in\nJanuary")
    return path


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A node on which three people were scored and two of them listed."""
    write_model(tmp_path / "model")
    folder = write_node(tmp_path / "node")
    to_score(3).to_csv(tmp_path / "people.csv", index=False)
    arguments = [str(tmp_path / "people.csv"), str(tmp_path / "out"), "--model", str(tmp_path / "model")]
    done = ask(
        folder,
        "score",
        *arguments,
        "--purpose=early-warning",
        "--capacity=2",
        "--rehearsal",
        f"--as-of={AS_OF}",
    )
    assert done.exit_code == 0, done.output
    return folder


def ask(node: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--folder", str(node)])


def tampered(path: Path, *statements: str) -> None:
    """Change the file as somebody with the file and SQLite would."""
    with sqlite3.connect(path) as db:
        for trigger in ("access_no_UPDATE", "access_no_DELETE"):
            db.execute(f"DROP TRIGGER {trigger}")
        for statement in statements:
            assert db.execute(statement).rowcount > 0, statement
    db.close()


def test_a_run_its_records_and_a_review_are_rows_in_order(path: Path) -> None:
    with AccessLog(path) as log:
        rows = list(log.rows())
        assert log.head == (4, rows[-1].hash)
        assert log.verify() == 4
    assert [(row.user, row.action, row.reference, row.note) for row in rows] == [
        ("ann", "score", "", "rehearsal"),
        ("ann", "record", "P-1", "listed"),
        ("ann", "record", "P-2", "scored"),
        ("bo", "override", "P-1", "paid in January"),
    ]
    assert {(row.run, row.purpose, row.model) for row in rows} == {("r1", "early-warning", "m1")}
    assert rows[0].at == rows[2].at == "2026-03-01T09:00:00.000+00:00" < rows[3].at
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("statement", "row"),
    [
        ("UPDATE access SET user = 'nobody' WHERE seq = 2", 2),
        ("UPDATE access SET note = 'listed' WHERE seq = 3", 3),
        ("UPDATE access SET purpose = 'other' WHERE seq = 1", 1),
        ("DELETE FROM access WHERE seq = 3", 3),
        ("DELETE FROM access WHERE seq = 4", 4),
        ("DELETE FROM access", 1),
        ("UPDATE access SET seq = 9 WHERE seq = 4", 4),
    ],
)
def test_a_row_that_was_changed_or_removed_is_found(path: Path, statement: str, row: int) -> None:
    tampered(path, statement)
    with AccessLog(path) as log, pytest.raises(AccessError, match=f"hash chain at row {row},"):
        log.verify()


def test_a_row_from_elsewhere_is_found(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute(
            "INSERT INTO access SELECT 5, at, user, action, run, purpose, model, 'P-3', note, hash FROM access WHERE seq = 2"
        )
    db.close()
    with AccessLog(path) as log, pytest.raises(AccessError, match="hash chain at row 5,"):
        log.verify()


def test_an_end_that_was_cut_off_without_a_trace_is_found_by_what_a_page_says(path: Path) -> None:
    with AccessLog(path) as log:
        head = log.head
    tampered(path, "DELETE FROM access WHERE seq = 4", "UPDATE sqlite_sequence SET seq = 3")
    with AccessLog(path) as log:
        assert log.verify() == 3
        with pytest.raises(AccessError, match="hash chain at row 4,"):
            log.verify((head[0], head[1][:12]))


def test_another_history_is_found_by_what_a_page_says(path: Path, tmp_path: Path) -> None:
    with AccessLog(tmp_path / "other.db", now=Clock()) as log:
        log.scored(user="ann", run="r1", purpose="p", model="m", records={"P-1": True, "P-2": True}, note="")
        assert log.verify() == 3
        with AccessLog(path) as real:
            seen = list(real.rows())[2]
        with pytest.raises(AccessError, match="hash chain at row 3,"):
            log.verify((3, seen.hash[:12]))


@pytest.mark.parametrize("statement", ["UPDATE access SET user = 'x'", "DELETE FROM access"])
def test_the_file_itself_refuses_changes(path: Path, statement: str) -> None:
    db = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        db.execute(statement)
    db.close()
    with AccessLog(path) as log:
        assert log.verify() == 4


def test_two_processes_append_to_one_chain(path: Path) -> None:
    with AccessLog(path) as one, AccessLog(path) as other:
        for log, record in ((one, "A"), (other, "B"), (one, "C")):
            log.scored(user="ann", run="r", purpose="p", model="m", records={record: True}, note="")
        assert one.verify() == other.verify() == 10


def test_a_run_is_written_whole_or_not_at_all(path: Path) -> None:
    with AccessLog(path) as log:
        before = log.head
        with pytest.raises(AccessError):
            log.scored(user="ann", run="r2", purpose="p", model="m", records={"A": True, None: True}, note="")  # type: ignore[dict-item]
        assert log.head == before


def test_another_file_is_not_taken_for_an_access_log(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("hello" * 1000)
    with sqlite3.connect(tmp_path / "other.db") as db:
        db.execute("CREATE TABLE t (x)")
    db.close()
    for name in ("text.db", "other.db"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(AccessError):
            AccessLog(tmp_path / name)
        assert (tmp_path / name).read_bytes() == before


# --- the commands --------------------------------------------------------------------------------------


def test_who_is_the_login_of_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "somebody-else")  # what getpass would have believed
    monkeypatch.delenv("SUDO_UID", raising=False)
    me = pwd.getpwuid(os.getuid()).pw_name
    assert who() == me
    other = next(entry for entry in pwd.getpwall() if entry.pw_uid != os.getuid())
    monkeypatch.setenv("SUDO_UID", str(other.pw_uid))
    assert who() == f"{pwd.getpwuid(other.pw_uid).pw_name} (as {me})"


def test_scoring_writes_down_every_reference_before_a_page_is_written(node: Path) -> None:
    with AccessLog(node / "access.db") as log:
        rows = list(log.rows())
    assert rows[0].note == "rehearsal, 3 scored, 2 listed, capacity 2"
    assert {row.reference for row in rows[1:]} == set(to_score(3)["ref"])
    assert sorted(row.note for row in rows[1:]) == ["listed", "listed", "scored"]
    assert {(row.user, row.purpose) for row in rows} == {(who(), "early-warning")}
    page = (node.parent / "out" / "list.html").read_text()
    assert f"access log row 4:{rows[-1].hash[:12]}" in page


def test_nothing_is_shown_where_the_log_cannot_be_written(node: Path) -> None:
    (node / "access.db").unlink()
    (node / "access.db").mkdir()
    done = ask(
        node,
        "score",
        str(node.parent / "people.csv"),
        str(node.parent / "two"),
        "--model",
        str(node.parent / "model"),
        "--purpose=early-warning",
        "--capacity=2",
        "--rehearsal",
    )
    assert done.exit_code == 1
    assert "access.db cannot be opened" in done.stderr
    assert [path for path in (node.parent / "two").rglob("*") if path.is_file()] == []


def test_a_review_is_recorded_with_its_run_and_reason(node: Path) -> None:
    done = ask(node, "review", "P-1-0001", "--action", "override", "--reason", "known to be abroad", "--json")
    row = json.loads(done.stdout)
    assert (row["action"], row["reference"], row["note"], row["user"]) == (
        "override",
        "P-1-0001",
        "known to be abroad",
        who(),
    )
    with AccessLog(node / "access.db") as log:
        first, *_, last = log.rows()
        assert (last.run, last.purpose, last.model) == (first.run, first.purpose, first.model)
        assert log.verify() == 5
    assert ask(node, "review", "P-1-0001", "--action", "agree").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["P-1-0001", "--action", "override"], "--reason is needed to override"),
        (["P-1-0001", "--action", "defer", "--reason", "  \n "], "--reason is needed to defer"),
        (["P-9", "--action", "agree"], "no record with this reference was scored"),
        (["P-1-0001", "--action", "delete", "--reason", "x"], "--action must be agree, override or defer"),
        (["P-1-0001", "--action", "defer", "--reason", "x" * 2001], "at most 2000"),
    ],
)
def test_a_review_that_cannot_be_is_refused_and_not_recorded(
    node: Path, arguments: list[str], sentence: str
) -> None:
    done = ask(node, "review", *arguments)
    assert done.exit_code == 1
    assert sentence in done.stderr
    assert "P-9" not in done.stderr
    with AccessLog(node / "access.db") as log:
        assert log.verify() == 4


def test_a_review_before_anybody_was_scored_is_refused_and_makes_no_log(tmp_path: Path) -> None:
    folder = write_node(tmp_path / "node")
    done = ask(folder, "review", "P-1", "--action", "agree")
    assert (done.exit_code, "nobody was scored" in done.stderr) == (1, True)
    assert not (folder / "access.db").exists()


def test_access_shows_the_rows_as_words_json_and_csv(node: Path) -> None:
    words, as_json, as_csv = (ask(node, "access", *more).stdout for more in ([], ["--json"], ["--csv"]))
    rows = json.loads(as_json)
    assert [row["action"] for row in rows] == ["score", "record", "record", "record"]
    assert [row["hash"] for row in csv.DictReader(io.StringIO(as_csv))] == [row["hash"] for row in rows]
    assert all(reference in words for reference in to_score(3)["ref"])
    today = datetime.now(UTC).date()
    assert len(json.loads(ask(node, "access", "--json", "--since", today.isoformat()).stdout)) == 4
    tomorrow = (today + timedelta(days=1)).isoformat()
    assert json.loads(ask(node, "access", "--json", "--since", tomorrow).stdout) == []


def test_access_verify_says_whether_the_log_is_whole(node: Path) -> None:
    with AccessLog(node / "access.db") as log:
        seq, chain = log.head
    assert "4 rows" in ask(node, "access", "--verify").stdout
    assert ask(node, "access", "--verify", "--head", f"{seq}:{chain[:12]}").exit_code == 0
    assert ask(node, "access", "--verify", "--head", f"{seq}:{'0' * 12}").exit_code == 1
    assert "must be a row as a page names it" in ask(node, "access", "--verify", "--head", "4:").stderr
    tampered(node / "access.db", "UPDATE access SET user = 'nobody' WHERE seq = 2")
    done = ask(node, "access", "--verify")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "hash chain at row 2," in done.stderr
