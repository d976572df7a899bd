"""What a person can do wrong with maps, cohorts and signs: one sentence each, nothing spent, no folder left behind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cohorts
import numpy as np
import pytest
import yaml
from command import Done, fedrisk
from conftest import CONTRACT, people, write_agencies, write_table

from clients.node import Node
from experiments.config import MapSettings
from federation.experiment import SettingsError
from federation.protocol import MapOrder
from models.contract import Contract
from models.design import design
from models.marginals import WorkloadError
from models.workload import read

WORKLOAD: dict[str, Any] = {
    "name": "needs",
    "attributes": {"band": {"column": "age", "edges": [30, 60]}},
    "queries": [{"crosstab": ["band", "known"]}, {"histogram": "sex"}],
}
DATED = CONTRACT | {"unit": {"kind": "person", "column": "person", "order_by": "date", "rows": 3}}
MONTH = {"column": "date", "first": "2024-01", "months": 12}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three agencies of 60 people; nothing is written there."""
    folder = tmp_path_factory.mktemp("three")
    write_agencies(folder, {"north": "police", "clinic": "health", "south": "police"}, 60)
    return folder


def drawn(agencies: Path, at: Path, *more: str, workload: object = WORKLOAD) -> Done:
    """`fedrisk map` of the agencies, its outputs below `at`. `workload`: text as it is, else as YAML."""
    text = workload if isinstance(workload, str) else yaml.safe_dump(workload, sort_keys=False)
    (at / "workload.yaml").write_text(text, encoding="utf-8")
    common = ["experiment=own", f"data.agencies={agencies}/agencies.yaml", "tracking=none", "name=small"]
    common += [f"output={at}/outputs", f"map.workload={at}/workload.yaml", "evaluation.disclosure=none"]
    return fedrisk("map", *common, *more)


def result(at: Path) -> tuple[Path, dict[str, Any]]:
    (path,) = (at / "outputs").glob("*/map.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return path.parent, found


def mistaken(**change: object) -> dict[str, Any]:
    return WORKLOAD | change


# --- what a workload says -----------------------------------------------------------------------------

BY_BAND = {"histogram": "band"}
WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a column that nobody has": (
        mistaken(queries=[{"histogram": "shoe"}]),
        ["queries[0].histogram names 'shoe', which is no attribute here: known are known, sex, band"],
    ),
    "the same unknown name in many places is one mistake": (
        mistaken(queries=[{"histogram": "shoe"}, {"count": {"shoe": "large"}, "by": ["shoe"]}]),
        ["queries[0].histogram names 'shoe', which is no attribute here: known are known, sex, band"],
    ),
    "a number without edges": (
        mistaken(queries=[{"histogram": "age"}]),
        [
            "queries[0].histogram names 'age', a number: cut it at edges, as in attributes: "
            "{band: {column: age, edges: [1, 5]}}"
        ],
    ),
    "a name that the contract has": (
        mistaken(attributes={"sex": {"column": "age", "edges": [30]}}, queries=[{"histogram": "sex"}]),
        ["attributes.sex is a column or group of the contract already: give it another name"],
    ),
    "a level that is not there": (
        mistaken(queries=[{"count": {"known": "maybe"}}]),
        ["queries[0].count known has no level 'maybe': it has no, yes"],
    ),
    "text cut at edges": (
        mistaken(attributes={"band": {"column": "known", "edges": [1]}}, queries=[BY_BAND]),
        ["attributes.band.column must be a number of the contract to be cut at edges, got 'known'"],
    ),
    "two of one name": (
        mistaken(queries=[{"histogram": "sex", "name": "a"}, {"histogram": "band", "name": "a"}]),
        ["queries[1].name 'a' is there twice: name each query"],
    ),
    "two kinds in one query": (
        mistaken(queries=[{"histogram": "sex", "count": {}, "by": ["sex"]}]),
        ["queries[0] must have exactly one of count, rate, histogram, crosstab, series"],
    ),
    "a kind misspelt": (
        mistaken(queries=[{"histgram": "sex"}]),
        [
            "queries[0] must have exactly one of count, rate, histogram, crosstab, series",
            "queries[0].histgram is not a known setting (did you mean histogram?)",
        ],
    ),
    "a list for a histogram": (
        mistaken(queries=[{"histogram": ["sex"]}]),
        [
            "queries[0].histogram must be text; write it in quotes (YAML reads a bare yes, no, on or off as "
            "true or false)"
        ],
    ),
    "no queries": (mistaken(queries=[]), ["queries must be a list of queries, one at least"]),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_a_mistake_in_a_workload_is_said_once(case: str) -> None:
    workload, sentences = WRONG[case]
    with pytest.raises(WorkloadError) as raised:
        read(workload, Contract.from_dict(CONTRACT))
    assert str(raised.value).splitlines() == sentences


