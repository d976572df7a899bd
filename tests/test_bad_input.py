"""Whatever is wrong, the person at that machine reads one sentence, and the coordinator learns nothing.

A process that is killed or interrupted is in test_federation.py, a ledger's full disk in test_ledger.py.
"""

import errno
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import TRACEBACK, Done, fedrisk, files_under, small_run
from conftest import CONTRACT, MakeStudy, people, write_table
from flwr.app import Message
from safetensors.numpy import load_file

from clients.app import make_app, node_from_config
from clients.ledger import Ledger
from experiments import engines
from experiments.config import Study
from federation import wire
from federation.protocol import Reason, Refusal
from federation.server import checkpoint
from federation.server.result import RunFacts
from federation.server.rounds import run_federation

ROOT = Path(__file__).resolve().parent.parent
CANARY = "CANARY7F3A"
CORRECT = ": correct north.csv or the contract, or leave north out of agencies.yaml"
Rows = list[dict[str, Any]]


def rows(n: int = 300, /, **changes: Callable[[int], object]) -> Rows:
    """North's rows with canaries for ids and one in a column that nobody asked for."""
    found = people(0, n)
    for i, row in enumerate(found):
        row |= {"person": f"{CANARY}-{i}", "note": f"{CANARY} note {i}"}
        row |= {name: change(i) for name, change in changes.items()}
    return found


def table(**changes: Callable[[int], object]) -> Callable[[Path], None]:
    return lambda path: write_table(path, rows(**changes))


def without(column: str) -> Callable[[Path], None]:
    return lambda path: write_table(path, rows(), (column,))


def text(content: str | bytes) -> Callable[[Path], None]:
    return lambda path: void(path.write_bytes(content if isinstance(content, bytes) else content.encode()))


def void(_: object) -> None: ...


HEADER = "person,age,known,sex,outcome\n"
TABLES: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing file": (Path.unlink, "agencies.yaml: agencies[0].table: FOLDER/north.csv does not exist"),
    "unknown column": (without("age"), f"north: column 'age' is not in the table{CORRECT}"),
    "wrong type": (
        table(age=lambda i: f"{CANARY}{i}" if i == 7 else i),
        f"north: column 'age' must be a number{CORRECT}",
    ),
    "wrong flag": (
        table(known=lambda i: f"{CANARY}{i}" if i == 7 else 1),
        f"north: column 'known' must be 0 or 1, true or false, yes or no{CORRECT}",
    ),
    "unlisted group": (
        table(sex=lambda i: CANARY if i == 7 else "f"),
        f"north: column 'sex' has values outside the levels of the group sex, which has no other{CORRECT}",
    ),
    "all missing": (table(age=lambda i: ""), f"north: column 'age' has no value in any row{CORRECT}"),
    "some missing": (
        table(age=lambda i: "" if i == 7 else i),
        f"north: column 'age' has missing values, which the contract does not allow{CORRECT}",
    ),
    "one-class label": (
        table(outcome=lambda i: 1),
        "north: column 'outcome' has one class only, but a label needs people with and without the outcome"
        + CORRECT,
    ),
    "no label": (without("outcome"), f"north: column 'outcome' is not in the table{CORRECT}"),
    "too few people": (
        lambda path: write_table(path, rows(49)),
        f"north: the table has fewer people than the 50 that are required{CORRECT}",
    ),
    "no rows": (text(HEADER), f"north: the table has no rows{CORRECT}"),
    "duplicate people": (
        table(person=lambda i: f"{CANARY}-{max(i, 1)}"),
        "north: column 'person' has several rows for one person, but the contract says one row and has no order_by"
        + CORRECT,
    ),
    "not UTF-8": (
        text(HEADER.encode() + f"{CANARY}-é,1,1,f,1\n".encode("latin-1")),
        "north: north.csv must be UTF-8 text: save it again as CSV UTF-8",
    ),
    "ragged": (
        text(HEADER + f"a,1,1,f,1\n{CANARY},1,1\n"),
        "north: north.csv row 3 (the header is row 1) must have as many cells as the header",
    ),
    "open quote": (
        text(HEADER + f'"{CANARY},1,1,f,1\n'),
        'north: north.csv has a quote (") without its pair',
    ),
    "semicolons": (
        text(HEADER.replace(",", ";") + f"{CANARY};1;1;f;1\n"),
        "north: north.csv has one column only: save it with commas between the cells",
    ),
}


