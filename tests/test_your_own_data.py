"""docs/your-own-data.md is followed to the letter: its files are written, its commands typed, its output compared."""

import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from command import Done, fedrisk

DOC = (Path(__file__).resolve().parent.parent / "docs" / "your-own-data.md").read_text()
FILES = dict(re.findall(r"\*\*`([^`]+)`\*\*[^`]*\n\n```\w+\n(.*?)```", DOC, re.S))
COMMANDS = re.findall(r"```console\n\$ ([^\n]+)\n(.*?)```", DOC, re.S)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a reader makes."""
    folder = tmp_path_factory.mktemp("arrears")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        runpy.run_path(str(folder / "make_tables.py"))
    return folder


def typed(command: str, *more: str) -> Done:
    program, *words = shlex.split(command)
    assert program == "fedrisk"
    return fedrisk(*words, *more)


def shape(text: str) -> list[str]:
    """Lines with every number, hash, time and run of spaces made alike: another machine may round differently."""
    lines = [re.sub(r"\S*\d\S*|–", "#", line) for line in text.splitlines()]
    return [re.sub(r"\s+", " ", line).strip() for line in lines if not line.startswith(("MLflow", "charts"))]


def test_the_page_has_its_files_and_commands() -> None:
    assert list(FILES) == ["contract.yaml", "make_tables.py", "agencies.yaml"]
    first = [command.split()[:2] for command, _ in COMMANDS]
    assert first == [
        ["python", "make_tables.py"],
        *[["fedrisk", name] for name in ("check", "run", "stats", "check", "run")],
    ]


def test_the_commands_print_what_the_page_shows(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(example)
    monkeypatch.setenv("COLUMNS", "250")
    (_, (check, fits), (run, shown), (stats, quantiles), *_) = COMMANDS
    checked = typed(check)
    assert (checked.code, checked.out, checked.err) == (0, fits, "")
    for command, output in ((run, shown), (stats, quantiles)):
        done = typed(command, "tracking=none")
        assert (done.code, done.err) == (0, "")
        assert shape(done.out) == shape(output)


def renamed(folder: Path) -> None:
    """What the page says had gone wrong."""
    table = pd.read_csv(folder / "northvale.csv", dtype=str, keep_default_na=False)
    table.loc[table["weeks_behind"] == "4", "weeks_behind"] = "four"
    table.rename(columns={"rent": "weekly_rent"}).to_csv(folder / "northvale.csv", index=False)
    table = pd.read_csv(folder / "hearth-homes.csv", dtype=str, keep_default_na=False)
    table.drop(columns="notice_6m").to_csv(folder / "hearth-homes.csv", index=False)


@pytest.mark.parametrize(
    ("place", "spoil"), [(4, renamed), (5, lambda folder: None)], ids=["tables", "settings"]
)
def test_errors_look_as_the_page_shows(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int, spoil: Callable[[Path], None]
) -> None:
    for file in example.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.chdir(tmp_path)
    spoil(tmp_path)
    command, shown = COMMANDS[place]
    done = typed(command)
    assert (done.code, done.out, done.err) == (1, "", shown)


def test_the_settings_that_the_page_names_are_settings(
    example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments.config import check_settings, compose

    monkeypatch.chdir(example)
    named = re.findall(r"^\| (`[^|]+`) \|", DOC, re.M)
    settings = [word for cell in named for word in re.findall(r"`([a-z_.=]+)`", cell) if "/" not in word]
    assert len(settings) > 7
    words = [word if "=" in word else f"{word}=1" for word in settings]
    words = [word.replace("cutoff=1", "cutoff=0.2").replace("rounds=1", "rounds=10") for word in words]
    check_settings(compose(["experiment=own", "data.agencies=agencies.yaml", *words[:-1]]))
    check_settings(compose(["experiment=own", "data.agencies=agencies.yaml", words[-1]]))
