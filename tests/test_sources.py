"""Where records come from: data.toml, files and databases in batches, and what a node says about its source."""

import os
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import CONTRACT as SMALL
from conftest import people, write_table
from hypothesis import given, settings
from hypothesis import strategies as st
from postgres import MISSING, Server, postgres, programs
from test_data import CANARY, FRACTIONS, KEY, refusal

from clients.folder import NodeError
from clients.node import open_node
from clients.records.data import PART_NAMES, DataError, Dataset, load, load_values, read_table
from clients.records.datacheck import band, check_source
from clients.records.datafile import read_data_file
from clients.records.sources import FileSource, Source, find_source, fingerprint
from clients.records.sql import cells_of
from experiments.benchmarks.data import measure
from models.contract import Contract, Group, Level, validate
from models.features import assignment, encode, split

# --- the law: whatever the batches, the result is the whole table's -------------------------------------

COLUMNS: dict[str, Any] = {
    "age": {"type": "number", "min": 0, "max": 100, "missing": "indicator"},
    "rent": {"type": "number", "min": 1, "max": 900, "log": True},
    "charge": {"type": "category", "levels": ["F", "M"], "missing": "level"},
    "band": {"type": "ordinal", "levels": ["low", "1.0", "high"], "missing": "indicator"},
    "known": {"type": "flag"},
    "visits": {"type": "number", "min": 0, "max": 9, "block": "care"},
}
UNITS: list[dict[str, Any]] = [
    {"kind": "person", "column": "id"},
    {"kind": "person", "column": "id", "rows": 3, "order_by": "month"},
    {"kind": "person", "column": "id", "rows": 2},
    {"kind": "person", "column": "id", "order_by": "rent"},
    {"kind": "row"},
]


def contract_of(unit: dict[str, Any], *, dealt: bool, strict: bool) -> Contract:
    groups: dict[str, Any] = {
        "sex": {"column": "sex", "levels": ["f", "m"], "other": not strict},
        "old": {"column": "age", "levels": ["young", "old"], "edges": [50], "other": not strict},
        "paid": {"column": "rent", "levels": {"usual": ["5", "7"]}, "other": True},
    }
    values = {
        "name": "law",
        "purpose": "test",
        "unit": unit,
        "kinds": ["police", "health"],
        "blocks": {"care": {"held_by": ["health"]}},
        "columns": COLUMNS,
        "groups": groups,
        "label": {"column": "y", "positive": ["1", "yes"], "horizon": "1 year", "held_by": ["health"]},
    }
    return Contract.from_dict(values | ({"split": {"column": "part"}} if dealt else {}))


SMALLEST = Contract.from_dict(
    {
        "name": "law",
        "purpose": "test",
        "unit": {"kind": "person", "column": "id"},
        "columns": {"age": {"type": "number", "min": 0, "max": 100}},
        "label": {"column": "y", "positive": ["1"], "horizon": "1 year"},
    }
)


CLEAN: dict[str, list[str]] = {
    "age": ["20", "50", "50.0", "-3", "101.5", "1e2", ""],
    "rent": ["5", "5.00", "7", "899.5", "2000"],
    "charge": ["F", "M", " F ", "X", "Y", ""],
    "band": ["low", "1", "1.0", "high", "other", ""],
    "known": ["0", "1", "1.0", "Yes", "no"],
    "visits": ["0", "3", "9"],
    "sex": ["f", "m"],
    "y": ["0", "1", "yes"],
    "month": ["2024-01", "2024-02-03", "2024-02", "2023-12-31 10:00"],
    "part": ["train", "tune", "test"],
}
DIRT: dict[str, list[str]] = {
    "age": ["old", "inf", "NAN"],
    "rent": ["", "-inf", "five", "NAN"],
    "known": ["", "maybe"],
    "visits": ["", "many"],
    "sex": ["", "?"],
    "y": ["", "?"],
    "month": ["", "3", "soon", "2024"],
    "part": ["", "dev"],
    "id": [""],
}


