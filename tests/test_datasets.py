"""Data folders: what a person may write by hand, and what the loaders make of the public files.

Tests on the real files skip where the files are absent; everything else runs on made-up files.
"""

import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from experiments import datasets
from experiments.agencies import Agency, DataError, read_agencies
from experiments.datasets import CHOICES, CONTRACTS, SOURCES, Dirichlet, Source, prepare
from models.contract import Contract, validate

IDENTIFIERS = ("name", "first", "last", "dob", "id", "c_case_number", "r_case_number", "vr_case_number")
CASE_NUMBER = re.compile(rb"\d{6,}[A-Z]{2}\d*[A-Z]?")


def real_root() -> Path:
    root = datasets.default_root()
    if root is None or not all((root / s.path).is_file() for sources in SOURCES.values() for s in sources):
        pytest.skip("the public files are not here: put them under $FEDRISK_DATA (docs/data.md)")
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def hand_made(tmp_path: Path) -> Callable[..., Path]:
    """A folder as a person would write it; arguments replace keys of the second agency."""

    def make(**second: object) -> Path:
        (tmp_path / "contract.yaml").write_text("kinds: [hospital, clinic]\n")
        (tmp_path / "north.csv").write_text("age\n30\n")
        (tmp_path / "south.parquet").write_bytes(b"")
        agencies: list[dict[str, Any]] = [
            {"name": "north", "kind": "hospital", "table": "north.csv", "public_size": 300, "weight": 2.5},
            {"name": "south", "kind": "clinic", "table": "south.parquet", "public_size": 40} | second,
        ]
        listing = {"contract": "contract.yaml", "agencies": agencies}
        (tmp_path / "agencies.yaml").write_text(yaml.safe_dump(listing))
        return tmp_path / "agencies.yaml"

    return make


# --- agencies.yaml ----------------------------------------------------------------------------------------


def test_a_listing_written_by_hand_is_read(hand_made: Callable[..., Path], tmp_path: Path) -> None:
    agencies = (
        Agency("north", "hospital", tmp_path / "north.csv", 300, 2.5),
        Agency("south", "clinic", tmp_path / "south.parquet", 40, 40.0),
    )
    assert read_agencies(hand_made()) == (tmp_path / "contract.yaml", agencies)
    assert read_agencies(tmp_path) == read_agencies(tmp_path / "agencies.yaml")


def test_tables_may_lie_anywhere(hand_made: Callable[..., Path], tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "south.csv").write_text("age\n")
    assert read_agencies(hand_made(table=str(elsewhere / "south.csv")))[1][1].table == elsewhere / "south.csv"


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        ({"name": "South Town"}, r"agencies\[1\].name must be small letters, digits and hyphens"),
        ({"name": "north"}, r"agencies\[1\].name is the same as that of agencies\[0\]"),
        ({"table": "north.csv"}, r"agencies\[1\].table is the same as that of agencies\[0\]"),
        ({"table": "nowhere.csv"}, r"agencies\[1\].table: .*nowhere.csv does not exist"),
        ({"table": "south.xlsx"}, r"agencies\[1\].table must name a .parquet or .csv file"),
        ({"kind": "school"}, r"agencies\[1\].kind must be one of the contract's kinds \(hospital, clinic\)"),
        ({"kind": None}, r"agencies\[1\].kind must be one of the contract's kinds"),
        ({"public_size": 0}, r"agencies\[1\].public_size must be a whole number of at least 1, got 0"),
        ({"public_size": True}, r"agencies\[1\].public_size must be a whole number"),
        ({"public_size": "many"}, r"agencies\[1\].public_size must be a whole number"),
        ({"public_size": None}, r"agencies\[1\].public_size must be a whole number"),
        ({"weight": -1}, r"agencies\[1\].weight must be a number above 0, got -1"),
        ({"weight": float("inf")}, r"agencies\[1\].weight must be a number above 0"),
        ({"wieght": 2}, r"agencies\[1\].wieght is not a known key; known are kind, name,"),
    ],
)
def test_a_wrong_listing_is_refused_in_one_sentence(
    hand_made: Callable[..., Path], second: dict[str, object], sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence) as caught:
        read_agencies(hand_made(**second))
    assert len(caught.value.problems) == 1


