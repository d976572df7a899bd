"""A panel's history only grows: whatever else happens to it is noticed, and the entry is named."""

import json
import multiprocessing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from panels import NOW, Signatories
from typer.testing import CliRunner

from federation.decision import Signed
from federation.panel.binding import false_entries
from federation.panel.cli import app
from federation.panel.files import PanelError, make_folder
from federation.panel.history import START, check_head, mend, opened, read

PANEL = Signatories.of("alice", "bob", quorum=2)


def statements(n: int) -> list[Signed]:
    return [PANEL.signed(PANEL.registration(experiment=f"demo-{i}")) for i in range(n)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A panel that has said four things."""
    make_folder(tmp_path / "panel", PANEL.panel)
    for signed in statements(4):
        with opened(tmp_path / "panel") as book:
            book.append(signed, NOW)
    return tmp_path / "panel"


def lines(folder: Path) -> list[bytes]:
    return (folder / "history.jsonl").read_bytes().splitlines(keepends=True)


def put(folder: Path, *content: bytes) -> None:
    (folder / "history.jsonl").write_bytes(b"".join(content))


def test_what_was_said_comes_back_in_its_order(folder: Path) -> None:
    entries = read(folder)
    assert [entry.seq for entry in entries] == [1, 2, 3, 4]
    assert [entry.previous for entry in entries] == [START, *(entry.hash for entry in entries[:-1])]
    assert false_entries(entries, PANEL.panel) == []
    assert set(json.loads(lines(folder)[0])) == {"seq", "at", "previous", "entry", "hash"}
    assert read(folder / "drafts") == ()


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_one_changed_byte_anywhere_is_noticed_and_named(folder: Path, number: int) -> None:
    before = lines(folder)
    line = before[number - 1]
    for at in range(0, len(line) - 1, 41):
        changed = bytearray(line)
        changed[at] ^= 1
        put(folder, *before[: number - 1], bytes(changed), *before[number:])
        with pytest.raises(PanelError, match=rf"entry {number} is not as it was written"):
            read(folder)


def test_a_line_that_was_removed_moved_or_put_in_is_noticed(folder: Path) -> None:
    first, second, third, fourth = lines(folder)
    for content, number in [
        ((first, third, fourth), 2),
        ((second, third, fourth), 1),
        ((first, third, second, fourth), 2),
        ((first, first, second, third, fourth), 2),
        ((first, b"\n", second), 2),
        ((first, second, b'{"seq":3}\n'), 3),
    ]:
        put(folder, *content)
        with pytest.raises(PanelError, match=rf"entry {number} is not as it was written"):
            read(folder)


def test_a_cut_off_end_is_noticed_by_a_head_from_the_minutes(folder: Path) -> None:
    entries = read(folder)
    for head in (entries[-1].head, f"4: {entries[-1].hash[:12]}", entries[1].head):
        check_head(entries, head)
    put(folder, *lines(folder)[:3])
    with pytest.raises(
        PanelError, match=r"ends at entry 3, and the minutes name entry 4: its end was removed"
    ):
        check_head(read(folder), entries[-1].head)
    (folder / "history.jsonl").unlink()
    with pytest.raises(PanelError, match="ends at entry 0"):
        check_head(read(folder), entries[0].head)
    for rubbish in ("", "4", "4:ab", "x:" + "0" * 64):
        with pytest.raises(PanelError, match="a head is SEQ:HASH"):
            check_head(entries, rubbish)


def test_a_history_that_was_written_anew_is_noticed_by_a_head(folder: Path) -> None:
    """By members who hold a quorum of keys: every signature is right, and every hash."""
    head = read(folder)[1].head
    (folder / "history.jsonl").unlink()
    for signed in statements(3):
        with opened(folder) as book:
            book.append(signed, datetime.now(UTC))
    assert false_entries(read(folder), PANEL.panel) == []
    with pytest.raises(PanelError, match=r"entry 2 .* the history was written anew"):
        check_head(read(folder), head)


@pytest.mark.parametrize("kept", [1, 40, -1])
def test_half_a_line_is_a_sentence_and_mended_only_after_the_newest_head(folder: Path, kept: int) -> None:
    before = lines(folder)
    head = read(folder)[2].head
    put(folder, *before[:3], before[3][:kept])
    for act in (lambda: read(folder), lambda: opened(folder).__enter__()):
        with pytest.raises(PanelError, match="ends in half a line after entry 3"):
            act()
    with pytest.raises(PanelError, match="entries are missing"):
        mend(folder, f"4:{'0' * 64}")
    assert mend(folder, head) == len(before[3][:kept])
    assert lines(folder) == before[:3]
    with pytest.raises(PanelError, match="nothing to mend"):
        mend(folder, head)


def test_verify_says_it_of_half_a_line_and_mend_is_a_command(folder: Path) -> None:
    head = read(folder)[-1].head
    with (folder / "history.jsonl").open("ab") as file:
        file.write(b'{"seq":5,')
    done = CliRunner().invoke(app, ["verify", "--folder", str(folder)])
    assert done.exit_code == 1
    assert "ends in half a line after entry 4" in done.stderr
    assert CliRunner().invoke(app, ["mend", "--head", head, "--folder", str(folder)]).exit_code == 0
    assert CliRunner().invoke(app, ["verify", "--head", head, "--folder", str(folder)]).exit_code == 0


def test_a_statement_that_cannot_stand_where_it_does_is_named(folder: Path) -> None:
    subject = PANEL.subject(PANEL.signed(PANEL.registration(experiment="never-registered")))
    decision = PANEL.signed(PANEL.decision(subject))
    said = [
        (decision, "is not in this panel's history"),
        (PANEL.signed(PANEL.status("0" * 64)), "names 0 decisions"),
        (PANEL.signed(PANEL.met(decision.digest, "dpia")), "has no condition 'dpia'"),
        (
            PANEL.signed(PANEL.registration(experiment="alone"), ("alice",)),
            "needs the signatures of 2 members",
        ),
        (statements(1)[0], "said exactly this before"),
    ]
    for signed, _ in said:
        with opened(folder) as book:
            book.append(signed, NOW)
    found = false_entries(read(folder), PANEL.panel)
    assert len(found) == len(said)
    for number, (sentence, (_, says)) in enumerate(zip(found, said, strict=True), start=5):
        assert sentence.startswith(f"entry {number}: ")
        assert says in sentence


def _append(folder: Path, name: str) -> None:
    for i in range(5):
        with opened(folder) as book:
            book.append(Signed.of(PANEL.registration(experiment=f"{name}-{i}")), NOW)


def test_two_who_write_at_once_wait_for_each_other(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append, args=(folder, name)) for name in ("north", "south")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert len(read(folder)) == 14
