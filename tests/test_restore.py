"""The restore drill of docs/restore.md: a copy that is taken while a node works holds, and an older one is refused."""

import hashlib
import json
import re
import shlex
import shutil
import stat
import subprocess
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import yaml
from conftest import CONTRACT, MakeStudy, people, permits, write_table
from test_doctor import NODE
from test_heads import LOCAL, SHARED, Town, refused
from test_node_cli import node
from test_policy import ask, orders

from clients import journal
from clients.approvals import Approvals
from clients.desk import backup
from clients.desk.backup import SUMS, back_up
from clients.desk.doctor import examine
from clients.desk.ledger_copy import read_only
from clients.folder import NodeError
from clients.journal import Journal
from clients.journal_lines import Ordered
from clients.keys import make_node_key, secret
from clients.ledger import Ledger, PlanFacts
from clients.node import open_node
from clients.scoring.access import AccessLog
from federation.plan import TrainPlan
from federation.release import Release

DOCS = Path(__file__).resolve().parent.parent / "docs"
PARTS = ("ledger", "journal", "approvals", "keys", "policy")
MakeTown = Callable[..., Town]


@pytest.fixture
def plan(make_study: MakeStudy) -> TrainPlan:
    """A deployed run's plan that the node permits."""
    study = make_study("rounds=2", "evaluation.checkpoints=1")
    return study.experiment.plan("run-1", simulation=False)


@pytest.fixture
def fit(tmp_path: Path) -> Path:
    """A node that is fit to work."""
    folder = tmp_path / "node"
    folder.mkdir(mode=0o700)
    (folder / "node.toml").write_text(tomli_w.dumps(NODE))
    (folder / "policy.toml").write_text(tomli_w.dumps(permits(budget={"life": 20.0, "delta": 1e-5})))
    (folder / "contract.yaml").write_text(yaml.safe_dump(CONTRACT, sort_keys=False))
    write_table(folder / "north.csv", people(0), ("visits",))
    make_node_key(folder)
    for name in ("split.key", "signing.key"):
        secret(folder / name)
    return folder


@pytest.fixture
def make_town(make_shared: MakeStudy, tmp_path: Path) -> MakeTown:
    def make(*overrides: str) -> Town:
        town = Town(make_shared, tmp_path, *overrides)
        for folder in town.folders.values():
            make_node_key(folder)
        return town

    return make


def holds(copy: Path) -> None:
    """What `doctor` says of a copy, and SHA256SUMS of every file."""
    found = {finding.check: finding for finding in examine(copy, offline=True)}
    assert {
        name: found[name].state for name in PARTS if name in found and found[name].state == "fail"
    } == {}, found
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", SUMS],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def worked(folder: Path, plan: TrainPlan) -> None:
    """A node that has answered every order of a plan."""
    for order in orders(plan):
        ask(folder, order)


# --- the copy -------------------------------------------------------------------------------------------


def test_a_copy_has_what_must_not_be_lost_and_nothing_that_must_not_come_back(
    fit: Path, plan: TrainPlan
) -> None:
    worked(fit, plan)
    Approvals(fit).withdraw("a" * 64, "A. Person", "no more", open_node(fit).now())
    AccessLog(fit / "access.db").close()
    (fit / "masks").mkdir()
    (fit / "masks" / "run.json").write_text("{}")
    (fit / "cohorts").mkdir()
    (fit / "cohorts" / "run.json").write_text("{}")
    assert list((fit / "draws").glob("*.reply")), "replies are kept there"
    copied = back_up(fit, fit.parent / "copy")
    names = set(copied.files)
    assert names == {
        *(
            "access.db",
            "approvals.jsonl",
            "contract.yaml",
            "ledger.db",
            "log/journal.head",
            "log/journal.jsonl",
        ),
        *(
            "node.key",
            "node.pub",
            "node.toml",
            "policy.toml",
            "probing.db",
            "signing.key",
            "split.key",
        ),
    }
    assert copied.ledger == tuple(open_node(fit).head)
    assert copied.journal_lines == len(journal.read(fit))
    holds(fit.parent / "copy")