def test_every_problem_is_named_at_once(hand_made: Callable[..., Path]) -> None:
    with pytest.raises(DataError) as caught:
        read_agencies(hand_made(name="X", table="y.csv", public_size=-1, extra=1))
    assert len(caught.value.problems) == 4
    assert all(problem.startswith("agencies.yaml: agencies[1].") for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- a list", "must be a YAML mapping, got list"),
        ("a: [", r"is not valid YAML \(line 1\)"),
        ("contract: contract.yaml\nagencies: []", "agencies must be a list of at least one agency"),
        ("contract: contract.yaml\nagencies: [north]", r"agencies\[0\] must be a mapping"),
        ("contract: other.yaml\nagencies: []", "other.yaml does not exist"),
        ("agencies: []", "contract must name the contract's file"),
    ],
)
def test_a_file_that_is_no_listing_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "contract.yaml").write_text("name: x\n")
    (tmp_path / "agencies.yaml").write_text(text)
    with pytest.raises(DataError, match=sentence):
        read_agencies(tmp_path / "agencies.yaml")


def test_without_kinds_in_the_contract_none_may_be_given(
    hand_made: Callable[..., Path], tmp_path: Path
) -> None:
    path = hand_made()
    (tmp_path / "contract.yaml").write_text("name: x\n")
    with pytest.raises(DataError, match=r"agencies\[0\].kind must be left out") as caught:
        read_agencies(path)
    assert len(caught.value.problems) == 2


# --- the original files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(CHOICES))
def test_absent_files_are_all_named_with_source_and_checksum(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepare(name, {"root": str(tmp_path)}, tmp_path / "cache")
    assert len(caught.value.problems) == len(SOURCES[name])
    for problem, source in zip(caught.value.problems, SOURCES[name], strict=True):
        assert problem.startswith(f"{source.path} was not found in {tmp_path}. Get it from {source.origin}")
        assert all(digest in problem for digest in source.sha256)
        assert "$FEDRISK_DATA" in problem
    assert not (tmp_path / "cache").exists()


def test_without_a_folder_the_sentence_says_which_variable_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("FEDRISK_DATA", raising=False)
    monkeypatch.setattr(datasets, "REPOSITORY", tmp_path / "repository")
    with pytest.raises(DataError, match="was not found because FEDRISK_DATA is not set"):
        prepare("iowa", {}, tmp_path)
    (tmp_path / "shared" / "data").mkdir(parents=True)
    assert datasets.default_root() == tmp_path / "shared" / "data"
    monkeypatch.setenv("FEDRISK_DATA", str(tmp_path))
    assert datasets.default_root() == tmp_path


def test_a_changed_file_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / SOURCES["iowa"][0].path
    path.parent.mkdir()
    path.write_text("Return to Prison\nJOHN SMITH\n")
    with pytest.raises(DataError, match="has another sha256") as caught:
        prepare("iowa", {"root": tmp_path}, tmp_path / "cache")
    assert SOURCES["iowa"][0].sha256[0] in str(caught.value)
    assert "SMITH" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        (
            "folktables",
            {},
            "data set must be one of adult, compas, compas_violent, heart, iowa, pilot, synthetic, got",
        ),
        ("heart", {"splits": "hash"}, "option of heart: splits is not a known key; known are split"),
        ("heart", {"split": "random"}, "option split of heart must be one of hash, flamby, got 'random'"),
        ("compas", {"cohort": "all"}, "option cohort of compas must be one of full, corrected"),
        ("compas", {"alpha": 1.0}, "option alpha of compas is of sites=dirichlet: choose that too"),
        ("iowa", {"alpha": 1.0}, "option of iowa: alpha is not a known key"),
        ("synthetic", {"people": -1}, "option people must be a number from 0.05 to 100, got -1"),
        ("synthetic", {"colour": 1}, "option of synthetic: colour is not a known key"),
    ],
)
def test_a_wrong_option_is_named(
    name: str, options: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=re.escape(sentence)):
        prepare(name, options, tmp_path)


