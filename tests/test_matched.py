"""Match keys of an agency's records: one per person, what a person can change in them, and what may be said of them."""

import itertools
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import yaml
from conftest import CONTRACT, MakeStudy, people, permits, write_table

from clients import rules
from clients.policy import Policy
from clients.records.cells import DataError
from clients.records.data import load
from clients.records.datacheck import check_source
from clients.records.matched import Keys, load_keys
from clients.ruleset import Situation
from models.contract import Contract
from models.matchkey import match_keys

CANARY = "Canary9c4e"
NAMED: dict[str, Any] = {"name": ["forename", "surname"], "born": "born"}
MATCHED = Contract.from_dict(
    CONTRACT
    | {"unit": {"kind": "person", "column": "person", "rows": 2, "order_by": "month"}, "match": NAMED}
)
SEX = MATCHED.groups[0]
Row = dict[str, object]


def row(
    person: str, month: int, surname: str, sex: str = "f", forename: str = "Sarah", born: str = "1990-12-31"
) -> Row:
    return {
        "person": person,
        "month": month,
        "forename": forename,
        "surname": surname,
        "born": born,
        "sex": sex,
    }


def loaded(folder: Path, rows: list[Row], kind: str = "police", batch: int = 1000, **more: Any) -> Keys:
    write_table(folder / "t.csv", rows)
    return load_keys(more.pop("contract", MATCHED), folder / "t.csv", kind, min_people=0, rows=batch, **more)


def histogram(found: Keys) -> dict[tuple[str, int], int]:
    """How many entries are in each cell of (key, group): buckets only add such cells up."""
    pairs = list(zip(found.keys, found.group.tolist(), strict=True))
    return {pair: pairs.count(pair) for pair in pairs}


# --- laws -----------------------------------------------------------------------------------------------


def test_one_person_more_or_less_changes_one_cell_by_one_at_most(tmp_path: Path) -> None:
    """Tables of three people, two rows for the last, over two keys, none, and two groups; each person taken out."""
    kinds = list(itertools.product(["Jones", "Brown", ""], "fm"))
    for number, choice in enumerate(itertools.product(kinds, repeat=3)):
        persons = [[row(f"p{i}", 1, *each)] for i, each in enumerate(choice)]
        persons[2].append(row("p2", 0, *kinds[number % 6]))
        anchor = [row("q", 1, "White")]  # so that no column is empty
        if number % 5 == 0:  # a file each is slow
            whole = histogram(loaded(tmp_path, [*anchor, *itertools.chain(*persons)], by=SEX))
            for i in range(3):
                rest = itertools.chain(*persons[:i], *persons[i + 1 :])
                less = histogram(loaded(tmp_path, [*anchor, *rest], by=SEX))
                cells = whole.keys() | less.keys()
                assert sum(abs(whole.get(cell, 0) - less.get(cell, 0)) for cell in cells) <= 1


@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_a_persons_most_recent_row_makes_the_key(tmp_path: Path, batch: int) -> None:
    rng = np.random.default_rng(1)
    rows = [
        row(
            f"p{rng.integers(20)}",
            month,
            str(rng.choice(["O'Neil", "Jones", "Brown"])),
            str(rng.choice(["f", "m"])),
        )
        for month in rng.permutation(60).tolist()
    ]
    newest: dict[object, Row] = {}
    for each in sorted(rows, key=lambda each: int(str(each["month"]))):
        newest[each["person"]] = each
    cells = {
        name: np.array([each[name] for each in newest.values()], dtype=object)
        for name in MATCHED.match_columns
    }
    assert MATCHED.match is not None
    expected = {
        (key, "fm".index(str(each["sex"])))
        for key, each in zip(match_keys(MATCHED.match, cells), newest.values(), strict=True)
    }
    found = loaded(tmp_path, rows, batch=batch, by=SEX)
    assert set(zip(found.keys, found.group.tolist(), strict=True)) == expected
    assert (len(found.keys), found.people, found.without) == (len(expected), len(newest), 0)


def test_two_ids_with_one_key_are_one_person_unless_their_groups_differ(tmp_path: Path) -> None:
    rows = [
        row("p1", 1, "O'Neil"),
        row("p2", 1, "ONEIL"),
        row("p3", 1, "O’Neil", "m"),
        row("p4", 1, "Jones", born="1990"),
    ]
    alone, grouped = loaded(tmp_path, rows), loaded(tmp_path, rows, by=SEX)
    assert len(set(alone.keys)) == len(alone.keys) == 1
    assert len(set(grouped.keys)) == 1
    assert grouped.group.tolist() == [0, 1]
    assert (alone.people, alone.without) == (4, 1)


def test_a_row_is_a_person_where_the_unit_is_the_row(tmp_path: Path) -> None:
    contract = Contract.from_dict(CONTRACT | {"unit": {"kind": "row"}, "match": {"identifier": "nhs"}})
    rows: list[Row] = [{"nhs": number} for number in ("943 476 5919", 9434765919, "", "9434765870")]
    found = loaded(tmp_path, rows, contract=contract)
    assert (len(found.keys), found.people, found.without) == (2, 4, 1)