MONTHS: dict[str, tuple[dict[str, Any], str]] = {
    "a date of YAML's": ({"first": "2024-01-01"}, 'first must be a month as "2024-01", in quotes'),
    "a thirteenth month": ({"first": "2024-13"}, 'first must be a month as "2024-01", in quotes'),
    "a number": ({"first": 202401}, 'first must be a month as "2024-01", in quotes'),
    "no number of months": ({"months": None}, "months is required: how many from first on, 1 to 600"),
    "too many": ({"months": 601}, "months must be from 1 to 600, got 601"),
    "in words": ({"months": "twelve"}, "months must be a whole number, 1 or more, got 'twelve'"),
    "another column": ({"column": "age"}, "column must be the contract's column of dates, date, got 'age'"),
}


@pytest.mark.parametrize("case", list(MONTHS))
def test_a_mistake_in_months_is_said_once(case: str) -> None:
    change, sentence = MONTHS[case]
    text = yaml.safe_dump({"month": MONTH | change}).replace("'2024-01-01'", "2024-01-01")
    workload = {"name": "a", "attributes": yaml.safe_load(text), "queries": [{"histogram": "month"}]}
    with pytest.raises(WorkloadError) as raised:
        read(workload, Contract.from_dict(DATED))
    assert str(raised.value) == f"attributes.month.{sentence}"


def test_months_need_a_column_of_dates_and_dates_need_months() -> None:
    workload = {"name": "a", "attributes": {"month": MONTH}, "queries": [{"histogram": "month"}]}
    with pytest.raises(WorkloadError, match=r"the contract has no column of dates \(unit.order_by\)"):
        read(workload, Contract.from_dict(CONTRACT))
    with pytest.raises(WorkloadError, match="names 'date', the column of dates: name its months, as in"):
        read({"name": "a", "queries": [{"series": {"by": "date"}}]}, Contract.from_dict(DATED))


def test_yes_no_and_numbers_are_levels_however_yaml_reads_them() -> None:
    text = "{name: a, queries: [{count: {known: yes}}, {count: {known: [no]}, name: others}]}"
    found = read(yaml.safe_load(text), Contract.from_dict(CONTRACT))
    assert [query.where for query in found.queries] == [{"known": ("yes",)}, {"known": ("no",)}]


@pytest.mark.parametrize(("attributes", "most"), [(8, "1,562"), (30, "0")])
def test_a_table_of_many_attributes_is_refused_before_its_subsets_are_listed(
    attributes: int, most: str
) -> None:
    """Of 30 attributes there are 2^30: a node that listed them would be gone. Eight would be fitted for minutes."""
    names = [f"a{i}" for i in range(attributes)]
    workload = read(
        {
            "name": "large",
            "attributes": {name: {"column": "age", "edges": [i + 1, 50]} for i, name in enumerate(names)},
            "queries": [{"crosstab": names}],
        },
        Contract.from_dict(CONTRACT),
    )
    with pytest.raises(WorkloadError, match=f"and {most} is the most over {attributes} attributes"):
        design(workload)


FILES: dict[str, tuple[str | bytes | None, str]] = {
    "a list": ("- a\n- b\n", "must be a mapping of settings"),
    "empty": ("", "must be a mapping of settings"),
    "not YAML": ("a: [1\nb: }", "is not YAML (line 2): expected ',' or ']'"),
    "a tab": ("name: x\n\tqueries: 3\n", "is not YAML (line 2): found character"),
    "a day that there is not": ("name: 2024-02-30\n", "has a date that there is not"),
    "not UTF-8": ("name: Bär\n".encode("latin-1"), "is not UTF-8 text: save it again as UTF-8"),
    "missing": (None, "cannot be read: No such file or directory"),
}