# --- folders that are written -----------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    first = prepare("synthetic", {"people": 0.1, "seed": 4}, tmp_path / "a").parent
    second = prepare("synthetic", {"people": 0.1, "seed": 4}, tmp_path / "b").parent
    other = prepare("synthetic", {"people": 0.1, "seed": 5}, tmp_path / "b").parent
    assert contents(first) == contents(second)
    assert first.name == second.name != other.name
    assert contents(first)["police.parquet"] != contents(other)["police.parquet"]


def test_a_complete_folder_is_used_again_and_an_incomplete_one_never_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = prepare("synthetic", {"people": 0.1}, tmp_path)
    before = path.stat().st_mtime_ns
    assert prepare("synthetic", {"people": 0.1}, tmp_path) == path
    assert path.stat().st_mtime_ns == before

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datasets.os, "rename", full)
    with pytest.raises(DataError, match="cannot be written: No space left on device"):
        prepare("synthetic", {"people": 0.2}, tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.parent.name]


def test_a_folder_of_somebody_else_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="is not empty and fedrisk did not write it"):
        datasets.synthetic(tmp_path, people=0.1)
    with pytest.raises(DataError, match="is not empty and fedrisk did not write it"):
        datasets.synthetic(tmp_path / "notes.txt", people=0.1)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_a_folder_made_otherwise_or_changed_is_refused(tmp_path: Path) -> None:
    path = datasets.synthetic(tmp_path / "out", people=0.1)
    with pytest.raises(DataError, match="made with other options"):
        datasets.synthetic(tmp_path / "out", people=0.2)
    (path.parent / "health.parquet").write_bytes(b"x")
    with pytest.raises(DataError, match=r"was changed after it was written \(health.parquet\)"):
        datasets.synthetic(tmp_path / "out", people=0.1)


def test_a_changed_contract_or_loader_makes_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare("synthetic", {"people": 0.1}, tmp_path / "cache")
    contracts = tmp_path / "contracts"
    contracts.mkdir()
    text = (CONTRACTS / "synthetic.yaml").read_text()
    (contracts / "synthetic.yaml").write_text(text.replace("max: 90", "max: 80"))
    with monkeypatch.context() as other_contract:
        other_contract.setattr(datasets, "CONTRACTS", contracts)
        assert prepare("synthetic", {"people": 0.1}, tmp_path / "cache") != first
    assert prepare("synthetic", {"people": 0.1}, tmp_path / "cache") == first
    (tmp_path / "code.py").write_text("pass")
    monkeypatch.setattr(datasets, "CODE", (tmp_path / "code.py",))
    assert prepare("synthetic", {"people": 0.1}, tmp_path / "cache") != first


@pytest.mark.parametrize("name", ["synthetic", "pilot", *CHOICES])
def test_every_contract_is_usable(name: str) -> None:
    contract = Contract.from_dict(yaml.safe_load((CONTRACTS / f"{name}.yaml").read_text()))
    assert contract.name == name
    assert len(contract.group_names) <= 12  # noise per cell: few cells


# --- loaders on made-up originals: these need no real file ------------------------------------------------