def test_a_copy_is_for_its_owner_alone(fit: Path, plan: TrainPlan) -> None:
    worked(fit, plan)
    for path in fit.iterdir():
        if path.is_file() and not path.name.endswith(".key"):
            path.chmod(0o644)
    back_up(fit, fit.parent / "copy")
    for path in (fit.parent / "copy", *(fit.parent / "copy").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_no_record_is_in_a_copy(fit: Path, plan: TrainPlan) -> None:
    worked(fit, plan)
    back_up(fit, fit.parent / "copy")
    cells = [line.partition(",")[0].encode() for line in (fit / "north.csv").read_text().splitlines()[1:]]
    content = b"".join(path.read_bytes() for path in (fit.parent / "copy").rglob("*") if path.is_file())
    assert not any(b'"' + cell in content or b"\n" + cell in content for cell in cells)
    assert not (fit.parent / "copy" / "north.csv").exists()


def test_a_node_at_work_is_not_changed_by_a_copy(fit: Path, plan: TrainPlan) -> None:
    worked(fit, plan)
    before = state(fit)
    back_up(fit, fit.parent / "copy")
    assert state(fit) == before
    ask(fit, orders(plan)[0])
    assert len(journal.read(fit)) > before["lines"]


def state(folder: Path) -> dict[str, Any]:
    files = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("-shm", "-wal"))
    }
    return {"files": files, "lines": len(journal.read(folder)), "head": open_node(folder).head}


def test_a_copy_between_a_charge_and_its_release_holds(
    fit: Path,
    plan: TrainPlan,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The order is in the journal, its charge in the ledger, and nothing has left yet."""
    charge, copies = Ledger.charge, []

    def charge_and_copy(self: Ledger, *arguments: Any, **options: Any) -> None:
        charge(self, *arguments, **options)
        copies.append(fit.parent / f"copy-{len(copies)}")
        back_up(fit, copies[-1])

    monkeypatch.setattr(Ledger, "charge", charge_and_copy)
    worked(fit, plan)
    assert copies
    for copy in copies:
        holds(copy)
        (last, *_) = reversed(journal.read(copy))
        assert last.kind == "ordered"


def test_an_order_that_comes_between_two_files_waits_for_the_copy(
    fit: Path, plan: TrainPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is copied, the ledger not yet: were the order not to wait, its charge would be without a line."""
    worked(fit, plan)
    real, late = backup._copy_database, []

    def order() -> None:
        Journal(fit).write(Ordered(order="round", order_id="late/1"))
        with Ledger(fit / "ledger.db", budget=None, scope="lifetime", people="north/people") as ledger:
            facts = PlanFacts("b" * 64, "late", "small", "early-warning")
            ledger.charge(facts, "late/1", [Release("train", "train", 1.0, 0.1, 1)])

    def copy(source: Path, target: Path) -> None:
        if source.name == "ledger.db":
            late.append(threading.Thread(target=order))
            late[0].start()
            late[0].join(timeout=0.5)
        real(source, target)

    monkeypatch.setattr(backup, "_copy_database", copy)
    back_up(fit, fit.parent / "copy")
    late[0].join(timeout=10)
    holds(fit.parent / "copy")
    with Ledger(fit / "ledger.db", budget=None, scope="lifetime", people="north/people") as ledger:
        assert ledger.charged("late/1"), "it was only made to wait"


def test_copies_while_a_federation_works_all_hold(make_town: MakeTown) -> None:
    """A thread that copies as fast as it can, and a run of five nodes."""
    town, over, copies, wrong = make_town(*LOCAL), threading.Event(), [], []

    def copy() -> None:
        while not over.is_set():
            place = town.home / f"copy-{len(copies)}"
            try:
                back_up(town.folders["east"], place)
            except Exception as error:  # noqa: BLE001 - told by the test's own thread
                wrong.append(repr(error))
                return
            copies.append(place)

    thread = threading.Thread(target=copy)
    thread.start()
    try:
        assert refused(town.run()) == {}
    finally:
        over.set()
        thread.join()
    assert wrong == []
    assert len(copies) > 3
    seen = set()
    for place in copies:
        holds(place)
        with Ledger(place / "ledger.db", budget=None, scope="lifetime", people="east/people") as ledger:
            seen.add(ledger.head)
    assert len(seen) > 1, "copies of several moments"


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a changed line of the log": (
        lambda f: (f / "log/journal.jsonl").write_text(
            (f / "log/journal.jsonl").read_text().replace("run-1", "run-2", 1)
        ),
        "fails its hash chain at line 1",
    ),
    "no ledger at all": (
        lambda f: (f / "ledger.db").write_bytes(b"x" * 9000),
        "ledger.db cannot be copied (DatabaseError)",
    ),
    "no node": (lambda f: (f / "node.toml").unlink(), "is this a node's folder?"),
    "a folder that is there": (lambda f: (f.parent / "copy").mkdir(), "is there already: name a new folder"),
}