def drawn(seed: int) -> tuple[Contract, pd.DataFrame, str, int, int]:
    """(contract, table of texts, kind of agency, min_people, rows of a batch), some of them broken in some way."""
    rng = np.random.default_rng(seed)
    unit = UNITS[rng.choice([0, 1, 1, 2, 3, 4])]
    contract = contract_of(unit, dealt=rng.random() < 0.5, strict=rng.random() < 0.5)
    n = int(rng.choice([0, 1, 3, 8, 12, 16, 20, 24]))
    one_row_each = contract.unit.rows == 1 and contract.unit.order_by is None and rng.random() < 0.7
    ids = rng.permutation(n) if one_row_each else rng.integers(0, max(n // 2, 1), n)
    data = pd.DataFrame({"id": [f"{i}" if i % 5 else f"{i}.0" for i in ids]}, dtype=object)
    for name, cells in CLEAN.items():
        data[name] = pd.Series(rng.choice(cells, n), dtype=object)
    data["part"] = [PART_NAMES[i % 3] for i in ids]  # the same in all rows of a person, unless dirt comes
    if rng.random() < 0.5:
        data["month"] = data["month"].str.replace("-", "").str[:6]  # numbers, not days
    for name in rng.choice(sorted(DIRT), rng.choice([0, 0, 1, 2]), replace=False):
        chosen = rng.random(n) < rng.choice([0.05, 0.3, 1.0])
        data.loc[chosen, name] = rng.choice(DIRT[name], int(chosen.sum()))
    if rng.random() < 0.1:
        data = data.drop(columns=rng.choice(sorted(data)))
    kind = str(rng.choice(["police", "health", "health", "health"]))
    return contract, data, kind, int(rng.integers(0, 6)), int(rng.integers(1, n + 2))


def whole(contract: Contract, path: Path, kind: str, min_people: int) -> dict[str, Any]:
    """What `load` must give: all rows validated and encoded at once, by the models' own functions."""
    table = read_table(path, contract.needs(kind))
    problems = validate(contract, table, kind, min_people=min_people)
    if problems:
        return {"problems": [f"- {problem}" for problem in problems]}
    found = encode(contract, table, kind)
    part = split(found.ids, FRACTIONS, KEY) if found.part is None else found.part
    said = "" if found.part is None else assignment(found.ids, found.part, KEY)
    arrays = {
        f"{name} {what}": None if getattr(found, what) is None else getattr(found, what)[part == name]
        for name in PART_NAMES
        for what in ("x", "y", "present", "group")
    }
    return arrays | {"clipped": found.clipped, "unknown": found.unknown, "assignment": said}


def streamed(contract: Contract, source: Source, kind: str, min_people: int, rows: int) -> dict[str, Any]:
    try:
        found = load(contract, source, kind, fractions=FRACTIONS, key=KEY, min_people=min_people, rows=rows)
    except DataError as error:
        heading, *lines = str(error).splitlines()
        assert heading == f"{source.name} does not fit the contract law:"
        return {"problems": lines}
    return plain(found)


def plain(found: Dataset) -> dict[str, Any]:
    arrays = {
        f"{name} {what}": getattr(part, what)
        for name, part in found.parts.items()
        for what in ("x", "y", "present", "group")
    }
    return arrays | {"clipped": found.clipped, "unknown": found.unknown, "assignment": found.assignment}


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys(), (one.get("problems"), other.get("problems"))
    for name, value in one.items():
        if isinstance(value, np.ndarray):
            assert value.dtype == other[name].dtype, name
            np.testing.assert_array_equal(value, other[name], err_msg=name)
        else:
            assert value == other[name], name


def sources_of(data: pd.DataFrame, folder: Path) -> list[Source]:
    """One table of texts, in every kind of source."""
    data.to_csv(folder / "t.csv", index=False)
    data.to_parquet(folder / "t.parquet", row_group_size=7)
    with sqlite3.connect(folder / "t.db") as database:
        data.astype(object).to_sql("records", database, index=False)
    database.close()
    (folder / "data.toml").write_text('[source]\nkind = "sql"\nurl = "sqlite:///t.db"\ntable = "records"\n')
    return [FileSource(folder / "t.csv"), FileSource(folder / "t.parquet"), find_source(folder, None)]


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32))
def test_batches_change_nothing(seed: int) -> None:
    contract, data, kind, min_people, rows = drawn(seed)
    with tempfile.TemporaryDirectory() as folder:
        sources = sources_of(data, Path(folder))
        expected = whole(contract, Path(folder) / "t.csv", kind, min_people)
        for source in sources:
            assert_same(streamed(contract, source, kind, min_people, rows), expected)


def test_the_law_meets_good_tables_and_every_problem(tmp_path: Path) -> None:
    """A control: what is drawn is neither always broken nor always fine."""
    outcomes: list[dict[str, Any]] = []
    for seed in range(250):
        contract, data, kind, min_people, _ = drawn(seed)
        data.to_csv(tmp_path / "t.csv", index=False)
        outcomes.append(whole(contract, tmp_path / "t.csv", kind, min_people))
    said = " ".join(line for outcome in outcomes for line in outcome.get("problems", ()))
    assert sum("problems" not in outcome for outcome in outcomes) > 30
    for rule in (
        "is not in the table",
        "has no value in any row",
        "has missing values",
        "must be a number",
        "must be a finite number",
        "must be 0 or 1",
        "must be numbers, or dates",
        "has several rows for one person",
        "has one class only",
        "has values outside the levels",
        "must be train, tune or test",
        "must be the same in every row of a person",
        "fewer people than",
        "the table has no rows",
    ):
        assert rule in said, rule


@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
def test_typed_columns_in_batches(tmp_path: Path, rows: int) -> None:
    """Numbers, days, flags and ids that are no text, in Parquet; several rows a person, anywhere in the file."""
    rng = np.random.default_rng(3)
    n = 300
    data = pd.DataFrame(
        {
            "id": rng.integers(0, 90, n) + 2**53,
            "age": pd.array(rng.integers(0, 120, n), dtype="Int64"),
            "rent": rng.uniform(1, 1000, n),
            "charge": pd.Categorical(rng.choice(["F", "M", "X"], n)),
            "band": rng.choice(["low", "high"], n),
            "known": rng.random(n) < 0.5,
            "visits": rng.integers(0, 9, n),
            "sex": rng.choice(["f", "m"], n),
            "y": rng.random(n) < 0.5,
            "month": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 40, n), unit="D"),
        }
    )
    data["y"] = data["y"].astype(int)
    data.loc[5, "age"] = pd.NA
    data.to_parquet(tmp_path / "t.parquet", row_group_size=50)
    contract = contract_of(UNITS[1], dealt=False, strict=False)
    expected = whole(contract, tmp_path / "t.parquet", "health", 0)
    assert "problems" not in expected
    assert_same(streamed(contract, FileSource(tmp_path / "t.parquet"), "health", 0, rows), expected)