DEFENDANTS = """id,name,first,last,dob,sex,race,age,juv_fel_count,juv_misd_count,juv_other_count,priors_count,\
days_b_screening_arrest,c_case_number,c_charge_degree,c_charge_desc,is_recid,r_case_number,vr_case_number,score_text,\
compas_screening_date,two_year_recid,decile_score,r_offense_date
901,zed canary,zed,canary,1960-01-02,Male,Caucasian,40,0,0,0,3,-1,13009111CF10A,F,Possession of Cocaine,1,13008222MM10A,\
13008333CF10A,Low,2013-05-01,1,4,2013-07-05
902,yan canary,yan,canary,1961-01-02,Female,Other,23,0,0,0,1,-1,13009112CF10A,F,Grand Theft,0,,,Low,2013-05-01,0,4,2015-06-01
903,xan canary,xan,canary,1962-01-02,Male,Asian,24,0,0,0,1,-1,13009113MM10A,M,Battery,0,,,High,2014-04-01,1,4,2016-06-01
904,wes canary,wes,canary,1963-01-02,Male,Asian,25,0,0,0,1,-1,13009114TC10A,M,DUI,0,,,High,2013-05-01,0,4,
905,vic canary,vic,canary,1964-01-02,Male,Asian,26,0,0,0,1,-31,13009115MM10A,M,Battery,0,,,High,2013-05-01,0,4,
906,una canary,una,canary,1965-01-02,Male,Asian,27,0,0,0,1,,13009116MM10A,M,Battery,0,,,High,2013-05-01,0,4,
907,tom canary,tom,canary,1966-01-02,Male,Asian,28,0,0,0,1,0,13009117MM10A,O,Battery,0,,,High,2013-05-01,0,4,
908,sal canary,sal,canary,1967-01-02,Male,Asian,29,0,0,0,1,0,13009118MM10A,M,Battery,-1,,,High,2013-05-01,0,4,
909,rob canary,rob,canary,1968-01-02,Male,Asian,30,0,0,0,1,0,13009119MM10A,M,Battery,0,,,,2013-05-01,0,4,
"""