@pytest.mark.parametrize("case", list(BROKEN))
def test_a_copy_that_cannot_be_is_one_sentence_and_leaves_nothing(
    case: str, fit: Path, plan: TrainPlan
) -> None:
    worked(fit, plan)
    open_node(fit).close()
    spoil, sentence = BROKEN[case]
    for name in ("ledger.db-wal", "ledger.db-shm"):
        (fit / name).unlink(missing_ok=True)
    spoil(fit)
    out = fit.parent / "copy"
    there = out.exists()
    done = node("backup", fit, out)
    assert (done.code, done.out) == (1, "")
    (line,) = done.err.splitlines()
    assert sentence in line
    assert str(out / "log") not in line, "it names the node's own file, not the copy's"
    assert out.exists() == there


def test_an_older_ledger_beside_a_newer_journal_is_not_copied(fit: Path, plan: TrainPlan) -> None:
    """Somebody put an older ledger back before the copy was taken: a copy of that would be the only one some day."""
    worked(fit, plan)
    open_node(fit).close()
    for path in fit.glob("ledger.db*"):
        path.unlink()
    with read_only(fit, *_files(fit)) as empty:
        assert empty.releases() == ()
    with Ledger(fit / "ledger.db", budget=None, scope="lifetime", people="north/people"):
        pass
    with pytest.raises(NodeError, match=r"no copy was made.*an older ledger was put back"):
        back_up(fit, fit.parent / "copy")


def _files(folder: Path) -> tuple[Any, Any]:
    from clients.folder import read_node_file
    from clients.policy import read_policy

    return read_node_file(folder / "node.toml"), read_policy(folder / "policy.toml")


def test_the_command_says_what_it_copied_in_words_and_json(fit: Path, plan: TrainPlan) -> None:
    worked(fit, plan)
    done = node("backup", fit, fit.parent / "copy")
    assert done.code == 0, done.err
    assert f"ledger entry {open_node(fit).head.seq} " in done.out
    assert "keep it as safe as the node" in " ".join(done.out.split())
    told = node("backup", fit, fit.parent / "copy-2", "--json").json
    assert told["agency"] == "north"
    assert told["ledger"][0] == open_node(fit).head.seq


def test_a_new_folder_is_copied_before_anything_has_happened(fit: Path) -> None:
    copied = back_up(fit, fit.parent / "copy")
    assert (copied.ledger, copied.journal_lines) == (None, 0)
    assert not (fit / "ledger.db").exists()


# --- the drill ------------------------------------------------------------------------------------------


def restore(town: Town, name: str, copy: Path) -> None:
    """As docs/restore.md says: the broken folder is moved away as a whole, the copy and the table take its place."""
    folder = town.folders[name]
    broken = town.home / f"{name}-broken-{copy.name}"
    folder.rename(broken)
    shutil.copytree(copy, folder)
    for table in broken.glob("*.csv"):
        shutil.copy(table, folder / table.name)


@pytest.mark.parametrize("overrides", [LOCAL, SHARED], ids=["local", "shared"])
def test_the_newest_copy_goes_on_and_an_older_one_is_refused(
    make_town: MakeTown, overrides: tuple[str, ...]
) -> None:
    town = make_town(*overrides)
    town.run()
    old, new = town.home / "old", town.home / "new"
    back_up(town.folders["east"], old)
    town.run()
    back_up(town.folders["east"], new)
    charged = town.charges("east")

    restore(town, "east", old)
    before = town.charges("east")
    assert len(before) < len(charged)
    assert refused(town.run()) == {"east": "LEDGER"}
    assert town.charges("east") == before, "it has answered nothing"

    restore(town, "east", new)
    result = town.run()
    assert refused(result) == {}
    assert "east" in result["rounds"][-1]["replied"]
    assert len(town.charges("east")) > len(charged)


def test_an_old_copy_is_found_by_the_heads_that_others_keep(make_town: MakeTown) -> None:
    """How a person finds it before the node is started: the number that the coordinator and a neighbour have kept."""
    town = make_town(*LOCAL)
    town.run()
    old = back_up(town.folders["east"], town.home / "old")
    town.run()
    new = back_up(town.folders["east"], town.home / "new")
    kept = json.loads(town.heads().read_text())["east"]
    assert old.ledger is not None
    assert new.ledger is not None
    assert old.ledger[0] < kept[0]
    assert list(new.ledger) == kept
    assert town.kept_by_peers()["east"].seq > old.ledger[0]


