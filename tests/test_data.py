"""Reading an agency's file: exact values in, and errors that never show a cell."""

import logging
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clients.records.data import DataError, load, read_table
from models.contract import Contract
from models.features import encode

CANARY = "CANARY-7731"
KEY = b"a secret that only the node knows"
FRACTIONS = {"train": 0.6, "tune": 0.2, "test": 0.2}

VALUES: dict[str, Any] = {
    "name": "small",
    "purpose": "test",
    "unit": {"kind": "person", "column": "id"},
    "kinds": ["police", "council"],
    "columns": {
        "age": {"type": "number", "min": 0, "max": 100},
        "charge": {"type": "category", "levels": ["F", "M"], "missing": "level"},
    },
    "groups": {"sex": {"column": "sex", "levels": ["f", "m"]}},
    "label": {"column": "y", "positive": ["1"], "horizon": "1 year", "held_by": ["police"]},
}
CONTRACT = Contract.from_dict(VALUES)


def frame(n: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "id": [f"{i:05d}" for i in range(n)],
            "age": rng.normal(50, 30, n),
            "charge": rng.choice(["F", "M", "X", ""], n),
            "sex": rng.choice(["f", "m", "?"], n),
            "y": np.arange(n) % 2,
            "secret_name": [CANARY] * n,
        }
    )


def written(folder: Path, text: str | bytes, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def loaded(
    path: Path, kind: str | None = "police", contract: Contract = CONTRACT, min_people: int = 0
) -> Any:
    return load(contract, path, kind, fractions=FRACTIONS, key=KEY, min_people=min_people)


def refusal(call: Any) -> str:
    """The sentence of a `DataError`, after a search for the canary in everything that it drags along."""
    with pytest.raises(DataError) as refused:
        call()
    error: BaseException | None = refused.value
    said = "".join(traceback.format_exception(refused.value))
    while error is not None:
        said += str(error) + repr(error)
        error = error.__cause__ or error.__context__
    code = Path(__file__).read_text().splitlines()
    assert not [
        line for line in said.splitlines() if CANARY in line and line.strip() not in map(str.strip, code)
    ]
    return str(refused.value)


# --- reading ---------------------------------------------------------------------------------------------


def test_ids_keep_their_zeros_and_numbers_their_bits(tmp_path: Path) -> None:
    numbers = [0.1, 1 / 3, 1e-300, 123456789.123456789, -0.0, 5e-324, 17.0]
    path = tmp_path / "t.csv"
    pd.DataFrame({"id": [f"00{i}" for i in range(7)], "v": numbers}).to_csv(path, index=False)
    for table in (read_table(path), read_table(path, {"id": "text", "v": "number"})):
        assert table["id"].tolist() == [f"00{i}" for i in range(7)]
        assert table["v"].dtype == np.float64
        assert table["v"].tolist() == numbers


def test_a_plain_reading_guesses_numbers_but_never_ids(tmp_path: Path) -> None:
    text = "a,b,c,d,e\n1,007,12345678901234567890,x,\n-2.5e3,1,1,1,3\n"
    kinds = {name: values.dtype.kind for name, values in read_table(written(tmp_path, text)).items()}
    assert kinds == {"a": "f", "b": "O", "c": "O", "d": "O", "e": "f"}


def test_only_the_columns_that_are_asked_for_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path, "a,b,c\n1,2,CANARY-7731\n")
    table = read_table(path, {"b": "text", "a": "number", "not there": "text"})
    assert {name: values.tolist() for name, values in table.items()} == {"b": ["2"], "a": [1.0]}
    assert table["a"].dtype == np.float64
    assert table["b"].dtype == object
    assert read_table(path, {}) == {}


@pytest.mark.parametrize("cell", ["", " ", "NA", "N/A", "NaN", "nan", "null", "NULL", "<NA>"])
def test_missing_cells(tmp_path: Path, cell: str) -> None:
    table = read_table(written(tmp_path, f"n,t\n{cell},{cell}\n1,x\n"), {"n": "number", "t": "text"})
    assert np.isnan(table["n"][0])
    assert table["n"][1] == 1
    assert table["t"].tolist() == [None, "x"]


@pytest.mark.parametrize("cell", ["?", "None", "none", "-", "0"])
def test_what_only_looks_missing_is_a_value(tmp_path: Path, cell: str) -> None:
    assert read_table(written(tmp_path, f"n,t\n1,{cell}\n"), {"t": "text"})["t"].tolist() == [cell]