@pytest.fixture
def made_up_court(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    source = SOURCES["compas"][0]
    digest = hashlib.sha256(DEFENDANTS.encode()).hexdigest()
    monkeypatch.setattr(datasets, "SOURCES", {"compas": (Source(source.path, (digest,), source.origin),)})
    (tmp_path / source.path).parent.mkdir()
    (tmp_path / source.path).write_text(DEFENDANTS)
    return tmp_path


def tables_of(path: Path) -> dict[str, pd.DataFrame]:
    return {agency.name: pd.read_parquet(agency.table) for agency in read_agencies(path)[1]}


def test_the_court_is_filtered_and_divided(made_up_court: Path) -> None:
    full = tables_of(datasets.compas(made_up_court, made_up_court / "full"))
    assert {name: table["age"].tolist() for name, table in full.items()} == {
        "felony-drug": [40],
        "felony-other": [23],
        "misdemeanour": [24],
        "traffic-municipal": [25],
    }
    corrected = tables_of(datasets.compas(made_up_court, made_up_court / "corrected", cohort="corrected"))
    assert len(corrected["misdemeanour"]) == 0  # screened on 2014-04-01
    one = tables_of(datasets.compas(made_up_court, made_up_court / "one", sites="one"))
    days = one["broward"].set_index("age")["days_to_reoffence"]
    assert days[40] == 65
    assert days[[23, 24, 25]].isna().all()  # no outcome; beyond the two years; nothing
    assert one["broward"].set_index("age")["score_text"].to_dict() == {
        40: "Low",
        23: "Low",
        24: "High",
        25: "High",
    }
    assert one["broward"]["person_id"].tolist() == [f"broward-{i:05d}" for i in range(1, 5)]


def test_no_identifier_of_a_defendant_is_written_or_logged(
    made_up_court: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = datasets.compas(made_up_court, made_up_court / "out").parent
    assert_no_identifier(folder)
    said = caplog.text + "".join(capsys.readouterr())
    for canary in ("canary", "1960-01-02", "2013-07-05", "13009111", "13008222", "Cocaine"):
        assert canary not in said
        assert not any(canary.encode() in written for written in unpacked(folder))


def unpacked(folder: Path) -> list[bytes]:
    """Every written file as plain bytes; Parquet (which is compressed) as CSV and as its own metadata."""
    import pyarrow.parquet as pq

    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix == ".parquet":
            text = io.StringIO()
            pd.read_parquet(path).to_csv(text, index=False)
            found += [text.getvalue().encode(), repr(pq.read_metadata(path).metadata).encode()]
        found.append(path.read_bytes())
    return found


def assert_no_identifier(folder: Path) -> None:
    for path in folder.glob("*.parquet"):
        assert not set(pd.read_parquet(path).columns) & set(IDENTIFIERS)
    texts = [text for text in unpacked(folder) if not text.startswith(b"PAR1")]
    sums = re.compile(rb"[0-9a-f]{64}")
    assert not any(CASE_NUMBER.search(sums.sub(b"", text)) for text in texts)


def test_the_search_for_identifiers_would_find_one(tmp_path: Path) -> None:
    pd.DataFrame({"person": ["13009111CF10A"]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(AssertionError):
        assert_no_identifier(tmp_path)


# --- the real files: sizes and base rates from the publishers' descriptions (docs/data.md) ------------------

FACTS: dict[tuple[str, tuple[tuple[str, str], ...]], dict[str, tuple[int, float]]] = {
    ("heart", (("split", "hash"),)): {
        "cleveland": (303, 0.459),
        "hungarian": (261, 0.375),
        "switzerland": (46, 0.978),
        "va": (130, 0.777),
    },
    ("compas", (("sites", "one"),)): {"broward": (6172, 0.455)},
    ("compas", (("cohort", "corrected"), ("sites", "one"))): {"broward": (5297, 0.366)},
    ("compas_violent", (("sites", "one"),)): {"broward": (4020, 0.162)},
    ("compas_violent", (("cohort", "corrected"), ("sites", "one"))): {"broward": (3822, 0.120)},
    ("adult", ()): {
        "private": (33906, 0.218),
        "self-employed": (5557, 0.363),
        "local-government": (3136, 0.295),
        "state-government": (1981, 0.267),
        "federal-government": (1432, 0.392),
        "none-stated": (2830, 0.094),
    },
    ("iowa", ()): {
        "1jd": (2787, 0.409),
        "2jd": (1988, 0.413),
        "3jd": (1188, 0.420),
        "4jd": (667, 0.456),
        "5jd": (4982, 0.449),
        "6jd": (1098, 0.389),
        "7jd": (1514, 0.350),
        "8jd": (1556, 0.386),
    },
}


def labels(contract: Contract, table: pd.DataFrame) -> np.ndarray:
    values = table[contract.label.column]
    return np.array([(v if isinstance(v, str) else f"{v:g}") in contract.label.positive for v in values])


@pytest.mark.parametrize(("name", "options"), list(FACTS))
def test_sizes_and_base_rates_are_the_published_ones(
    name: str, options: tuple[tuple[str, str], ...], cache: Path
) -> None:
    path = prepare(name, dict(options) | {"root": real_root()}, cache)
    contract = Contract.from_dict(yaml.safe_load(read_agencies(path)[0].read_text()))
    tables = tables_of(path)
    found = {agency: (len(table), labels(contract, table).mean()) for agency, table in tables.items()}
    expected = FACTS[name, options]
    assert {agency: n for agency, (n, _) in found.items()} == {
        agency: n for agency, (n, _) in expected.items()
    }
    for agency, (_, rate) in expected.items():
        assert found[agency][1] == pytest.approx(rate, abs=0.0006)


@pytest.mark.parametrize("name", list(CHOICES))
def test_every_real_table_fits_its_contract_and_names_nobody(name: str, cache: Path) -> None:
    for choice in [{}, *({key: last[-1]} for key, last in CHOICES[name].items())]:
        path = prepare(name, choice | {"root": real_root()}, cache)
        contract_path, agencies = read_agencies(path)
        contract = Contract.from_dict(yaml.safe_load(contract_path.read_text()))
        for agency in agencies:
            table = datasets._columns(pd.read_parquet(agency.table))
            assert validate(contract, table, agency.kind) == ()
            assert agency.public_size == pytest.approx(len(table[contract.label.column]), rel=0.05)
        assert_no_identifier(path.parent)


def test_the_practice_of_compas_is_the_published_score(cache: Path) -> None:
    """Of ProPublica's filter; the data README has the accuracy of a decile from 5 on. No model may see the score."""
    (table,) = tables_of(prepare("compas", {"root": real_root(), "sites": "one"}, cache)).values()
    contract = Contract.from_dict(yaml.safe_load((CONTRACTS / "compas.yaml").read_text()))
    assert contract.practice is not None
    assert contract.lead_time is not None
    flagged = contract.practice.flags(table[contract.practice.column].to_numpy(object))
    assert (flagged == (table["two_year_recid"] == 1)).mean() == pytest.approx(0.66, abs=0.005)
    days = table[contract.lead_time.column]
    assert days.notna().sum() == 2809 - 41
    assert days[table["two_year_recid"] == 0].isna().all()
    assert days.min() == 1
    assert days.max() <= 731
    seen = {column.name for column in contract.columns}
    assert not seen & {"score_text", "decile_score", "days_to_reoffence"}


def test_the_groups_of_compas_are_the_published_ones(cache: Path) -> None:
    path = prepare("compas", {"root": real_root(), "sites": "one"}, cache)
    table = tables_of(path)["broward"]
    by_race = table.groupby("race")["two_year_recid"].agg(["size", "mean"]).round(3)
    assert by_race.loc["African-American"].tolist() == [3175, 0.523]
    assert by_race.loc["Caucasian"].tolist() == [2103, 0.391]
    divisions = tables_of(prepare("compas", {"root": real_root()}, cache))
    assert sum(map(len, divisions.values())) == 6172
    assert len(divisions["misdemeanour"]) == 1851  # letters MM


# --- agencies that a public file does not have ------------------------------------------------------------


def test_everybody_has_one_agency() -> None:
    classes = np.random.default_rng(1).integers(0, 3, 5000)
    dealt = Dirichlet(agencies=12, alpha=0.5, by="race", seed=3).deal(classes)
    assert list(dealt) == [f"agency-{i:02d}" for i in range(1, 13)]
    assert np.array_equal(np.sort(np.concatenate(list(dealt.values()))), np.arange(5000))
    assert min(map(len, dealt.values())) >= Dirichlet.LEAST


def test_agencies_are_less_alike_with_a_smaller_alpha() -> None:
    """The share of class 1 at an agency spreads with sd sqrt(p (1 - p) / (2 alpha + 1)) or so: less with a larger alpha."""
    classes = np.random.default_rng(1).integers(0, 2, 20_000)

    def spread(alpha: float) -> float:
        of = [Dirichlet(agencies=15, alpha=alpha, by="sex", seed=s).deal(classes) for s in range(5)]
        return float(np.mean([np.std([classes[rows].mean() for rows in each.values()]) for each in of]))

    assert spread(0.5) > 2 * spread(5.0) > 4 * spread(500.0)


def test_classes_are_by_race_or_sex_and_by_the_label_where_asked() -> None:
    race, sex, label = np.array([[0, 0, 1, 1], [0, 1, 0, 1], [1, 1, 0, 0]], bool)
    found = {by: Dirichlet(2, 1.0, by, 0).classes(race, sex, label).tolist() for by in Dirichlet.BY}
    assert found == {
        "race": [0, 0, 1, 1],
        "sex": [0, 1, 0, 1],
        "race-label": [1, 1, 2, 2],
        "sex-label": [1, 3, 0, 2],
    }


def test_too_many_agencies_for_so_few_people_are_refused() -> None:
    with pytest.raises(DataError, match=r"no draw with alpha=0\.5 gives each of 15 agencies 60 people"):
        Dirichlet(agencies=15, alpha=0.5, by="race", seed=0).deal(np.zeros(800, int))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"agencies": 1}, "option agencies must be a whole number from 2 to 100, got 1"),
        ({"alpha": 0}, "option alpha must be a number above 0, got 0"),
        ({"by": "age"}, "option by must be one of race, sex, race-label, sex-label, got 'age'"),
        ({"seed": -1}, "option seed must be a whole number of at least 0, got -1"),
    ],
)
def test_a_wrong_partition_is_named(changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=re.escape(sentence)):
        Dirichlet(**{**datasets.DIRICHLET, **changed})