@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_one_number_per_person_in_batches(tmp_path: Path, rows: int) -> None:
    table = [{"id": f"p{i % 20}", "month": (i * 7) % 60, "debt": i if i % 9 else ""} for i in range(60)]
    write_table(tmp_path / "t.csv", table)
    contract = contract_of(UNITS[1], dealt=False, strict=False)
    newest = {row["id"]: row for row in sorted(table, key=lambda row: int(str(row["month"])))}
    first = dict.fromkeys(str(row["id"]) for row in table)
    expected = [float(newest[who]["debt"] or "nan") for who in first]
    found = load_values(contract, tmp_path / "t.csv", "debt", "health", min_people=20, rows=rows)
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(DataError, match="fewer people than the 21 that are required"):
        load_values(contract, tmp_path / "t.csv", "debt", "health", min_people=21, rows=rows)


def test_a_contract_with_very_many_levels(tmp_path: Path) -> None:
    """More levels than a small code has room for."""
    areas = tuple(f"area {i}" for i in range(40_000))
    group = Group("end", "area", (Level("last", areas[-1:]), Level("rest", areas[:-1])))
    contract = replace(SMALLEST, groups=(group,))
    rows = [{"id": i, "age": i, "area": areas[-1 - 39_998 * (i % 2)], "y": i % 2} for i in range(4)]
    write_table(tmp_path / "t.csv", rows)  # type: ignore[arg-type]
    everybody = {"train": 1.0, "tune": 0.0, "test": 0.0}
    found = load(contract, tmp_path / "t.csv", None, fractions=everybody, key=KEY, min_people=0)
    assert found.parts["train"].group.tolist() == [0, 1, 0, 1]


# --- data.toml ------------------------------------------------------------------------------------------

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "data-sources.md").read_text()
FILE = '[source]\nkind = "csv"\npath = "people.csv"\n'
SQL = '[source]\nkind = "sql"\nurl = "{url}"\ntable = "people"\n'
LOCAL = "postgresql+psycopg://reader@localhost/people"


def settings_of(folder: Path, text: str) -> Any:
    (folder / "data.toml").write_text(text)
    return read_data_file(folder / "data.toml")


def test_a_whole_data_toml(tmp_path: Path) -> None:
    text = f"""
as_of = 2026-11-01
as_of_column = "recorded"
reload_minutes = 5
[source]
kind = "sql"
url = "{LOCAL}"
schema = "Wohnen"
table = "people"
password_env = "PEOPLE"
[columns]
age = "AGE_YRS"
"""
    found = settings_of(tmp_path, text)
    assert (found.source.schema_name, found.columns, found.reload_minutes) == (
        "Wohnen",
        {"age": "AGE_YRS"},
        5,
    )
    assert found.as_of.isoformat() == "2026-11-01"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "source is missing"),
        ("source = 'people.csv'", "source must be a group of settings: [source], then kind"),
        (FILE + "sheet = 1\n", "source.sheet is not a known setting"),
        ("asof = 2026-11-01\n" + FILE, "asof is not a known setting"),
        ('[source]\nkind = "excel"\npath = "t.xlsx"\n', "source.kind should be 'csv', 'parquet' or 'sql'"),
        ('[source]\nkind = "csv"\n', "source of kind csv needs path, the file's name"),
        (FILE + f'url = "{LOCAL}"\n', "source of kind csv has no url: remove it"),
        ('[source]\nkind = "sql"\ntable = "people"\n', "source of kind sql needs url"),
        (SQL.format(url=LOCAL) + 'path = "x"\n', "source of kind sql has no path"),
        (SQL.format(url=LOCAL) + 'query = "SELECT 1"\n', "source of kind sql needs table or query, one of"),
        (
            '[source]\nkind = "sql"\nurl = "sqlite:///t.db"\n',
            "source of kind sql needs table or query, one of",
        ),
        (
            f'[source]\nkind = "sql"\nurl = "{LOCAL}"\nquery = "SELECT 1"\nschema = "a"\n',
            "source has a schema, which belongs to a table",
        ),
        (
            SQL.format(url=LOCAL) + 'password_env = "A"\npassword_file = "b"\n',
            "source has password_env and password_file: keep one of the two",
        ),
        (
            SQL.format(url="sqlite:///t.db") + 'password_env = "A"\n',
            "source is an SQLite file, which has no password",
        ),
        (
            f'[source]\nkind = "sql"\nurl = "{LOCAL}"\nquery = "DELETE FROM people"\n',
            "source.query must be one SELECT",
        ),
        (
            f'[source]\nkind = "sql"\nurl = "{LOCAL}"\nquery = "SELECT 1; DELETE FROM people"\n',
            "source.query must be one SELECT, without a ; in it",
        ),
        ("as_of = 2026-11-01\n" + FILE, "as_of and as_of_column belong together"),
        ("as_of = '2026-11-01'\nas_of_column = 'd'\n" + FILE, "as_of must be a day without quotes"),
        ("as_of = 2026-11-01T10:00:00\nas_of_column = 'd'\n" + FILE, "as_of must be a day without quotes"),
        ("reload_minutes = 0\n" + FILE, "reload_minutes should be greater than or equal to 1, got 0"),
        ("[source", "data.toml is not TOML: "),
    ],
)
def test_a_wrong_data_toml_gets_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    said = refusal(lambda: settings_of(tmp_path, text))
    assert said.startswith(sentence if sentence.startswith("data.toml") else f"data.toml: {sentence}")
    assert "\n" not in said


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        (f"postgresql+psycopg://reader:{CANARY}@localhost/people", "must not hold a password: take it out"),
        (f"postgresql+psycopg://reader@localhost/people?password={CANARY}", "must not hold a password"),
        (f"mysql://reader@localhost/{CANARY}", "must be postgresql+psycopg://USER@HOST/DATABASE or sqlite"),
        (f"postgresql+psycopg2://reader@localhost/{CANARY}", "must be postgresql+psycopg://USER@HOST"),
        (CANARY, "must be postgresql+psycopg://USER@HOST/DATABASE or sqlite"),
        (f"postgresql://a:{CANARY}@localhost:port/people", "must be postgresql+psycopg://USER@HOST"),
        ("postgresql://reader@localhost/", "must name the database after the last /"),
        ("sqlite://", "must name the database after the last /"),
        ("sqlite:///people.db?mode=rwc", "of an SQLite file must be sqlite:///FILE alone"),
        ("postgresql://reader@/people", "must name the host; a socket of this machine is ?host="),
        ("postgresql://reader@localhost/people?options=-c", "has the option options; possible are "),
        (
            "postgresql://reader@db.example/people",
            "names another machine, and nothing crosses a network in the",
        ),
        ("postgresql://reader@db.example/people?sslmode=prefer", "names another machine"),
        ("postgresql://reader@localhost/people?host=10.0.0.5", "names another machine"),
        ("postgresql://reader@/people?host=127.0.0.1,10.0.0.5", "names another machine"),
    ],
)
def test_an_address_that_is_refused_is_not_quoted(tmp_path: Path, url: str, rule: str) -> None:
    said = refusal(lambda: settings_of(tmp_path, SQL.format(url=url)))
    assert said.startswith(f"data.toml: source.url {rule}")
    assert "reader" not in said