def test_quotes_commas_new_lines_spaces_and_accents(tmp_path: Path) -> None:
    text = '\ufeffid,Naïve \r\n1,"a, ""b"""\r\n2,"two\nlines"\r\n3,  spaced \r\n'
    table = read_table(written(tmp_path, text))
    assert table["Naïve "].tolist() == ['a, "b"', "two\nlines", "spaced"]
    assert table["id"].tolist() == [1.0, 2.0, 3.0]


def test_parquet_and_csv_of_one_frame_are_one_table(tmp_path: Path) -> None:
    data = frame()
    data.loc[3, "age"] = np.nan
    data.to_csv(tmp_path / "t.csv", index=False)
    data.to_parquet(tmp_path / "t.parquet")
    needs = CONTRACT.needs("police")
    one, other = read_table(tmp_path / "t.csv", needs), read_table(tmp_path / "t.parquet", needs)
    assert one.keys() == other.keys() == needs.keys()
    for name in needs:
        np.testing.assert_array_equal(one[name], other[name])


def test_typed_parquet_columns(tmp_path: Path) -> None:
    data = pd.DataFrame(
        {
            "whole": pd.array([2**53 + 1, None, 3], dtype="Int64"),
            "code": [1.0, np.nan, 2.5],
            "yes": [True, False, True],
            "day": pd.to_datetime(["2024-01-31", "2024-02-01", "2023-12-31"]),
            "level": pd.Categorical(["a", None, "b"]),
            "empty": pd.array([None, None, None], dtype="string"),
        }
    )
    data.to_parquet(tmp_path / "t.parquet")
    text = read_table(tmp_path / "t.parquet", dict.fromkeys(data, "text"))
    assert text["whole"].tolist() == [str(2**53 + 1), None, "3"]
    assert text["code"].tolist() == ["1", None, "2.5"]
    assert text["yes"].tolist() == ["true", "false", "true"]
    assert [day[:10] for day in text["day"]] == ["2024-01-31", "2024-02-01", "2023-12-31"]
    assert text["level"].tolist() == ["a", None, "b"]
    number = read_table(tmp_path / "t.parquet", dict.fromkeys(data, "number"))
    assert number["whole"].tolist()[2] == 3
    assert np.isnan(number["empty"]).all()
    assert number["day"].dtype == object  # so that `validate` says that it must be a number
    assert read_table(tmp_path / "t.parquet")["code"].dtype == np.float64


# --- loading ---------------------------------------------------------------------------------------------


def test_load_is_read_encode_split(tmp_path: Path) -> None:
    data = frame()
    data.to_csv(tmp_path / "t.csv", index=False)
    dataset = loaded(tmp_path / "t.csv", min_people=60)
    people = encode(CONTRACT, read_table(tmp_path / "t.csv", CONTRACT.needs("police")), "police")
    assert list(dataset.parts) == ["train", "tune", "test"]
    for name in ("x", "y", "present", "group"):
        pieces = np.concatenate([getattr(part, name) for part in dataset.parts.values()])
        assert len(pieces) == 60
        np.testing.assert_array_equal(np.sort(pieces, axis=0), np.sort(getattr(people, name), axis=0))
    assert dataset.clipped == people.clipped
    assert dataset.unknown == {"charge": int((data["charge"] == "X").sum())}
    assert dataset.parts["train"].x.dtype == np.float32


def test_people_who_come_later_change_nobodys_part(tmp_path: Path) -> None:
    frame(60).to_csv(tmp_path / "later.csv", index=False)
    frame(60)[:40].to_csv(tmp_path / "first.csv", index=False)
    first, later = loaded(tmp_path / "first.csv"), loaded(tmp_path / "later.csv")
    for name, part in first.parts.items():
        np.testing.assert_array_equal(part.x, later.parts[name].x[: len(part.x)])


def test_an_explicit_split_column_decides(tmp_path: Path) -> None:
    contract = Contract.from_dict(VALUES | {"split": {"column": "part"}})
    data = frame().assign(part=["train"] * 30 + ["tune"] * 20 + ["test"] * 10)
    data.to_parquet(tmp_path / "t.parquet")
    dataset = loaded(tmp_path / "t.parquet", contract=contract)
    assert {name: len(part.x) for name, part in dataset.parts.items()} == {
        "train": 30,
        "tune": 20,
        "test": 10,
    }
    np.testing.assert_array_equal(dataset.parts["tune"].y, data["y"][30:50])