def test_a_stale_log_of_the_old_ledger_is_why_the_folder_is_moved_as_a_whole(make_town: MakeTown) -> None:
    """A copy's ledger is whole in one file: no `-wal` of another ledger may lie beside it."""
    town = make_town(*LOCAL)
    town.run()
    copy = town.home / "copy"
    back_up(town.folders["east"], copy)
    assert not list(copy.glob("ledger.db-*"))
    with Ledger(copy / "ledger.db", budget=None, scope="lifetime", people="east/people") as ledger:
        ledger.verify()
        assert [entry.order_id for entry in ledger.entries() if entry.action == "charge"] == town.charges(
            "east"
        )


def test_the_restored_node_is_the_same_agency(make_town: MakeTown) -> None:
    """Its keys came back: people are dealt as before, and the others' pins still fit."""
    town = make_town(*SHARED)
    town.run()
    folder, keys = town.folders["east"], {}
    for name in ("node.key", "split.key", "signing.key"):
        keys[name] = (folder / name).read_bytes()
    back_up(folder, town.home / "copy")
    restore(town, "east", town.home / "copy")
    assert {name: (folder / name).read_bytes() for name in keys} == keys
    assert refused(town.run()) == {}


def test_a_withdrawal_after_the_copy_must_be_said_again(fit: Path, plan: TrainPlan) -> None:
    """What docs/restore.md warns of: a restored folder does not know what people decided since."""
    worked(fit, plan)
    back_up(fit, fit.parent / "copy")
    Approvals(fit).withdraw(plan.sha256, "A. Person", "ended", open_node(fit).now())
    assert Approvals(fit).standing() == {plan.sha256: "withdrawn"}
    assert Approvals(fit.parent / "copy").standing() == {}


def test_the_drill_of_the_page_runs_as_it_stands_there(fit: Path, plan: TrainPlan) -> None:
    """Each line, with the folders of this test: none fails, and the node is as it was."""
    (fit / "north.csv").rename(fit / "people.csv")
    (fit / "node.toml").write_text(tomli_w.dumps(NODE | {"table": "people.csv"}))
    worked(fit, plan)
    before = state(fit)
    page = (DOCS / "restore.md").read_text()
    (block,) = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    for line in (
        block.replace("/var/lib/fedrisk/node", str(fit)).replace("/media/safe", str(fit.parent)).splitlines()
    ):
        if line.startswith("fedrisk-node "):
            done = node(*shlex.split(line)[1:])
            assert done.code == 0, (line, done.out, done.err)
        else:
            subprocess.run(["bash", "-ec", line], check=True)
    assert not (fit.parent / "drill").exists()
    assert state(fit) == before


def test_the_page_quotes_what_the_node_says() -> None:
    page = " ".join((DOCS / "restore.md").read_text().split())
    source = (DOCS.parent / "clients" / "node.py").read_text()
    said = "".join(re.findall(r'f?"(.*)"', source.partition("Reason.LEDGER,")[2].partition(")")[0]))
    assert said.replace("{seen.seq}", "212") in page


def test_the_page_names_the_files_that_are_copied() -> None:
    page = (DOCS / "restore.md").read_text()
    for name in (*backup.DATABASES, *backup.FILES, SUMS, "draws/", "masks/", "cohorts/", "log/journal.jsonl"):
        assert f"`{name}`" in page, name


@pytest.fixture(autouse=True)
def closed() -> Any:
    """No node stays open from one test to the next."""
    yield
    open_node.cache_clear()


def test_a_copy_of_a_node_with_a_line_takes_its_ca_and_release_along(fit: Path) -> None:
    facts = tomllib.loads((fit / "node.toml").read_text())
    facts |= {
        "superlink": {"address": "h:1", "certificate": "ca.crt"},
        "release": {"manifest": "r.json", "key": "k" * 44},
    }
    (fit / "node.toml").write_text(tomli_w.dumps(facts))
    for name in ("ca.crt", "r.json", "r.json.sig"):
        (fit / name).write_text(name)
    assert {"ca.crt", "r.json", "r.json.sig"} <= set(back_up(fit, fit.parent / "copy").files)