@pytest.mark.parametrize(
    "url",
    [
        LOCAL,
        "postgresql://reader@[::1]:5433/people",
        "postgresql://reader@/people?host=/var/run/postgresql",
        "postgresql://reader@db.example/people?sslmode=verify-full&sslrootcert=/etc/ssl/ca.pem",
        "sqlite:////srv/people.db",
    ],
)
def test_an_address_that_is_taken(tmp_path: Path, url: str) -> None:
    assert settings_of(tmp_path, SQL.format(url=url)).source.url == url
    assert "reader" not in repr(settings_of(tmp_path, SQL.format(url=url)))


@pytest.mark.parametrize("text", re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL))
def test_the_examples_of_the_page_are_taken(tmp_path: Path, text: str) -> None:
    assert settings_of(tmp_path, text).source.kind in ("csv", "sql")


# --- the secret -----------------------------------------------------------------------------------------


def test_a_secret_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PEOPLE", raising=False)
    cases = {
        'password_env = "PEOPLE"': "source.password_env: the variable PEOPLE is not set where the node runs",
        'password_file = "none"': "is missing, or no text file that this user may read",
        'password_file = "open"': f"must be for this user alone: chmod 600 {tmp_path / 'open'}",
        'password_file = "empty"': "must hold the password in its first line",
    }
    for name, mode, content in (("open", 0o640, CANARY), ("empty", 0o600, "\n")):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(mode)
    for line, sentence in cases.items():
        settings_of(tmp_path, SQL.format(url=LOCAL) + line + "\n")
        source = find_source(tmp_path, None)
        said = refusal(lambda source=source: list(source.batches(["id"])))
        assert said.startswith("data.toml: source.password")
        assert said.endswith(sentence)


# --- which columns and which rows -----------------------------------------------------------------------

DATED = """who;AGE_YRS;charge;sex;y;recorded
1;20;F;f;0;2026-10-31
2;30;M;m;1;2026-11-01 23:59
3;40;F;f;1;2026-11-02
4;50;M;m;0;
5;60;F;f;1;2026-01-01
"""
MAPPED = '\n[columns]\nid = "who"\nage = "AGE_YRS"\n'
AS_OF = 'as_of = 2026-11-01\nas_of_column = "recorded"\n'


def dated(folder: Path, kind: str, rows: str = DATED) -> str:
    """`rows` as a source of that kind; what data.toml says of it."""
    header, *lines = [line.split(";") for line in rows.splitlines()]
    data = pd.DataFrame(lines, columns=header).astype({"AGE_YRS": float})
    if kind == "sql":
        with sqlite3.connect(folder / "t.db") as database:
            data.replace("", None).to_sql("People", database, index=False)
        database.close()
        return '[source]\nkind = "sql"\nurl = "sqlite:///t.db"\ntable = "People"\n'
    if kind == "csv":
        data.to_csv(folder / "t.data", index=False)
    else:
        data.assign(recorded=pd.to_datetime(data["recorded"], format="mixed")).to_parquet(folder / "t.data")
    return f'[source]\nkind = "{kind}"\npath = "t.data"\n'


def ages(contract: Contract, source: Source) -> list[float]:
    return load_values(contract, source, "age", None, min_people=0).tolist()


