"""What a person at the keyboard meets: help, examples, exit codes, and a tidy folder."""

import json
import re
from pathlib import Path

import pytest
from command import fedrisk, files_under, small_run
from conftest import people, write_table

from experiments.cli import app
from experiments.run import jobs_of

COMMANDS = [
    "run",
    "plan",
    "draft",
    "stats",
    "map",
    "cohort",
    "retest",
    "resume",
    "track",
    "compare",
    "submit",
    "check",
    "pilot-data",
    "audit",
    "signs",
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands write below the folder that a person is in, and lines are not broken for a narrow screen."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERMINAL_WIDTH", "200")


def test_help_names_every_command() -> None:
    done = fedrisk("--help")
    assert done.code == 0
    assert all(re.search(rf"\b{name}\b", done.out) for name in COMMANDS)
    assert {command.name or command.callback.__name__ for command in app.registered_commands} == set(COMMANDS)  # type: ignore[union-attr]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, tmp_path: Path) -> None:
    done = fedrisk(command, "--help")
    assert done.code == 0
    assert f"fedrisk {command} " in done.out
    assert list(tmp_path.iterdir()) == []


def test_the_help_of_run_shows_groups_and_no_trace_of_hydra() -> None:
    done = fedrisk("run", "--help")
    for line in (
        "model: logistic, mlp, residual",
        "privacy: local, none, shared",
        "fedrisk run --multirun seed=0,1,2",
    ):
        assert line in done.out
    assert "Powered by" not in done.out


def test_cfg_job_shows_the_settings_and_writes_nothing(tmp_path: Path) -> None:
    done = fedrisk("run", "experiment=heart", "--cfg", "job", "privacy.epsilon=1", "--package", "privacy")
    assert done.code == 0
    assert "epsilon: 1\n" in done.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flags", [["--cfg", "job"], ["--multirun"]])
def test_a_wrong_override_is_one_sentence_beside_hydras_flags_too(flags: list[str], tmp_path: Path) -> None:
    done = fedrisk("run", *flags, "rouns=3")
    assert done.code == 1
    assert done.problems == [
        "rouns is not a setting: did you mean rounds? `fedrisk run --cfg job` shows every setting"
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_run_says_where_its_result_is(folder: Path) -> None:
    done = fedrisk(*small_run(folder, "rounds=2"))
    assert (done.code, done.err) == (0, "")
    (home,) = (folder / "outputs").iterdir()
    assert f"result  {home}/result.json" in done.out
    assert f"report  {home}/report.html" in done.out
    assert re.search(r"tune +2 +\S+ \(", done.out), "a row for each checkpoint"
    assert json.loads((home / "result.json").read_text())["status"] == "finished"


def test_quiet_shows_nothing_but_the_guarantee_and_where_the_result_is(folder: Path) -> None:
    done = fedrisk(*small_run(folder, "rounds=2", "--quiet"))
    assert [line.split()[0] for line in done.out.splitlines()] == ["privacy", "result", "report", "papers"]


def test_multirun_is_one_run_for_each_combination_and_a_tidy_folder(folder: Path, tmp_path: Path) -> None:
    common = small_run(folder, "rounds=2", "output=outputs", "--quiet")
    done = fedrisk(*common, "--multirun", "seed=0,1", "strategy=fedavg,fedprox")
    assert done.code == 0, done.err
    runs = [json.loads(path.read_text()) for path in (tmp_path / "outputs").glob("*/result.json")]
    found = sorted((run["seed"], run["strategy"]["name"]) for run in runs)
    assert found == [(0, "fedavg"), (0, "fedprox"), (1, "fedavg"), (1, "fedprox")]
    own = {"agencies.yaml", "contract.yaml", "north.csv", "clinic.csv", "south.csv"}
    assert {path.name for path in tmp_path.iterdir()} == own | {"outputs"}
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    assert [path.name for path in sweep.iterdir()] == ["multirun.yaml"]


def test_a_sweep_with_one_impossible_value_starts_no_run(folder: Path) -> None:
    done = fedrisk(*small_run(folder), "--multirun", "seed=0,1,many")
    assert done.code == 1
    assert done.problems == [
        "seed should be a valid integer, unable to parse string as an integer, got 'many'"
    ]
    assert not (folder / "outputs").exists()


def test_a_sweep_whose_tables_do_not_fit_stops_at_its_first_run(folder: Path) -> None:
    write_table(folder / "north.csv", people(0, 20), ("visits",))
    done = fedrisk(*small_run(folder), "--multirun", "seed=0,1")
    assert done.code == 1
    (problem,) = done.problems
    assert problem.startswith("north: the table has fewer people than the 50 that are required")
    assert [path.name for path in (folder / "outputs").iterdir()] == ["sweeps"]


def test_a_sweep_is_checked_value_by_value() -> None:
    jobs = list(jobs_of(["a=1,2,3", "b=x", "c=4,5"]))
    assert jobs == [
        ["a=1", "b=x", "c=4"],
        ["a=2", "b=x", "c=4"],
        ["a=3", "b=x", "c=4"],
        ["a=1", "b=x", "c=5"],
    ]


def test_check_says_which_agencies_fit(folder: Path) -> None:
    before = files_under(folder)
    done = fedrisk("check", str(folder))
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        f"{name}: fits the contract small" for name in ("north", "clinic", "south")
    ]
    assert files_under(folder) == before


def test_check_takes_any_path_and_the_fewest_people(folder: Path, tmp_path: Path) -> None:
    odd = tmp_path / "my data (v2), a=b"
    odd.mkdir()
    for file in [*folder.glob("*.csv"), *folder.glob("*.yaml")]:
        (odd / file.name).write_bytes(file.read_bytes())
    write_table(odd / "north.csv", people(0, 60))
    assert fedrisk("check", str(odd / "agencies.yaml")).code == 0
    done = fedrisk("check", str(odd / "agencies.yaml"), "--min-people", "100")
    assert done.code == 1
    (problem,) = done.problems
    assert problem.startswith("north: the table has fewer people than the 100 that are required")


def test_resume_needs_a_run_that_is_there_and_not_finished(folder: Path) -> None:
    missing = fedrisk("resume", "nope")
    assert missing.code == 1
    assert missing.problems == ["outputs/nope is not a run: `ls outputs` shows the runs there are"]
    assert fedrisk(*small_run(folder, "rounds=2", "--quiet")).code == 0
    (home,) = (folder / "outputs").iterdir()
    before = files_under(home)
    finished = fedrisk("resume", home.name, "--output", str(folder / "outputs"))
    assert finished.code == 1
    assert finished.problems == [f"{home} is finished: its result is in {home}/result.json"]
    assert files_under(home) == before


def test_a_run_folder_that_was_damaged_is_one_sentence(folder: Path) -> None:
    home = folder / "outputs" / "small-1"
    home.mkdir(parents=True)
    (home / "experiment.json").write_text("{")
    done = fedrisk("resume", "small-1", "--output", str(folder / "outputs"))
    assert done.code == 1
    assert len(done.problems) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["rum"],
        ["resume"],
        ["check"],
        ["submit"],
        ["run", "--bogus"],
        ["run", "--cfg", "everything"],
        ["check", "agencies.yaml", "--min-people", "few"],
        ["resume", "one", "two"],
    ],
    ids=" ".join,
)
def test_bad_usage_is_exit_code_2(words: list[str], tmp_path: Path) -> None:
    done = fedrisk(*words)
    assert done.code == 2
    assert "usage" in done.err.lower()
    assert list(tmp_path.iterdir()) == []