@pytest.mark.parametrize("case", list(FILES))
def test_a_file_that_is_no_workload_is_one_sentence(case: str, tmp_path: Path) -> None:
    content, sentence = FILES[case]
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SettingsError) as raised:
        MapSettings(workload=str(path)).loaded()
    (problem,) = str(raised.value).splitlines()
    assert problem.startswith(f"the workload {path} ")
    assert sentence in problem


# --- what is asked for --------------------------------------------------------------------------------

ASKED: dict[str, tuple[tuple[str, ...], str]] = {
    "no such agency": (("map.without={nort: [age]}",), "map.without names 'nort', which is no agency here"),
    "no such column": (
        ("map.without={north: [shoe]}",),
        "map.without.north names 'shoe', which the workload does not ask about",
    ),
    "a column, no list": (
        ("map.without={north: age}",),
        "map.without must name agencies, each with a list of columns, as in {police: [sex]}",
    ),
    "as Hydra would have it": (
        ("map.without.north=[age]",),
        "map.without.north is not a setting yet: write map.without={north: ...}",
    ),
    "no privacy at all": (("map.epsilon=0",), "map.epsilon should be greater than 0, got 0"),
    "a word": (("map.epsilon=abc",), "map.epsilon should be a valid number"),
    "less than noise can do": (("map.epsilon=1e-9",), "map.epsilon=1e-09 is too little"),
    "less than an agency can draw": (("map.epsilon=0.01",), "map.epsilon=0.01 is too little"),
    "masks of three": (("privacy=shared",), "noise can be shared by more than 2 x dropouts + colluders = 3"),
    "more agencies than there are": (("min_agencies=4",), "min_agencies must be at most the 3"),
    "deployed agencies": (("engine=superlink",), "use `fedrisk map --superlink COORDINATOR`"),
    "an option that there is not": (("--plann",), "'--plann' is not an option of this command"),
    "a setting that there is not": (("map.epsilo=1",), "did you mean map.epsilon?"),
}


@pytest.mark.parametrize("case", list(ASKED))
def test_what_cannot_be_asked_is_one_sentence_and_leaves_nothing(
    case: str, three: Path, tmp_path: Path
) -> None:
    arguments, sentence = ASKED[case]
    done = drawn(three, tmp_path, *arguments)
    assert (done.code, done.out) == (1, "")
    (problem,) = done.problems
    assert sentence in problem
    assert not (tmp_path / "outputs").exists()


def test_nothing_that_anybody_may_be_asked_is_said_of_each_query(three: Path, tmp_path: Path) -> None:
    columns = "[age, known, sex]"
    done = drawn(three, tmp_path, f"map.without={{north: {columns}, south: {columns}, clinic: {columns}}}")
    assert done.code == 1
    assert [line.partition(": no agency")[0] for line in done.problems] == [
        "map.workload: band by known",
        "map.workload: sex",
    ]
    assert not (tmp_path / "outputs").exists()


def test_masks_of_two_say_that_three_are_needed(tmp_path: Path) -> None:
    write_agencies(tmp_path, {"north": "police", "south": "police"}, 60)
    done = drawn(tmp_path, tmp_path, "privacy=shared")
    assert done.code == 1
    (problem,) = done.problems
    assert "noise can be shared by at least 3 agencies, got 2" in problem


def test_json_is_all_there_is_on_stdout(three: Path, tmp_path: Path) -> None:
    done = drawn(three, tmp_path, "--json", "map.epsilon=2")
    assert done.code == 0
    assert json.loads(done.out) == result(tmp_path)[1]
    assert "before anything is spent" in done.err
    done = drawn(three, tmp_path, "--json", "--plan", "map.epsilon=2")
    (both, sex) = json.loads(done.out)["queries"]
    assert (both["numbers"], sex["agencies"]) == (8, ["north", "clinic", "south"])
    assert sex["planned_sd"] == pytest.approx(result(tmp_path)[1]["queries"][1]["planned_sd"])