@pytest.mark.parametrize("kind", ["csv", "parquet", "sql"])
def test_columns_are_mapped_and_later_rows_are_not_read(tmp_path: Path, kind: str) -> None:
    source = dated(tmp_path, kind)
    settings_of(tmp_path, source + MAPPED)
    assert ages(SMALLEST, find_source(tmp_path, None)) == [20, 30, 40, 50, 60]
    settings_of(tmp_path, AS_OF + source + MAPPED)
    assert ages(SMALLEST, find_source(tmp_path, None)) == [20, 30, 60]


@pytest.mark.parametrize("kind", ["csv", "parquet", "sql"])
def test_a_mapping_that_finds_nothing(tmp_path: Path, kind: str) -> None:
    source = dated(tmp_path, kind)
    settings_of(tmp_path, source + '[columns]\nid = "who"\nage = "Age"\n')
    said = refusal(lambda: ages(SMALLEST, find_source(tmp_path, None)))
    assert said.endswith("has no column 'Age', which data.toml names under columns.age")
    settings_of(tmp_path, AS_OF.replace("recorded", "seen") + source + MAPPED)
    said = refusal(lambda: ages(SMALLEST, find_source(tmp_path, None)))
    assert said.endswith("has no column 'seen', which data.toml names as as_of_column")
    settings_of(tmp_path, source)
    said = refusal(lambda: ages(SMALLEST, find_source(tmp_path, None)))
    assert "- column 'id' is not in the table" in said


@pytest.mark.parametrize("kind", ["csv", "sql"])
def test_days_that_are_written_otherwise_are_refused(tmp_path: Path, kind: str) -> None:
    rows = DATED.replace("2026-01-01", f"01/01/2026 {CANARY}")
    settings_of(tmp_path, AS_OF + dated(tmp_path, kind, rows) + MAPPED)
    said = refusal(lambda: ages(SMALLEST, find_source(tmp_path, None)))
    assert said.endswith("column 'recorded' must hold days, as 2026-11-01, because of as_of")


def test_a_node_has_one_source(tmp_path: Path) -> None:
    assert find_source(tmp_path, "people.csv") == FileSource(tmp_path / "people.csv")
    assert "data.toml is missing: it says where the records are" in refusal(
        lambda: find_source(tmp_path, None)
    )
    settings_of(tmp_path, FILE)
    assert "remove one of the two" in refusal(lambda: find_source(tmp_path, "people.csv"))
    found = find_source(tmp_path, None)
    assert (found.files, found.reload_minutes) == ((tmp_path / "people.csv", tmp_path / "data.toml"), None)


# --- SQLite ---------------------------------------------------------------------------------------------


def sqlite_source(folder: Path, what: str = 'table = "people"') -> Source:
    (folder / "data.toml").write_text(f'[source]\nkind = "sql"\nurl = "sqlite:///t.db"\n{what}\n')
    return find_source(folder, None)


def read(source: Source, *columns: str, rows: int = 65_536) -> dict[str, list[Any]]:
    batches = list(source.batches(columns, rows))
    return {name: [cell for batch in batches for cell in batch[name].to_pylist()] for name in batches[0]}


def test_a_query_with_quotes_colons_and_percents(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "t.db") as database:
        database.execute('CREATE TABLE people (id, "a ""b"" :c" TEXT)')
        database.executemany("INSERT INTO people VALUES (?, ?)", [(1, "12:30 100%"), (2, "x:y"), (3, None)])
    database.close()
    query = "query = '''WITH p AS (SELECT * FROM people) SELECT *, '10:30 %s :x' AS t FROM p WHERE id < 3;'''"
    source = sqlite_source(tmp_path, query)
    found = read(source, "id", 'a "b" :c', "t", "none", rows=1)
    assert found == {"id": [1, 2], 'a "b" :c': ["12:30 100%", "x:y"], "t": ["10:30 %s :x"] * 2}


@pytest.mark.parametrize("query", ["SELECT * FROM nowhere", f"SELECT {CANARY} FROM people", "SELECT 1 +"])
def test_what_a_database_says_ends_here(tmp_path: Path, query: str) -> None:
    sqlite3.connect(tmp_path / "t.db").execute("CREATE TABLE people (id)").connection.close()
    said = refusal(lambda: read(sqlite_source(tmp_path, f'query = "{query}"'), "id"))
    assert said.startswith(
        "data.toml: the database did not answer for the query of data.toml: check that it exists"
    )


def test_cells_that_are_no_single_values(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "t.db") as database:
        database.execute("CREATE TABLE people (id)")
        database.execute("INSERT INTO people VALUES (?)", (CANARY.encode(),))
    database.close()
    said = refusal(lambda: read(sqlite_source(tmp_path), "id"))
    assert said == "the table people column 'id' must hold single values"


def test_text_in_a_database_that_is_no_text(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "t.db") as database:
        database.execute("CREATE TABLE people (id)")
        database.execute(f"INSERT INTO people VALUES (CAST(x'{CANARY.encode().hex()}ff' AS TEXT))")
    database.close()
    assert "did not answer for the table people" in refusal(lambda: read(sqlite_source(tmp_path), "id"))