@pytest.mark.parametrize(("name", "people"), [("compas", 6172), ("compas_violent", 4020), ("adult", 48842)])
def test_dirichlet_agencies_of_public_files_hold_everybody(name: str, people: int, cache: Path) -> None:
    options = {"root": real_root(), "sites": "dirichlet", "agencies": 7, "by": "sex", "seed": 2}
    path = prepare(name, options, cache)
    assert sum(map(len, tables_of(path).values())) == people
    other = prepare(name, options | {"seed": 3}, cache)
    assert tables_of(path).keys() == tables_of(other).keys()
    assert [len(t) for t in tables_of(path).values()] != [len(t) for t in tables_of(other).values()]


# --- what is known to be wrong with a file ----------------------------------------------------------------


def test_the_full_cohort_of_compas_comes_with_a_caution(cache: Path) -> None:
    """The rates of the data's README: 0.455 and 0.366, African-American 0.523 and 0.435, Caucasian 0.391 and 0.300."""
    (sentence,) = datasets.cautions(prepare("compas", {"root": real_root()}, cache).parent)
    told = "everyone 0.455 and 0.366, African-American 0.523 and 0.435, Caucasian 0.391 and 0.300"
    assert told in sentence
    (sentence,) = datasets.cautions(prepare("compas_violent", {"root": real_root()}, cache).parent)
    assert "everyone 0.162 and 0.120" in sentence
    for name in ("compas", "compas_violent"):
        corrected = prepare(name, {"root": real_root(), "cohort": "corrected"}, cache)
        assert datasets.cautions(corrected.parent) == []