# --- what agencies do -----------------------------------------------------------------------------------


def small_table(path: Path) -> None:
    write_table(path, people(0, 40))


def empty_table(path: Path) -> None:
    path.write_text("person,age,known,sex,outcome\n")


def no_sex(path: Path) -> None:
    write_table(path, people(0, 60), ("sex",))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (small_table, "fewer people than the 50"),
        (empty_table, "no rows"),
        (no_sex, "'sex' is not in the table"),
    ],
)
def test_an_agency_whose_table_cannot_be_counted_is_named_and_the_others_answer(
    spoil: Callable[[Path], None], why: str, tmp_path: Path
) -> None:
    write_agencies(tmp_path, {"north": "police", "south": "police"}, 60)
    spoil(tmp_path / "north.csv")
    done = drawn(tmp_path, tmp_path, "map.epsilon=4")
    assert done.code == 0
    (problem,) = done.problems
    assert problem.startswith("north is left out: ")
    assert why in problem
    assert "north is not in it: unavailable; its own log says why" in done.out
    found = result(tmp_path)[1]
    assert found["agencies"]["north"]["releases"] == []
    assert found["people"]["low"] <= 60 <= found["people"]["high"]


def test_an_agency_that_dies_at_the_order_is_named_and_counted_as_spent(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Node.map

    def dies(self: Node, order: MapOrder) -> Any:
        if self.facts.name == "north":
            raise OSError("the power fails here")
        return whole(self, order)

    monkeypatch.setattr(Node, "map", dies)
    done = drawn(three, tmp_path, "map.epsilon=4")
    assert (done.code, done.err) == (0, "")
    assert "north is not in it: unavailable; its own log says why" in done.out
    agencies = result(tmp_path)[1]["agencies"]
    assert {name: facts["status"] for name, facts in agencies.items()} == {
        "north": "unavailable",
        "clinic": "counted",
        "south": "counted",
    }
    assert len({facts["epsilon"] for facts in agencies.values()}) == 1, "nobody knows whether it charged"


def test_where_everybody_fails_the_sentence_says_where_to_look(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(self: Node, order: MapOrder) -> Any:
        raise OSError("the power fails here")

    monkeypatch.setattr(Node, "map", dies)
    done = drawn(three, tmp_path)
    assert done.code == 1
    (problem,) = done.problems
    assert "ask for the map again" in problem
    assert "/nodes/AGENCY/log/node.log" in problem


def test_a_map_that_is_stopped_says_so(three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(self: Node, order: MapOrder) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Node, "map", stopped)
    done = drawn(three, tmp_path)
    assert done.code == 1
    (problem,) = done.problems
    assert problem.startswith("stopped; what the agencies had charged is in ")


def test_months_without_data_are_cells_with_an_interval_around_zero(tmp_path: Path) -> None:
    write_agencies(tmp_path, {"north": "police"}, 60)
    (tmp_path / "contract.yaml").write_text(yaml.safe_dump(DATED, sort_keys=False))
    write_table(tmp_path / "north.csv", [row | {"date": "2024-03-01"} for row in people(0, 60)])
    workload = {
        "name": "old",
        "attributes": {"month": MONTH | {"first": "1990-01", "months": 3}},
        "queries": [{"series": {"by": "month"}}, {"histogram": "sex"}],
    }
    done = drawn(tmp_path, tmp_path, "map.epsilon=4", workload=workload)
    assert (done.code, done.err) == (0, "")
    folder, found = result(tmp_path)
    (series,) = json.loads((folder / "series.json").read_text())["series"]
    counts, sd = np.array(series["counts"]), np.array(series["sd"])
    assert counts.shape == (1, 3)
    assert (np.abs(counts) < 5 * sd).all()
    cells = found["queries"][0]["together"]["cells"]
    assert [cell["levels"] for cell in cells] == [["1990-01"], ["1990-02"], ["1990-03"]]
    assert all(not cell["publishable"] and cell["sd"] > 0 for cell in cells)
    assert "1990-01" in (folder / "map.html").read_text()


# --- cohorts --------------------------------------------------------------------------------------------


def test_keys_that_cannot_be_read_are_said_before_anything_is_spent(tmp_path: Path) -> None:
    """Accents and apostrophes are read; a table of dates that are none has no key."""
    folder = cohorts.write_agencies(tmp_path, 60, 30, ("health", "police"))
    contract = cohorts.OF | {"match": {"name": ["first", "surname"], "born": "born"}}
    (folder / "contract.yaml").write_text(yaml.safe_dump(contract, sort_keys=False))
    for name, born in (("health", "31/01/19{:02d}"), ("police", "31/02/19{:02d}")):
        rows = cohorts.rows(name, 60, 30)
        named = [
            row | {"first": "Zoë", "surname": "O’Núñez-Smith", "born": born.format(i + 10)}
            for i, row in enumerate(rows)
        ]
        write_table(folder / f"{name}.csv", named)
    words = [*cohorts.SETTINGS, f"data.agencies={folder}/agencies.yaml", f"output={folder}/outputs"]
    done = fedrisk("cohort", "police", "health", *words)
    assert done.code == 1
    assert done.problems == [
        "police: fewer people than the 50 that are required have a match key: see how first, surname, born are written "
        "(docs/matching.md)"
    ]
    assert not any((folder / "outputs").iterdir())


def test_a_cohort_is_noised_whatever_privacy_says(tmp_path: Path) -> None:
    folder = cohorts.write_agencies(tmp_path, 60, 30, ("health", "police"))
    words = [*cohorts.SETTINGS, f"data.agencies={folder}/agencies.yaml", f"output={folder}/outputs"]
    done = fedrisk("cohort", "police", "health", "privacy=none", *words)
    assert done.code == 0
    assert "noise   each agency's own, always: privacy=none is of maps and training" in done.out
    done = fedrisk("cohort", "police", "health", "engine=superlink", *words)
    assert done.problems == [
        "engine=superlink runs on a deployed federation: use `fedrisk cohort --superlink COORDINATOR`"
    ]


# --- signs ----------------------------------------------------------------------------------------------

HEADER: dict[str, Any] = {"schema": 1, "kind": "map", "run_id": "a", "privacy": {"epsilon": 1.0}}
SERIES: dict[str, Any] = {
    "name": "north: contacts",
    "agency": "north",
    "query": "contacts",
    "areas": ["all"],
    "months": ["2024-01", "2024-02"],
    "counts": [[1.0, 2.0]],
    "sd": [[1.0, 1.0]],
}
BROKEN: dict[str, tuple[dict[str, Any], list[Any], str]] = {
    "no run": ({"run_id": None}, [SERIES], "is not a demand map of schema 1"),
    "no privacy": ({"privacy": None}, [SERIES], "is not a demand map of schema 1"),
    "text": ({}, ["x"], "series 1 is not as `fedrisk map` writes it"),
    "no counts": ({}, [{"name": "x"}], "series 1 is not as `fedrisk map` writes it"),
    "months in words": ({}, [SERIES | {"months": ["May", "June"]}], "months must be as 2024-01, got 'May'"),
    "another shape": ({}, [SERIES | {"counts": [[1.0]]}], "counts must have shape (1, 2), got (1, 1)"),
    "one name": ({}, [SERIES, SERIES], "has two series of one name"),
}


@pytest.mark.parametrize("case", list(BROKEN))
def test_a_map_that_is_broken_is_one_sentence(case: str, tmp_path: Path) -> None:
    header, series, sentence = BROKEN[case]
    (tmp_path / "map.json").write_text(json.dumps(HEADER | header))
    (tmp_path / "series.json").write_text(json.dumps({"schema": 1, "series": series}))
    done = fedrisk("signs", str(tmp_path))
    assert done.code == 1
    (problem,) = done.problems
    assert sentence in problem
    assert not (tmp_path / "signs.json").exists()


# --- help -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["map", "cohort", "signs", "pilot-data"])
def test_help_has_an_example_and_loses_no_word(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = " ".join(fedrisk(command, "--help").out.split())
    assert f"fedrisk {command} " in text
    if command in ("map", "cohort"):
        assert "[KEY=VALUE]..." in text