def test_an_sqlite_file_that_is_none(tmp_path: Path) -> None:
    assert "t.db is missing or not a file: source.url" in refusal(lambda: read(sqlite_source(tmp_path), "id"))
    assert not (tmp_path / "t.db").exists()
    (tmp_path / "t.db").write_text(CANARY * 200)
    said = refusal(lambda: read(sqlite_source(tmp_path), "id"))
    assert said.startswith("data.toml: the database ")


def test_an_sqlite_connection_cannot_write(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "t.db").execute("CREATE TABLE people (id)").connection.close()
    before = (tmp_path / "t.db").read_bytes()
    source = sqlite_source(tmp_path)
    with source._connected() as connection:  # type: ignore[attr-defined]
        for statement in ("INSERT INTO people VALUES (1)", "DROP TABLE people", "CREATE TABLE other (id)"):
            with pytest.raises(Exception, match="readonly"):
                connection.exec_driver_sql(statement)
    assert (tmp_path / "t.db").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name != "data.toml"] == ["t.db"]


def test_a_database_itself_leaves_out_what_is_later(tmp_path: Path) -> None:
    """A cell that cannot be read is no trouble where its row is not asked for."""
    with sqlite3.connect(tmp_path / "t.db") as database:
        database.execute("CREATE TABLE people (id, recorded)")
        rows = [(1, "2026-11-01"), (CANARY.encode(), "2026-11-02")]
        database.executemany("INSERT INTO people VALUES (?, ?)", rows)
    database.close()
    assert "must hold single values" in refusal(lambda: read(sqlite_source(tmp_path), "id"))
    (tmp_path / "data.toml").write_text(AS_OF + (tmp_path / "data.toml").read_text())
    assert read(find_source(tmp_path, None), "id") == {"id": [1]}


def test_what_drivers_give_is_what_files_hold() -> None:
    import datetime
    import decimal
    import uuid

    when = datetime.datetime(2024, 3, 31, 12, 0)
    mixed = [None, "a", 1, 2.5, True, decimal.Decimal("1E+3"), when, when.date(), uuid.UUID(int=7)]
    assert cells_of(mixed).to_pylist() == [
        *(None, "a", "1", "2.5", "true", "1000", "2024-03-31 12:00:00", "2024-03-31"),
        "00000000-0000-0000-0000-000000000007",
    ]
    assert cells_of([1, None]).to_pylist() == [1, None]
    assert cells_of([2**70, 1]).to_pylist() == [str(2**70), "1"]
    for value in ([1], b"a", {"a": 1}):
        with pytest.raises(TypeError):
            cells_of([value])


# --- PostgreSQL -----------------------------------------------------------------------------------------