@pytest.fixture(params=list(TABLES))
def bad(request: pytest.FixtureRequest, folder: Path) -> tuple[Callable[[], None], str]:
    """What makes north's table bad, and the sentence that says so."""
    (folder / "agencies.yaml").write_text(_north_first((folder / "agencies.yaml").read_text()))
    spoil, sentence = TABLES[request.param]
    return lambda: spoil(folder / "north.csv"), sentence.replace("FOLDER", str(folder))


def _north_first(listing: str) -> str:
    found = yaml.safe_load(listing)
    found["agencies"].sort(key=lambda agency: agency["name"] != "north")
    return yaml.safe_dump(found)


def test_a_table_that_cannot_be_used_is_one_sentence_at_that_machine(
    bad: tuple[Callable[[], None], str], folder: Path
) -> None:
    spoil, sentence = bad
    spoil()
    before = files_under(folder)
    for words in (small_run(folder), ["check", f"{folder}/agencies.yaml"]):
        done = fedrisk(*words)
        assert done.code == 1
        assert done.problems == [sentence]
        assert done.out == ""
        assert CANARY not in done.err
    assert files_under(folder) == before, "nothing is left behind and nothing is lost"


def test_what_crosses_the_wire_is_unavailable_and_the_others_finish(
    bad: tuple[Callable[[], None], str], make_study: MakeStudy, tmp_path: Path
) -> None:
    study = make_study("rounds=2", "evaluation.checkpoints=1")
    bad[0]()
    grid, result = federate(study, tmp_path / "run")
    (reply,) = grid.replies["north"]
    assert reply == Refusal("north", Reason.UNAVAILABLE)
    assert [record["replied"] for record in result["rounds"]] == [["clinic", "south"]] * 2
    facts = result["agencies"]["north"]
    assert (facts["status"], facts["reason"], facts["releases"]) == ("unavailable", "UNAVAILABLE", [])
    outside = files_under(tmp_path / "run", tmp_path / "run" / "nodes" / "north")
    assert not [path for path, content in outside.items() if CANARY.encode() in content]
    log = (tmp_path / "run" / "nodes" / "north" / "log" / "node.log").read_text()
    assert "north.csv" in log, "the agency's own people can read why"
    assert CANARY not in log


class Recording(engines.LocalGrid):
    """Keeps every reply, by agency."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.replies: dict[str, list[object]] = {}

    def pull_messages(self, message_ids: Any) -> list[Message]:
        found = list(super().pull_messages(message_ids))
        for message in found:
            assert not message.has_error()
            reply = wire.read_reply(message)
            self.replies.setdefault(reply.agency, []).append(reply)
        return found


def federate(study: Study, folder: Path) -> tuple[Recording, dict[str, Any]]:
    """Run `study` as a deployment would: nobody looks at an agency's table before it is asked."""
    nodes = engines.make_node_folders(
        study.agencies, study.experiment.contract, folder / "nodes", seed=0, min_people=50
    )
    grid = Recording(make_app(node_from_config), [{"node-dir": str(node)} for node in nodes])
    return grid, run_federation(grid, study.experiment, RunFacts("run-1", "local", True), folder)


def test_every_problem_of_every_agency_is_named_at_once(folder: Path) -> None:
    write_table(folder / "north.csv", rows(age=lambda i: "x", known=lambda i: ""), ("outcome",))
    write_table(folder / "clinic.csv", people(1), ("visits",))
    done = fedrisk(*small_run(folder))
    found = sorted(re.findall(r"^(\w+): column '(\w+)'", "\n".join(done.problems), re.M))
    assert found == [("clinic", "visits"), ("north", "age"), ("north", "known"), ("north", "outcome")]


# --- the files that a person writes -------------------------------------------------------------------


def listing(**changes: object) -> Callable[[Path], None]:
    """Change the second agency of agencies.yaml."""

    def change(folder: Path) -> None:
        found = yaml.safe_load((folder / "agencies.yaml").read_text())
        found["agencies"][1] |= changes
        (folder / "agencies.yaml").write_text(yaml.safe_dump(found))

    return change