def test_the_id_may_be_the_identifier(tmp_path: Path) -> None:
    contract = Contract.from_dict(CONTRACT | {"match": {"identifier": "person"}})
    found = loaded(tmp_path, [{"person": "007"}, {"person": "8-1"}], contract=contract)
    assert found.keys == ("10:identifier,1:7,", "10:identifier,2:81,")


def test_a_group_that_the_agency_does_not_hold_is_other(tmp_path: Path) -> None:
    visits = {"column": "visits", "edges": [3], "levels": ["few", "many"]}
    contract = Contract.from_dict(CONTRACT | {"match": NAMED, "groups": {"use": visits}})
    rows = [row("p1", 1, "Jones") | {"visits": 5}, row("p2", 1, "Brown") | {"visits": ""}]
    for kind, expected in (("health", [1, 2]), ("police", [2, 2])):
        assert (
            loaded(tmp_path, rows, kind, contract=contract, by=contract.groups[0]).group.tolist() == expected
        )


# --- what training needs --------------------------------------------------------------------------------


def test_training_reads_none_of_it_and_a_policy_against_it_stops_no_training(
    tmp_path: Path, make_study: MakeStudy
) -> None:
    rows: list[Row] = [
        {"person": f"p{i}", "month": 1, "age": 20 + i, "known": i % 2, "sex": "f", "outcome": i % 2}
        for i in range(40)
    ]
    write_table(tmp_path / "t.csv", rows)
    fractions = {"train": 1.0, "tune": 0.0, "test": 0.0}
    for contract in (MATCHED, replace(MATCHED, match=None)):
        found = load(contract, tmp_path / "t.csv", "police", fractions=fractions, key=b"k" * 32, min_people=1)
        assert len(found.parts["train"].x) == 40
    policy = Policy.model_validate(permits(never_columns=["forename", "surname", "born"]))
    plan = make_study("rounds=2").experiment.plan("run-1", simulation=False)
    verdicts = rules.explain(policy, plan, Situation(datetime.now(UTC), MATCHED))
    assert [each.permits for each in verdicts if each.rule == "never_columns"] == [True]


def test_the_check_of_a_source_says_how_people_are_matched_and_no_exact_number(tmp_path: Path) -> None:
    contract = CONTRACT | {"match": {"identifier": "nhs"}}
    (tmp_path / "contract.yaml").write_text(yaml.safe_dump(contract, sort_keys=False))
    (tmp_path / "policy.toml").write_text('purposes = ["early-warning"]\nmin_people = 1\nsimulation = true\n')
    node = {
        "name": "north",
        "kind": "police",
        "table": "people.csv",
        "contract": "contract.yaml",
        "public_size": 300,
    }
    (tmp_path / "node.toml").write_text(tomli_w.dumps(node))
    rows = [each | {"nhs": f"{i}5" if i > 60 else ""} for i, each in enumerate(people(0))]
    write_table(tmp_path / "people.csv", rows, ("visits",))
    assert check_source(tmp_path).facts[-1] == "match keys: the same identifier; people without a key: 50-99"
    write_table(tmp_path / "people.csv", people(0), ("visits",))
    assert check_source(tmp_path).facts[-1] == (
        "match keys: none can be made, so no cohort can be counted here: column 'nhs' is not in the table, and the "
        "contract's match needs it"
    )


# --- problems -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("without", "problem"),
    [
        ("surname", "column 'surname' is not in the table, and the contract's match needs it"),
        ("born", "column 'born' is not in the table, and the contract's match needs it"),
        ("person", "column 'person' is not in the table"),
        ("sex", "column 'sex' is not in the table"),
    ],
)
def test_a_column_that_is_missing_is_named(tmp_path: Path, without: str, problem: str) -> None:
    rows = [{name: cell for name, cell in row("p1", 1, CANARY).items() if name != without}]
    with pytest.raises(DataError) as refused:
        loaded(tmp_path, rows, by=SEX)
    assert f"- {problem}" in str(refused.value).splitlines()


def test_problems_show_no_cell(tmp_path: Path) -> None:
    bad = [row(CANARY, 1, CANARY, CANARY, born=""), row("", 2, CANARY, "f", born="")]
    with pytest.raises(DataError) as refused:
        loaded(tmp_path, bad, by=SEX)
    assert str(refused.value).splitlines() == [
        "t.csv does not fit what was asked:",
        "- column 'person' has missing values, which the contract does not allow",
        "- column 'sex' has values outside the levels of the group sex, which has no other",
        "- column 'born' has no value in any row, so nobody has a match key",
    ]
    loaded(tmp_path, [row("p1", 1, CANARY), row("p2", 1, CANARY)])
    with pytest.raises(DataError, match="fewer people than the 3 that are required"):
        load_keys(MATCHED, tmp_path / "t.csv", "police", min_people=3)
    with pytest.raises(DataError, match=r"^the contract small has no match, so nothing says when"):
        load_keys(replace(MATCHED, match=None), tmp_path / "t.csv", "police", min_people=0)
    assert CANARY not in repr(loaded(tmp_path, [row("p1", 1, CANARY)]))