READERS_SECRET = "s3:cr@t/%"
TABLES = f"""
CREATE ROLE reader LOGIN PASSWORD '{READERS_SECRET}';
CREATE ROLE writer LOGIN PASSWORD '{READERS_SECRET}';
CREATE SCHEMA "Wohnen";
CREATE TABLE "Wohnen".people ("Who" bigint, age numeric(5,1), known boolean, sex text, y int,
  recorded date, seen timestamptz, note text);
INSERT INTO "Wohnen".people SELECT i, i % 90 + 0.5, i % 3 = 0, CASE WHEN i % 2 = 0 THEN 'f' ELSE 'm' END, i % 2,
  DATE '2026-10-01' + (i % 60)::int, TIMESTAMPTZ '2026-10-01 12:00+00' + (i % 60) * INTERVAL '1 day', '{CANARY}'
  FROM generate_series(1, 3000) AS i;
CREATE TABLE marks (n int);
CREATE FUNCTION mark() RETURNS int AS 'INSERT INTO public.marks VALUES (1) RETURNING n' LANGUAGE sql;
CREATE FUNCTION open_up() RETURNS text AS
  $$BEGIN SET TRANSACTION READ WRITE; INSERT INTO public.marks VALUES (1); RETURN 'x'; END$$ LANGUAGE plpgsql;
GRANT USAGE ON SCHEMA "Wohnen" TO reader, writer;
GRANT SELECT ("Who", age, known, sex, y, recorded, seen) ON "Wohnen".people TO reader;
GRANT ALL ON ALL TABLES IN SCHEMA "Wohnen", public TO writer;
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgres() as running:
        running.run(TABLES)
        yield running


PEOPLE = 'schema = "Wohnen"\ntable = "people"'


def pg_source(server: Server, folder: Path, what: str, who: str = "reader", top: str = "") -> Source:
    url = f"postgresql+psycopg://{who}@127.0.0.1:{server.port}/postgres"
    (folder / "secret").write_text(READERS_SECRET + "\n")
    (folder / "secret").chmod(0o400)
    text = f'{top}[source]\nkind = "sql"\nurl = "{url}"\npassword_file = "secret"\n{what}\n'
    mapping = '[columns]\nid = "Who"\n' if what == PEOPLE else ""
    (folder / "data.toml").write_text(text + mapping)
    return find_source(folder, None)


PG_CONTRACT = Contract.from_dict(
    SMALLEST.to_dict()
    | {
        "columns": [
            {"name": "age", "type": "number", "min": 0, "max": 100},
            {"name": "known", "type": "flag"},
        ]
    }
)


@pytest.mark.parametrize("rows", [100, 65_536])
def test_postgres_is_read_as_its_csv_would_be(server: Server, tmp_path: Path, rows: int) -> None:
    """The reader may not select `note`: only what is needed is asked for."""
    source = pg_source(server, tmp_path, PEOPLE)
    records = server.run('SELECT "Who", age, known, y FROM "Wohnen".people')
    pd.DataFrame(records, columns=["id", "age", "known", "y"]).to_csv(tmp_path / "t.csv", index=False)
    expected = load(PG_CONTRACT, tmp_path / "t.csv", None, fractions=FRACTIONS, key=KEY, min_people=3000)
    found = load(PG_CONTRACT, source, None, fractions=FRACTIONS, key=KEY, min_people=3000, rows=rows)
    assert_same(plain(found), plain(expected))


def test_the_column_that_nobody_needs_cannot_be_selected(server: Server, tmp_path: Path) -> None:
    """A control of the test above."""
    source = pg_source(server, tmp_path, PEOPLE)
    assert "that the login may SELECT from it" in refusal(lambda: read(source, "note"))


@pytest.mark.parametrize(("column", "days"), [("recorded", 32), ("seen", 32)])
def test_postgres_leaves_out_what_is_later(server: Server, tmp_path: Path, column: str, days: int) -> None:
    top = AS_OF.replace("recorded", column)
    source = pg_source(server, tmp_path, PEOPLE, top=top)
    dates = [cell[:10] for cell in map(str, read(source, column)[column])]
    assert len(dates) == 3000 * days // 60
    assert max(dates) == "2026-11-01"


@pytest.mark.parametrize(
    "query",
    [
        "SELECT mark() AS id FROM marks RIGHT JOIN (SELECT 1) AS one ON true",
        "WITH made AS (INSERT INTO marks VALUES (1) RETURNING n) SELECT n AS id FROM made",
        "SELECT open_up() AS id",
        "SELECT set_config('transaction_read_only', 'off', true) AS id, mark() AS x",
        "SELECT 1 AS id) AS source; COMMIT; INSERT INTO marks VALUES (1) --",
        "SELECT id INTO made FROM (SELECT 1 AS id) AS one",
        "SELECT 1 AS id FROM marks FOR UPDATE",
    ],
)
def test_a_query_cannot_write(server: Server, tmp_path: Path, query: str) -> None:
    """Not even where the login may: the transaction is read-only, so nothing has changed."""
    before = server.run("SELECT count(*) FROM marks")
    said = refusal(lambda: read(pg_source(server, tmp_path, f'query = "{query}"', "writer"), "id", "x"))
    assert "that it does nothing but read" in said or "must be one SELECT" in said
    assert server.run("SELECT count(*) FROM marks") == before == [(0,)]
    assert server.run("SELECT to_regclass('made') IS NULL") == [(True,)]


def test_a_postgres_connection_cannot_write(server: Server, tmp_path: Path) -> None:
    source = pg_source(server, tmp_path, PEOPLE, "writer")
    with source._connected() as connection:  # type: ignore[attr-defined]
        assert connection.exec_driver_sql("SHOW transaction_isolation").scalar() == "repeatable read"
        with pytest.raises(Exception, match="read-only transaction"):
            connection.exec_driver_sql("INSERT INTO marks VALUES (1)")
    assert server.run("SELECT count(*) FROM marks") == [(0,)]


def test_the_writer_could_write(server: Server) -> None:
    """A control of the test above, rolled back."""
    assert server.run("BEGIN; SET ROLE writer; SELECT mark(); ROLLBACK") == [(1,)]


def test_all_batches_are_of_one_snapshot(server: Server, tmp_path: Path) -> None:
    """Rows that come while a source is read are not in it."""
    server.run(
        "CREATE TABLE growing AS SELECT generate_series(1, 500) AS id; GRANT SELECT ON growing TO reader"
    )
    source = pg_source(server, tmp_path, 'query = "SELECT a.id FROM growing AS a ORDER BY 1"')
    batches = source.batches(["id"], 100)
    assert len(next(batches)["id"]) == 0
    server.run("INSERT INTO growing SELECT generate_series(501, 1000)")
    assert sum(len(batch["id"]) for batch in batches) == 500


def test_a_login_that_fails_says_nothing_secret(server: Server, tmp_path: Path) -> None:
    pg_source(server, tmp_path, PEOPLE)
    (tmp_path / "secret").chmod(0o600)
    (tmp_path / "secret").write_text(CANARY)
    said = refusal(lambda: read(find_source(tmp_path, None), "id"))
    assert said.startswith(
        "data.toml: the database cannot be opened: check the address, the login and its secret"
    )
    text = (tmp_path / "data.toml").read_text().replace(f":{server.port}/", ":1/")
    (tmp_path / "data.toml").write_text(text)
    assert "the database cannot be opened" in refusal(lambda: read(find_source(tmp_path, None), "id"))


def test_a_server_that_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathlib.Path.glob", lambda *_: iter(()))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("FEDRISK_REQUIRE_SERVERS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install postgresql"):
        programs()
    monkeypatch.setenv("FEDRISK_REQUIRE_SERVERS", "1")
    with pytest.raises(pytest.fail.Exception) as failed:
        programs()
    assert str(failed.value) == MISSING


# --- has it changed? ------------------------------------------------------------------------------------


def test_a_fingerprint_tells_another_file_and_another_data_toml(tmp_path: Path) -> None:
    settings_of(tmp_path, FILE)
    path = tmp_path / "people.csv"
    seen = []

    def now() -> str:
        seen.append(fingerprint(find_source(tmp_path, None)))
        return seen[-1]

    assert now() == now()
    path.write_text("id\n1\n")
    assert now() == now() != seen[0]
    os.utime(path, ns=(1, 1))
    now()
    copy = tmp_path / "copy.csv"
    copy.write_text("id\n2\n")
    os.utime(copy, ns=(1, 1))
    copy.replace(path)  # of the same size and time
    now()
    settings_of(tmp_path, FILE + '[columns]\nid = "who"\n')
    now()
    assert len(set(seen)) == 5


def test_no_file_tells_of_a_database(tmp_path: Path) -> None:
    source = sqlite_source(tmp_path)
    assert (fingerprint(source), source.reload_minutes) == ("", 60)


# --- what a node says about its source ------------------------------------------------------------------


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A node's folder with a data.toml, and 300 people."""
    (tmp_path / "node.toml").write_text(
        'name = "north"\nkind = "police"\ncontract = "contract.yaml"\npublic_size = 300\n'
    )
    (tmp_path / "policy.toml").write_text(
        'purposes = ["early-warning"]\nmin_people = 100\nsimulation = true\n'
    )
    (tmp_path / "contract.yaml").write_text(yaml.safe_dump(SMALL, sort_keys=False))
    (tmp_path / "split.key").write_bytes(b"k" * 32)
    (tmp_path / "split.key").chmod(0o600)
    write_table(tmp_path / "people.csv", people(0), ("visits",))
    settings_of(tmp_path, FILE)
    return tmp_path