def test_no_caution_where_late_screening_changes_no_rate() -> None:
    frame = pd.DataFrame({"race": ["Caucasian"] * 4, "two_year_recid": [0.0, 1.0, 0.0, 1.0]})
    assert datasets._label_artefact(frame, np.array([False, False, True, True])) == ()
    assert datasets._label_artefact(frame, np.array([False, True, False, True])) != ()


def test_a_folder_of_ones_own_has_no_cautions(tmp_path: Path) -> None:
    assert datasets.cautions(tmp_path) == []
    (tmp_path / "manifest.json").write_text("[]")
    assert datasets.cautions(tmp_path) == []


def test_flamby_splits_as_flamby_does(cache: Path) -> None:
    """owkin/FLamby, fed_heart_disease: 199/104, 172/89, 30/16, 85/45 (its README and common.py)."""
    path = prepare("heart", {"root": real_root(), "split": "flamby"}, cache)
    sizes = {
        name: (int((table["split"] == "train").sum()), int((table["split"] == "test").sum()))
        for name, table in tables_of(path).items()
    }
    assert sizes == {"cleveland": (199, 104), "hungarian": (172, 89), "switzerland": (30, 16), "va": (85, 45)}
    assert yaml.safe_load((path.parent / "contract.yaml").read_text())["split"] == {"column": "split"}


def test_switzerland_holds_no_cholesterol(cache: Path) -> None:
    path = prepare("heart", {"root": real_root()}, cache)
    tables = tables_of(path)
    assert "cholesterol" not in tables["switzerland"]
    assert all(table["cholesterol"].min() > 0 for name, table in tables.items() if name != "switzerland")


def test_labels_of_iowa_are_the_same_in_every_year(cache: Path) -> None:
    tables = tables_of(prepare("iowa", {"root": real_root()}, cache))
    releases = set(pd.concat(tables.values())["release_type"].dropna())
    assert releases == {
        "Parole",
        "Discharged",
        "Special Sentence",
        "Paroled to Detainer",
        "Paroled and Discharged",
    }
    manifest = json.loads(
        (prepare("iowa", {"root": real_root()}, cache).parent / "manifest.json").read_text()
    )
    assert manifest["recipe"]["sources"] == {s.path: list(s.sha256) for s in SOURCES["iowa"]}