def contract(**changes: object) -> Callable[[Path], None]:
    return lambda folder: void((folder / "contract.yaml").write_text(yaml.safe_dump(CONTRACT | changes)))


FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no agencies.yaml": (
        lambda folder: (folder / "agencies.yaml").unlink(),
        "FOLDER/agencies.yaml does not exist; docs/your-own-data.md shows how to write it",
    ),
    "not YAML": (
        lambda folder: void((folder / "agencies.yaml").write_text("agencies: [\n")),
        "FOLDER/agencies.yaml is not valid YAML (line 2)",
    ),
    "misspelt key": (
        listing(publik_size=3),
        "agencies.yaml: agencies[1].publik_size is not a known key; known are "
        "kind, name, public_size, table, weight",
    ),
    "wrong size": (
        listing(public_size="many"),
        "agencies.yaml: agencies[1].public_size must be a whole number of at least 1, got 'many'",
    ),
    "wrong kind": (
        listing(kind="army"),
        "agencies.yaml: agencies[1].kind must be one of the contract's kinds (police, health, charity), got 'army'",
    ),
    "same table": (
        listing(table="north.csv"),
        "agencies.yaml: agencies[1].table is the same as that of agencies[0]",
    ),
    "no contract": (
        lambda folder: (folder / "contract.yaml").unlink(),
        "agencies.yaml: contract: FOLDER/contract.yaml does not exist; docs/your-own-data.md shows how to write it",
    ),
    "misspelt contract key": (
        contract(colums={}),
        "contract.yaml: colums is not a known setting (did you mean columns?)",
    ),
    "impossible bounds": (
        contract(columns={"age": {"type": "number", "min": 9, "max": 3}}, blocks={}),
        "contract.yaml: columns.age.min must be below max, got 9 and 3",
    ),
    "nobody holds the label": (
        contract(
            label=CONTRACT["label"] | {"held_by": ["charity"]}, blocks={}, columns={"age": {"type": "flag"}}
        ),
        "no agency listed holds the label 'outcome'",
    ),
}


@pytest.mark.parametrize("case", list(FILES))
def test_a_file_that_cannot_be_used_is_one_sentence(folder: Path, case: str) -> None:
    spoil, sentence = FILES[case]
    spoil(folder)
    before = files_under(folder)
    for words in (small_run(folder), ["check", str(folder / "agencies.yaml")]):
        done = fedrisk(*words)
        assert (done.code, done.out) == (1, "")
        assert done.problems == [sentence.replace("FOLDER", str(folder))]
    assert files_under(folder) == before


# --- settings -----------------------------------------------------------------------------------------