def test_who_does_not_hold_the_label_has_parts_without_it(tmp_path: Path) -> None:
    frame().drop(columns="y").to_csv(tmp_path / "t.csv", index=False)
    dataset = loaded(tmp_path / "t.csv", "council")
    assert [part.y for part in dataset.parts.values()] == [None, None, None]
    assert sum(len(part.x) for part in dataset.parts.values()) == 60


def test_a_row_is_dealt_alike_from_csv_and_parquet_and_wherever_it_is(tmp_path: Path) -> None:
    contract = Contract.from_dict(VALUES | {"unit": {"kind": "row"}})
    plain = frame().assign(charge=lambda table: table["charge"].replace("", None))  # y stays a whole number
    plain.to_csv(tmp_path / "t.csv", index=False)
    plain.to_parquet(tmp_path / "t.parquet")
    plain[::-1].to_csv(tmp_path / "backwards.csv", index=False)
    one = loaded(tmp_path / "t.csv", contract=contract)
    other = loaded(tmp_path / "t.parquet", contract=contract)
    backwards = loaded(tmp_path / "backwards.csv", contract=contract)
    for name, part in one.parts.items():
        assert len(part.x) > 0
        np.testing.assert_array_equal(part.x, other.parts[name].x)
        np.testing.assert_array_equal(part.x, backwards.parts[name].x[::-1])


def test_what_a_split_column_says_has_a_name_and_a_keyed_split_has_none(tmp_path: Path) -> None:
    contract = Contract.from_dict(VALUES | {"split": {"column": "part"}})
    dealt = frame().assign(part=["train", "tune", "test"] * 20)
    dealt.to_csv(tmp_path / "t.csv", index=False)
    dealt[::-1].to_csv(tmp_path / "backwards.csv", index=False)
    dealt.assign(part=["tune", "train", "test"] * 20).to_csv(tmp_path / "other.csv", index=False)
    name = loaded(tmp_path / "t.csv", contract=contract).assignment
    assert loaded(tmp_path / "backwards.csv", contract=contract).assignment == name
    assert loaded(tmp_path / "other.csv", contract=contract).assignment != name
    assert loaded(tmp_path / "t.csv").assignment == ""


def test_a_dataset_prints_nothing(tmp_path: Path) -> None:
    frame().to_csv(tmp_path / "t.csv", index=False)
    dataset = loaded(tmp_path / "t.csv")
    assert "array" not in repr(dataset)
    assert "array" not in repr(dataset.parts["train"])


# --- refusals --------------------------------------------------------------------------------------------

HEADER = "id,age,charge,sex,y\n"
GOOD = "01,20,F,f,0\n02,30,M,m,1\n"