def test_a_source_that_fits(node: Path) -> None:
    os.utime(node / "people.csv", (1.79e9, 1.79e9))
    checked = check_source(node)
    assert checked.problems == ()
    assert checked.facts == (
        "people.csv fits the contract small",
        "people: 100-499",
        "data currency: no as_of; the file was last written on 2026-09-21",
    )


def test_a_source_that_does_not_fit(node: Path) -> None:
    rows = [row | {"age": CANARY, "known": CANARY} for row in people(0, 60)]
    write_table(node / "people.csv", rows, ("sex", "visits"))
    checked = check_source(node)
    assert checked.facts == ()
    assert checked.problems == tuple(
        f"people.csv does not fit the contract small: {problem}"
        for problem in (
            "column 'sex' is not in the table",
            "column 'age' must be a number",
            "column 'known' must be 0 or 1, true or false, yes or no",
            "the table has fewer people than the 100 that are required",
        )
    )
    (node / "people.csv").unlink()
    (problem,) = check_source(node).problems
    assert "people.csv is missing or not a file" in problem
    (node / "data.toml").write_text("[source]\nkind = 3\nsheet = 1\n")
    assert [problem.split(" ")[1] for problem in check_source(node).problems] == [
        "source.kind",
        "source.sheet",
    ]


def test_a_database_and_an_as_of_say_how_current_they_are(node: Path) -> None:
    table = pd.DataFrame(people(0, 60)).assign(seen="2026-10-01")
    with sqlite3.connect(node / "t.db") as database:
        table.to_sql("people", database, index=False)
    database.close()
    (node / "policy.toml").write_text('purposes = ["early-warning"]\nmin_people = 1\nsimulation = true\n')
    sqlite_source(node)
    assert check_source(node).facts == (
        "the table people fits the contract small",
        "people: 50-99",
        "data currency: no as_of; read from the database again after 60 minutes",
    )
    text = (node / "data.toml").read_text()
    (node / "data.toml").write_text('as_of = 2026-11-01\nas_of_column = "seen"\n' + text)
    assert check_source(node).facts[-1] == "data currency: as of 2026-11-01, by the column 'seen'"


@pytest.mark.parametrize(
    ("people", "name"),
    [
        *(
            (0, "under 50"),
            (49, "under 50"),
            (50, "50-99"),
            (99, "50-99"),
            (100, "100-499"),
            (499, "100-499"),
        ),
        *(
            (500, "500-1,999"),
            (2000, "2,000-9,999"),
            (99_999, "10,000-99,999"),
            (100_000, "100,000 and more"),
        ),
    ],
)
def test_people_are_told_as_a_band(people: int, name: str) -> None:
    assert band(people) == name


def test_a_node_opens_with_its_data_toml(node: Path) -> None:
    open_node.cache_clear()
    opened = open_node(node)
    try:
        opened.check_data(0.2, 0.2)
        assert sum(len(opened._dataset(0.2, 0.2).part(name)[0]) for name in PART_NAMES) == 300
        opened.check_values("age")
    finally:
        opened.close()
        open_node.cache_clear()


def test_a_node_without_a_usable_source_does_not_open(node: Path) -> None:
    open_node.cache_clear()
    (node / "data.toml").write_text(FILE + "sheet = 1\n")
    with pytest.raises(NodeError, match=r"data.toml: source.sheet is not a known setting"):
        open_node(node)


# --- memory ---------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("kind", ["csv", "parquet", "sqlite"])
def test_memory_grows_with_people_and_not_with_cells(tmp_path: Path, kind: str) -> None:
    """Of as many people, four times the rows take next to nothing; more people take their features and little more."""

    def peak(rows: int, people: int) -> float:
        return measure(tmp_path, kind, rows, people)["peak"]

    few = peak(100_000, 100_000)
    assert peak(400_000, 100_000) - few < 50e6
    assert peak(400_000, 400_000) - few < 300_000 * (4 * 22 + 300)