SHOW = "`fedrisk run --cfg job` shows every setting"
SETTINGS: dict[str, list[str]] = {
    "rouns=3": [f"rouns is not a setting: did you mean rounds? {SHOW}"],
    "model.hiden=[3]": [f"model.hiden is not a setting: did you mean model.hidden? {SHOW}"],
    "epsilon=1": [f"epsilon is not a setting: did you mean privacy.epsilon? {SHOW}"],
    "zzz=1": [f"zzz is not a setting: {SHOW}"],
    "+zzz=1": ["zzz is not a known setting"],
    "+model.zzz=1": ["model.zzz is not a known setting"],
    "data.agencies=mine.yaml": [
        f"data.agencies is not a setting here, but of data=own: choose that first; {SHOW}"
    ],
    "experiment=own": ["data.agencies is missing: write data.agencies=..."],
    "~privacy": ["privacy needs exactly one of epsilon and noise_multiplier"],
    "model=forest": ["model must be one of logistic, mlp, residual, got 'forest'"],
    "model=null": ["model must be one of logistic, mlp, residual, got 'null'"],
    "local=3": ["local must be a group of settings, got 3"],
    "rounds=many": ["rounds should be a valid integer, unable to parse string as an integer, got 'many'"],
    "rounds=0": ["rounds should be greater than or equal to 1, got 0"],
    "rounds=[1": [
        "'rounds=[1' cannot be read: put text with special characters in quotes within quotes, as in "
        "\"rounds='a (b)'\""
    ],
    "rounds": ["'rounds' is not an override: write it as key=value"],
    "rounds=3,4": ["rounds has several values: add --multirun to try each, or write a list as rounds=[3,4]"],
    "name=${zzz}": ["name cannot be worked out: Interpolation key 'zzz' not found"],
    "name=My Study": ["name must be small letters, digits, - and _, at most 64, got 'My Study'"],
    "model.hidden=[0]": ["model hidden must be at most 8 whole numbers from 1 to 4096, got [0]"],
    "privacy.sample_rate=2": ["privacy.sample_rate should be less than or equal to 1, got 2"],
    "privacy.noise_multiplier=1": ["privacy needs exactly one of epsilon and noise_multiplier"],
    "privacy.max_grad_norm=inf": ["privacy needs a finite max_grad_norm unless mechanism is none, got inf"],
    "privacy.epsilon=1e-9": [
        "privacy: no noise_multiplier up to 10000 keeps 40 steps at sample_rate 1 within epsilon 1e-09 at delta "
        "1e-05: ask for fewer steps or more epsilon"
    ],
    "split.test=0.9": ["split tune + test must leave people to train on, got 0.2 + 0.9"],
    "contract.columns.age.min=200": ["contract: columns.age.min must be below max, got 200 and 90"],
    "contract=from_agencies": [
        "contract must be one of conf/contract: only data=own takes it from agencies.yaml"
    ],
    "engine=superlink": ["engine=superlink runs on a deployed federation: use `fedrisk submit SUPERLINK`"],
    "rouns=3 model=forest data.min_people=0": [
        "model must be one of logistic, mlp, residual, got 'forest'",
        f"rouns is not a setting: did you mean rounds? {SHOW}",
    ],
    "rounds=0 data.min_people=0 compare.seeds=0": [
        "data.min_people should be greater than or equal to 1, got 0",
        "compare.seeds should be greater than or equal to 1, got 0",
        "rounds should be greater than or equal to 1, got 0",
    ],
}


@pytest.mark.parametrize("typed", list(SETTINGS))
def test_a_setting_that_cannot_be_used_stops_before_any_data_is_touched(
    typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = typed.split() if re.search(r" \w+(\.\w+)*=", typed) else [typed]
    if typed == "engine=superlink":
        overrides += ["data.options.people=0.05"]
    done = fedrisk("run", *overrides)
    assert (done.code, done.out) == (1, "")
    assert done.problems == SETTINGS[typed]
    if typed != "engine=superlink":
        assert list(tmp_path.iterdir()) == []


def test_more_agencies_than_there_are_is_one_sentence(folder: Path) -> None:
    done = fedrisk(*small_run(folder, "min_agencies=4"))
    assert done.code == 1
    assert done.problems == ["min_agencies must be at most the 3 agencies listed, got 4"]
    assert not (folder / "outputs").exists()


# --- trackers -----------------------------------------------------------------------------------------


def unused_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        (
            "http://127.0.0.1:PORT",
            r"tracking\.uri: no MLflow server answers at 127\.0\.0\.1 within 4 s: start it, .*",
        ),
        (
            "postgresql://127.0.0.1:PORT/x",
            r"tracking\.uri: no database answers at 127\.0\.0\.1:\d+ within 4 s: .*",
        ),
        (
            "sqlite:////proc/none/mlflow.db",
            r"tracking\.uri: mlflow\.db cannot be written \(.*\): name a file in .*",
        ),
        ("mlruns", r"tracking\.uri is a plain folder, .*: use sqlite:///outputs/mlflow\.db"),
        ("gopher://x", r"tracking\.uri must be none or start with one of sqlite, .*, got gopher"),
    ],
)
def test_an_unreachable_tracker_is_one_sentence_before_any_agency_is_asked(
    folder: Path, uri: str, sentence: str
) -> None:
    uri = uri.replace("PORT", str(unused_port()))
    done = fedrisk(*small_run(folder, f"tracking.uri='{uri}'"))
    assert (done.code, done.out) == (1, "")
    (problem,) = done.problems
    assert re.fullmatch(sentence, problem)
    assert list((folder / "outputs").iterdir()) == []


# --- a full disk --------------------------------------------------------------------------------------