@pytest.mark.parametrize(
    ("content", "name", "sentence"),
    [
        (
            HEADER + f"01,20,{CANARY},f\n",
            "t.csv",
            "t.csv row 2 (the header is row 1) must have as many cells",
        ),
        (
            HEADER + GOOD + f"01,20,{CANARY},f,0,9\n",
            "t.csv",
            "t.csv row 4 (the header is row 1) must have as",
        ),
        (b"id,age,charge,sex,y\n01,20,CANARY-7731\xff,f,0\n", "t.csv", "t.csv must be UTF-8 text"),
        (HEADER.encode("utf-16") + CANARY.encode("utf-16"), "t.csv", "t.csv must be UTF-8 text"),
        (
            HEADER.replace(",", ";") + f"01;20;{CANARY};f;0\n",
            "t.csv",
            "t.csv has one column only: save it with",
        ),
        ("id,age,age,sex,y\n01,20,F,f,0\n", "t.csv", "t.csv has two columns 'age'"),
        (HEADER + f'01,20,"{CANARY},f,0\n' + GOOD, "t.csv", 't.csv has a quote (") without its pair'),
        (CANARY, "t.parquet", "t.parquet cannot be read: is it a whole parquet file"),
        (b"PAR1" + CANARY.encode() * 9 + b"PAR1", "t.parquet", "t.parquet cannot be read"),
        (CANARY, "t.xlsx", "t.xlsx must be a .csv or .parquet file"),
        (CANARY, "t", "t must be a .csv or .parquet file"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, content: str | bytes, name: str, sentence: str) -> None:
    path = written(tmp_path, content, name)
    said = refusal(lambda: loaded(path))
    assert said.startswith(sentence)
    assert "\n" not in said


def test_what_a_library_says_ends_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def quotes_a_cell(*_: Any, **__: Any) -> None:
        raise ValueError(f"could not convert {CANARY!r}")

    monkeypatch.setattr("pyarrow.csv.open_csv", quotes_a_cell)
    said = refusal(lambda: loaded(written(tmp_path, HEADER + GOOD)))
    assert said == "table.csv cannot be read: is it a whole csv file that you may open?"


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    assert "is missing or not a file" in refusal(lambda: loaded(tmp_path / "none.csv"))
    (tmp_path / "folder.csv").mkdir()
    assert "is missing or not a file" in refusal(lambda: loaded(tmp_path / "folder.csv"))


def test_a_cut_off_parquet_file(tmp_path: Path) -> None:
    frame().to_parquet(tmp_path / "whole.parquet")
    cut = (tmp_path / "whole.parquet").read_bytes()[:-50]
    assert "t.parquet cannot be read" in refusal(lambda: loaded(written(tmp_path, cut, "t.parquet")))


def test_nested_parquet_values(tmp_path: Path) -> None:
    frame().assign(age=[[CANARY]] * 60).to_parquet(tmp_path / "t.parquet")
    said = refusal(lambda: loaded(tmp_path / "t.parquet"))
    assert said == "t.parquet column 'age' must hold single values"


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"age": [20.0] * 59 + [CANARY]}, "column 'age' must be a number"),
        ({"age": [20.0] * 59 + ["1,5"]}, "column 'age' must be a number"),
        ({"age": [20.0] * 59 + ["inf"]}, "column 'age' must be a finite number"),
        ({"age": [20.0] * 59 + [None]}, "column 'age' has missing values"),
        ({"charge": [None] * 60}, "column 'charge' has no value in any row"),
        ({"id": [CANARY] * 60}, "column 'id' has several rows for one person, but the contract says one row"),
        ({"id": [None, *range(59)]}, "column 'id' has missing values"),
        ({"y": [0] * 60}, "column 'y' has one class only"),
        ({"y": [CANARY] * 60}, "column 'y' has one class only"),
        ({"y": [0, 1, None] * 20}, "column 'y' has missing values"),
    ],
)
def test_a_table_that_does_not_fit(tmp_path: Path, change: dict[str, list[Any]], rule: str) -> None:
    data = frame().assign(**change)
    for path in (tmp_path / "t.csv", tmp_path / "t.parquet"):
        if path.suffix == ".csv":
            data.to_csv(path, index=False)
        else:
            data.astype(dict.fromkeys(change, "string")).to_parquet(path)
        title, problem = refusal(lambda path=path: loaded(path)).splitlines()
        assert title == f"{path.name} does not fit the contract small:"
        assert problem.startswith(f"- {rule}")


def test_an_empty_table_a_missing_column_and_too_few_people(tmp_path: Path) -> None:
    assert refusal(lambda: loaded(written(tmp_path, HEADER))).endswith("- the table has no rows")
    no_age = written(tmp_path, "id,charge,sex,y\n1,F,f,0\n2,F,f,1\n")
    assert refusal(lambda: loaded(no_age)).endswith("- column 'age' is not in the table")
    few = written(tmp_path, HEADER + GOOD)
    assert loaded(few, min_people=2)
    assert refusal(lambda: loaded(few, min_people=3)).endswith("fewer people than the 3 that are required")


def test_an_empty_file_lacks_every_column(tmp_path: Path) -> None:
    said = refusal(lambda: loaded(written(tmp_path, "")))
    assert [line for line in said.splitlines() if "is not in the table" in line] == [
        f"- column {name!r} is not in the table" for name in CONTRACT.needs("police")
    ]


def test_every_problem_is_told_at_once_each_on_its_line(tmp_path: Path) -> None:
    data = frame().assign(age=CANARY, y=0).drop(columns="charge")
    data.to_csv(tmp_path / "t.csv", index=False)
    assert refusal(lambda: loaded(tmp_path / "t.csv", min_people=1000)).splitlines() == [
        "t.csv does not fit the contract small:",
        "- column 'charge' is not in the table",
        "- column 'age' must be a number",
        "- column 'y' has one class only, but a label needs people with and without the outcome",
        "- the table has fewer people than the 1000 that are required",
    ]


def test_a_logged_refusal_shows_no_cell(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path, HEADER + f"01,20,{CANARY},f\n")
    try:
        loaded(path)
    except DataError:
        logging.getLogger("node").exception("failed")
    assert "must have as many cells" in caplog.text
    assert CANARY not in caplog.text