def full_at(write: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the server's write of that number on, the disk is full; each round writes an order and a checkpoint."""
    whole = os.fsync
    calls = iter(range(1, 1000))

    def fsync(descriptor: int) -> None:
        if next(calls) >= write:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(descriptor)

    monkeypatch.setattr("federation.server.checkpoint.os.fsync", fsync)


def home_of(folder: Path) -> Path:
    (home,) = folder.glob("outputs/small-*")
    return home


def test_an_order_that_cannot_be_noted_is_not_sent_and_costs_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as disk:
        full_at(2 * 3 - 1, disk)
        stopped = fedrisk(*small_run(folder, "--quiet"))
    (sentence,) = stopped.problems
    assert sentence.startswith("the order of round 3 cannot be noted in ")
    assert "so it was not sent" in sentence
    path = home_of(folder) / "nodes" / "north" / "ledger.db"
    with Ledger(path, budget=None, scope="this run alone", people="north/people") as ledger:
        assert sum(release.kind == "train" for release in ledger.releases()) == 2


def test_a_full_disk_loses_nothing_and_the_run_goes_on_to_the_same_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fedrisk(*small_run(folder, f"output={tmp_path}/whole", "--quiet"))
    assert whole.code == 0, whole.err
    with monkeypatch.context() as disk:
        full_at(2 * 3, disk)
        stopped = fedrisk(*small_run(folder, "--quiet"))
    home = home_of(folder)
    again = f"fedrisk resume {home.name} --output {folder}/outputs"
    why = "free space there or permit it, then resume the run; the rounds before it are kept"
    assert (stopped.code, stopped.out) == (1, "")
    assert stopped.problems == [
        f"the checkpoint of round 3 cannot be written to {home}/checkpoints (No space left on device): {why}; "
        f"go on with: {again}"
    ]
    kept = checkpoint.read_last(home / "checkpoints")
    assert kept is not None
    assert kept.round == 2

    on_dev_full(home / "checkpoints" / "round-00003.writing")  # the kernel's own ENOSPC
    still = resume(home)
    assert still.code == 1
    assert still.problems == stopped.problems
    (home / "checkpoints" / "round-00003.writing").unlink()

    on_dev_full(home / "result.writing")
    last = resume(home)
    assert last.code == 1
    (sentence,) = last.problems
    assert sentence.startswith(f"{home} cannot be used (No space left on device)")
    assert sentence.endswith(again)
    (home / "result.writing").unlink()

    assert resume(home).code == 0
    (other,) = (tmp_path / "whole").glob("small-*")
    one, two = (load_file(run / "model" / "model.safetensors") for run in (home, other))
    assert {name: value.tobytes() for name, value in one.items()} == {
        name: value.tobytes() for name, value in two.items()
    }


def on_dev_full(path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/full")


def resume(home: Path) -> Done:
    return fedrisk("resume", home.name, "--output", str(home.parent), "--quiet")


def test_a_disk_that_is_full_before_the_run_starts_is_one_sentence(folder: Path) -> None:
    (folder / "outputs").mkdir()
    (folder / "outputs").chmod(0o500)
    before = files_under(folder)
    if os.access(folder / "outputs", os.W_OK):  # root may write anywhere: use a file in the folder's place
        (folder / "outputs").rmdir()
        (folder / "outputs").write_text("a file")
        before = files_under(folder)
    done = fedrisk(*small_run(folder))
    assert done.code == 1
    (sentence,) = done.problems
    assert re.fullmatch(
        r"\S+/outputs\S* cannot be used \(.*\): see to its permissions and free space", sentence
    )
    assert files_under(folder) == before


# --- the command itself -------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["table", "setting"])
def test_the_real_command_says_it_once_without_a_traceback(folder: Path, wrong: str) -> None:
    write_table(folder / "north.csv", rows(age=lambda i: f"{CANARY}{i}"))
    words = small_run(folder, *(["rouns=3"] if wrong == "setting" else []))
    done = subprocess.run(
        [sys.executable, "-m", "experiments.cli", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (1, "")
    expected = {
        "table": f"north: column 'age' must be a number{CORRECT}",
        "setting": f"rouns is not a setting: did you mean rounds? {SHOW}",
    }
    assert done.stderr == f"fedrisk: {expected[wrong]}\n"
    assert TRACEBACK not in done.stderr
