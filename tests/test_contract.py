"""The data contract: one value, one hash, and every problem at once without a cell."""

import copy
import hashlib
import json
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from models.contract import Category, Contract, ContractError, Number, validate

CANARY = "CANARY-7731"

FULL = yaml.safe_load("""
name: early_warning
version: 2
description: A contract that uses every setting.
purpose: early-warning
unit: {kind: person, column: person_id, rows: 2, order_by: month}
kinds: [police, probation, health, council]
blocks:
  custody: {held_by: [police, probation]}
  care: {held_by: [health]}
columns:
  age:      {type: number, min: 18, max: 90, unit: years, center: 40, scale: 15}
  arrests:  {type: number, min: 0, max: 50, unit: count, log: true, block: custody}
  severity: {type: ordinal, levels: [low, mid, high], missing: indicator}
  charge:   {type: category, levels: [F, M], missing: level}
  in_care:  {type: flag, block: care}
groups:
  sex: {column: sex, levels: {female: [F, Female], male: [M, Male]}, other: false}
  age_band: {column: age, edges: [25, 45], levels: [under 25, 25-44, 45 and over]}
label: {column: two_year_recid, positive: [1], horizon: 2 years, held_by: [police, health]}
site: district
split: {column: split}
""")

SMALL: dict[str, Any] = {
    "name": "small",
    "purpose": "test",
    "unit": {"kind": "person", "column": "id"},
    "columns": {"age": {"type": "number", "min": 0, "max": 10}},
    "label": {"column": "y", "positive": ["1"], "horizon": "1 year"},
}


def changed(base: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """A deep copy with `a__b=value` put at base["a"]["b"]; None removes the key."""
    values = copy.deepcopy(base)
    for path, value in parts.items():
        *way, last = path.split("__")
        place = values
        for key in way:
            place = place.setdefault(key, {})
        if value is None:
            place.pop(last, None)
        else:
            place[last] = copy.deepcopy(value)
    return values


def problems(values: Any) -> tuple[str, ...]:
    with pytest.raises(ContractError) as refused:
        Contract.from_dict(values)
    assert str(refused.value) == "\n".join(refused.value.problems)
    return refused.value.problems


# --- laws of the value ---------------------------------------------------------------------------------

names = st.text("abcdef_ é0123", min_size=1, max_size=8).filter(lambda text: text == text.strip())
slugs = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,9}", fullmatch=True)
level_lists = st.lists(names, min_size=2, max_size=5, unique=True)
number = st.integers(-100, 100).flatmap(
    lambda low: st.fixed_dictionaries(
        {"type": st.just("number"), "min": st.just(low), "max": st.integers(low + 1, 300)},
        optional={
            "log": st.booleans(),
            "scale": st.floats(0.5, 9),
            "unit": names,
            "missing": st.just("indicator"),
        },
    )
)
ordinal = st.fixed_dictionaries(
    {"type": st.just("ordinal"), "levels": level_lists}, optional={"missing": st.just("indicator")}
)
category = st.fixed_dictionaries(
    {"type": st.just("category"), "levels": level_lists}, optional={"missing": st.just("level")}
)
flag = st.fixed_dictionaries({"type": st.just("flag")}, optional={"missing": st.just("indicator")})
blocks = st.fixed_dictionaries({"held_by": st.sampled_from([["police"], ["health", "police"]])})


@st.composite
def contracts(draw: st.DrawFn) -> dict[str, Any]:
    columns = draw(st.dictionaries(names.map("c:{}".format), number | ordinal | category | flag, min_size=1))
    values: dict[str, Any] = {"name": draw(slugs), "version": draw(st.integers(1, 9)), "purpose": draw(slugs)}
    values["columns"] = columns
    values["unit"] = draw(
        st.sampled_from([{"kind": "row"}, {"kind": "person", "column": "id", "rows": 3, "order_by": "month"}])
    )
    values["label"] = {"column": "y", "positive": draw(level_lists), "horizon": "1 year"}
    if draw(st.booleans()):
        values["blocks"] = {"b": draw(blocks)}
        next(iter(columns.values()))["block"] = "b"
    groups = draw(st.dictionaries(names, level_lists, max_size=2))
    values["groups"] = {
        name: {"column": "g", "levels": dict(zip(levels, [[level] for level in levels], strict=True))}
        for name, levels in groups.items()
    }
    return values


@given(contracts())
def test_round_trip_through_json_that_sorts_its_keys(values: dict[str, Any]) -> None:
    contract = Contract.from_dict(values)
    again = Contract.from_dict(json.loads(json.dumps(contract.to_dict(), sort_keys=True)))
    assert again == contract
    assert again.to_dict() == contract.to_dict()
    assert again.sha256 == contract.sha256


@given(contracts())
def test_every_group_is_in_one_level_of_each_attribute(values: dict[str, Any]) -> None:
    contract = Contract.from_dict(values)
    everyone = list(range(len(contract.group_names)))
    for margins in contract.group_margins.values():
        assert sorted(place for places in margins.values() for place in places) == everyone


def test_the_full_contract_survives_yaml_too() -> None:
    contract = Contract.from_dict(FULL)
    assert Contract.from_dict(yaml.safe_load(yaml.safe_dump(contract.to_dict()))) == contract


def test_a_default_that_is_written_out_changes_nothing() -> None:
    plain = Contract.from_dict(SMALL)
    spelled = Contract.from_dict(
        changed(
            SMALL, version=1, unit__rows=1, columns__age__log=False, label__positive=[1.0], description=""
        )
    )
    assert spelled == plain
    assert spelled.sha256 == plain.sha256


@pytest.mark.parametrize(
    "change",
    [
        {"columns__age__max": 11},
        {"columns__age__log": True},
        {"columns__age__unit": "years"},
        {"label__positive": ["2"]},
        {"label__horizon": "2 years"},
        {"unit__rows": 2},
        {"version": 2},
        {"purpose": "other-use"},
    ],
)
def test_another_meaning_is_another_hash(change: dict[str, Any]) -> None:
    assert Contract.from_dict(changed(SMALL, **change)).sha256 != Contract.from_dict(SMALL).sha256


def test_the_order_of_columns_is_part_of_the_meaning() -> None:
    columns = {"a": {"type": "flag"}, "b": {"type": "flag"}}
    one = Contract.from_dict(SMALL | {"columns": columns})
    other = Contract.from_dict(SMALL | {"columns": dict(reversed(columns.items()))})
    assert one.sha256 != other.sha256


def test_the_hash_is_the_sha256_of_this_text() -> None:
    # The canonical text written by hand: signed decisions name this hash, so the form may not drift.
    text = (
        '{"columns":[{"max":10.0,"min":0.0,"name":"age","type":"number"}],"description":"",'
        '"label":{"column":"y","horizon":"1 year","positive":["1"]},"name":"small","purpose":"test",'
        '"unit":{"column":"id","kind":"person"},"version":1}'
    )
    assert Contract.from_dict(SMALL).sha256 == hashlib.sha256(text.encode()).hexdigest()


# --- what a contract says --------------------------------------------------------------------------------


def test_parts_are_values() -> None:
    contract = Contract.from_dict(FULL)
    assert contract.columns[0] == Number("age", 18, 90, "years", center=40, scale=15)
    assert contract.columns[3] == Category("charge", ("F", "M"), missing="level")
    assert (contract.version, contract.site, contract.split) == (2, "district", "split")
    assert contract.label.positive == ("1",)


def test_who_holds_what() -> None:
    contract = Contract.from_dict(FULL)
    assert contract.holds("police", "custody")
    assert not contract.holds("health", "custody")
    assert contract.holds("council", None)
    assert contract.holds(None, None)
    assert [kind for kind in contract.kinds if contract.holds_label(kind)] == ["police", "health"]
    assert Contract.from_dict(SMALL).holds_label(None)


def test_what_a_kind_needs_and_how_it_is_read() -> None:
    contract = Contract.from_dict(FULL)
    assert contract.needs("council") == {
        "person_id": "text",
        "month": "text",
        "age": "number",
        "severity": "text",
        "charge": "text",
        "sex": "text",
        "split": "text",
    }
    assert set(contract.needs("health")) - set(contract.needs("council")) == {"in_care", "two_year_recid"}
    assert contract.needs("police")["arrests"] == "number"


def test_group_names_and_margins() -> None:
    contract = Contract.from_dict(FULL)
    assert contract.group_names == (
        "sex=female & age_band=under 25",
        "sex=female & age_band=25-44",
        "sex=female & age_band=45 and over",
        "sex=female & age_band=other",
        "sex=male & age_band=under 25",
        "sex=male & age_band=25-44",
        "sex=male & age_band=45 and over",
        "sex=male & age_band=other",
    )
    assert contract.group_margins["sex"] == {"female": (0, 1, 2, 3), "male": (4, 5, 6, 7)}
    assert contract.group_margins["age_band"]["other"] == (3, 7)


def test_without_groups_there_is_everyone() -> None:
    contract = Contract.from_dict(SMALL)
    assert contract.group_names == ("everyone",)
    assert contract.group_margins == {}


def test_a_declared_other_is_the_other() -> None:
    groups = {"race": {"column": "race", "levels": {"black": ["B"], "other": ["O"]}}}
    assert Contract.from_dict(SMALL | {"groups": groups}).group_names == ("race=black", "race=other")


def test_levels_may_be_their_own_values() -> None:
    short = {"sex": {"column": "sex", "levels": ["F", "M"]}}
    long = {"sex": {"column": "sex", "levels": {"F": ["F"], "M": ["M"]}}}
    assert Contract.from_dict(SMALL | {"groups": short}) == Contract.from_dict(SMALL | {"groups": long})


# --- refusals of a contract ------------------------------------------------------------------------------

BLOCK = {
    "kinds": ["police", "health"],
    "blocks": {"b": {"held_by": ["health"]}},
    "columns__age__block": "b",
}
SEX = {"sex": {"column": "sex", "levels": {"f": ["F"], "m": ["M"]}}}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": None}, "name is required"),
        ({"name": "Not A Slug"}, "name must be lower-case letters"),
        ({"verzion": 1}, "verzion is not a known setting (did you mean version?)"),
        ({"version": 0}, "version must be a whole number, 1 or more, got 0"),
        ({"label": None}, "label is required"),
        ({"label": "y"}, "label must be a mapping"),
        ({"label__horizon": None}, "label.horizon is required"),
        ({"label__positive": []}, "label.positive must be a list with at least one entry"),
        ({"label__positive": [True]}, "label.positive must be text; write it in quotes"),
        ({"label__positive": ["NA"]}, "label.positive may not list 'NA'"),
        ({"label__column": "age"}, "label.column 'age' must not be a feature too"),
        ({"unit": {"kind": "person"}}, "unit.column is required where the unit is a person"),
        ({"unit": {"kind": "household"}}, "unit.kind must be person or row, got 'household'"),
        ({"unit": {"kind": "row", "rows": 2}}, "unit.kind is row, so"),
        ({"unit__rows": 0}, "unit.rows must be a whole number"),
        ({"unit__column": "age"}, "unit.column 'age' must not be a feature too"),
        ({"unit__column": "y"}, "label, unit and split must have columns of their own, got 'y' twice"),
        ({"split": {"column": "age"}}, "split 'age' must not be a feature too"),
        ({"columns": {}}, "columns must have at least one column"),
        ({"columns": None}, "columns must have at least one column"),
        ({"columns__age__min": 10}, "columns.age.min must be below max, got 10 and 10"),
        ({"columns__age__min": None}, "columns.age.min is required"),
        ({"columns__age__min": "low"}, "columns.age.min must be a number, got 'low'"),
        ({"columns__age__max": float("inf")}, "columns.age.max must be a number"),
        ({"columns__age__type": "text"}, "columns.age.type must be number or ordinal or category or flag"),
        ({"columns__age__type": None}, "columns.age.type is required"),
        ({"columns__age__minimum": 1}, "columns.age.minimum is not a known setting (did you mean min?)"),
        ({"columns__age__center": 11}, "columns.age.center must be from min to max, got 11"),
        ({"columns__age": {"type": "number", "min": 0, "max": 9, "log": True, "center": 3}}, "on the logged"),
        ({"columns__age__scale": 0}, "columns.age.scale must be above 0, got 0"),
        ({"columns__age__missing": "level"}, "columns.age.missing must be indicator, got 'level'"),
        ({"columns__age__log": "yes"}, "columns.age.log must be true or false, got 'yes'"),
        ({"columns__o": {"type": "ordinal", "levels": ["a"]}}, "columns.o.levels must list at least 2"),
        ({"columns__o": {"type": "ordinal", "levels": ["a", "other"]}}, "may not list 'other'"),
        ({"columns__c": {"type": "category", "levels": ["a", "a"]}}, "columns.c.levels lists 'a' twice"),
        ({"columns__c": {"type": "category", "levels": ["a", "nan"]}}, "columns.c.levels may not list 'nan'"),
        ({"columns__c": {"type": "category", "levels": ["a "]}}, "columns.c.levels may not list 'a '"),
        ({"columns__c": {"type": "category", "levels": "a"}}, "columns.c.levels must be a list"),
        ({"columns__c": {"type": "category", "levels": [True]}}, "columns.c.levels must be text"),
        (
            {"columns__age__missing": "indicator", "columns__age missing": {"type": "flag"}},
            "two features would be called 'age missing'",
        ),
        ({"columns__age__block": "b"}, "columns.age.block must be one of the blocks, got 'b'"),
        (BLOCK | {"blocks__b__held_by": []}, "blocks.b.held_by must be a list with at least one entry"),
        (BLOCK | {"blocks__b__held_by": ["polise"]}, "blocks.b.held_by names 'polise', which is not one of"),
        (BLOCK | {"columns__age__block": None}, "blocks.b has no column"),
        (BLOCK | {"label__held_by": ["police"]}, "blocks.b is held by no kind that holds the label"),
        (
            {"kinds": ["police"], "label__held_by": ["council"]},
            "label.held_by names 'council', which is not one of kinds",
        ),
        (BLOCK | {"unit__order_by": "age"}, "unit.order_by 'age' must not be in a block"),
        ({"groups": {"sex": {"column": "sex"}}}, "groups.sex.levels is required"),
        ({"groups": SEX, "groups__sex__levels__f": []}, "groups.sex.levels.f.values must be a list"),
        ({"groups": SEX, "groups__sex__levels__f": ["M"]}, "groups.sex.levels list the value 'M' twice"),
        ({"groups": SEX, "groups__sex__column": "y"}, "groups.sex.column must not be the label"),
        ({"groups": {"a": {"column": "age", "edges": [5], "levels": ["u"]}}}, "must be one more than edges"),
        ({"groups": {"a": {"column": "age", "edges": [5, 5], "levels": ["u", "v", "w"]}}}, "must ascend"),
        (
            {
                "groups": {"a": {"column": "f", "edges": [5], "levels": ["u", "v"]}},
                "columns__f": {"type": "flag"},
            },
            "groups.a.edges needs a number, but columns.f is a flag",
        ),
        (
            BLOCK | {"groups": {"a": {"column": "age", "edges": [5], "levels": ["u", "v"], "other": False}}},
            "groups.a.other must not be false",
        ),
        (
            {"groups": {str(i): {"column": f"g{i}", "levels": list("abcd")} for i in range(3)}},
            "groups must have at most 64 combinations of levels, got 125",
        ),
    ],
)
def test_a_refusal_names_the_key_and_the_rule(change: dict[str, Any], sentence: str) -> None:
    Contract.from_dict(SMALL)
    (problem,) = problems(changed(SMALL, **change))
    assert sentence in problem


def test_all_problems_at_once() -> None:
    values = changed(
        FULL,
        purpose=None,
        colums={},
        unit={"kind": "person"},
        columns__age__min=95,
        columns__charge__levels=[],
        groups__sex__levels__male=[],
        label__held_by=["council"],
    )
    assert problems(values) == (
        "purpose is required",
        "unit.column is required where the unit is a person",
        "columns.age.min must be below max, got 95 and 90",
        "columns.charge.levels must be a list with at least one entry",
        "groups.sex.levels.male.values must be a list with at least one entry",
        "colums is not a known setting (did you mean columns?)",
        "blocks.custody is held by no kind that holds the label, so nothing learns from it",
        "blocks.care is held by no kind that holds the label, so nothing learns from it",
    )


@pytest.mark.parametrize("values", [None, [], "text", 3, {}, {"columns": 3}, {"label": {"column": None}}])
def test_anything_else_is_refused_and_not_a_crash(values: Any) -> None:
    assert problems(values)


# --- a table against a contract --------------------------------------------------------------------------


def text(*values: str | None) -> np.ndarray:
    return np.array(values, dtype=object)


def table(**columns: np.ndarray) -> dict[str, np.ndarray]:
    """Six rows of five people that fit FULL for any kind of agency."""
    good = {
        "person_id": text("01", "02", "03", "04", "05", "05"),
        "month": np.array([1.0, 1, 1, 1, 1, 2]),
        "age": np.array([20.0, 30, 40, 50, 60, 60]),
        "arrests": np.array([0.0, 1, 2, 3, 4, 5]),
        "severity": text("low", "mid", "high", None, "low", "low"),
        "charge": text("F", "M", None, "F", "F", "F"),
        "in_care": text("0", "1", "yes", "no", "True", "FALSE"),
        "sex": text("F", "Female", "M", "Male", "F", "F"),
        "two_year_recid": np.array([0.0, 1, 0, 1, 0, 1]),
        "split": text("train", "train", "train", "tune", "test", "test"),
    }
    return {name: values for name, values in (good | columns).items() if len(values)}


GONE = np.empty(0)


def said(columns: dict[str, np.ndarray], kind: str | None = "police", min_people: int = 0) -> list[str]:
    return [
        str(problem) for problem in validate(Contract.from_dict(FULL), columns, kind, min_people=min_people)
    ]


@pytest.mark.parametrize("kind", FULL["kinds"])
def test_a_good_table_has_no_problem(kind: str) -> None:
    assert said(table(), kind, min_people=5) == []


def test_out_of_bounds_and_unlisted_values_are_no_problem() -> None:
    odd = {
        "age": np.array([-1e9, 1e9, 40, 50, 60, 60]),
        "charge": text(*[CANARY] * 6),
        "two_year_recid": text("1", CANARY, "maybe", "0", "0", "0"),
    }
    assert said(table(**odd)) == []


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"age": GONE}, "column 'age' is not in the table"),
        ({"sex": GONE}, "column 'sex' is not in the table"),
        ({"person_id": GONE}, "column 'person_id' is not in the table"),
        ({"month": GONE}, "column 'month' is not in the table"),
        ({"split": GONE}, "column 'split' is not in the table"),
        ({"two_year_recid": GONE}, "column 'two_year_recid' is not in the table"),
        ({"age": text("20", "30", "40", "50", CANARY, "1")}, "column 'age' must be a number"),
        ({"age": np.array([1, 2, 3, 4, 5, np.inf])}, "column 'age' must be a finite number"),
        ({"age": np.array([1, 2, 3, 4, 5, np.nan])}, "column 'age' has missing values, which the contract"),
        ({"arrests": np.full(6, np.nan)}, "column 'arrests' has no value in any row"),
        ({"severity": text(*[None] * 6)}, "column 'severity' has no value in any row"),
        ({"sex": text("F", "M", CANARY, "M", "F", "F")}, "outside the levels of the group sex, which has no"),
        ({"sex": text("F", "M", None, "M", "F", "F")}, "outside the levels of the group sex, which has no"),
        ({"person_id": text("1", None, "3", "4", "5", "5")}, "column 'person_id' has missing values"),
        ({"month": np.array([1, 1, 1, 1, np.nan, 2])}, "column 'month' has missing values"),
        ({"month": text("May", *["2024-01"] * 4, CANARY)}, "column 'month' must be numbers, or dates"),
        ({"two_year_recid": np.array([0, 1, np.nan, 1, 0, 1])}, "column 'two_year_recid' has missing values"),
        ({"two_year_recid": np.zeros(6)}, "column 'two_year_recid' has one class only"),
        ({"two_year_recid": np.ones(6)}, "column 'two_year_recid' has one class only"),
        ({"two_year_recid": np.full(6, np.nan)}, "column 'two_year_recid' has no value in any row"),
        (
            {"split": text("train", "train", CANARY, "tune", "test", "test")},
            "column 'split' must be train, tune",
        ),
        (
            {"split": text("train", "train", None, "tune", "test", "test")},
            "column 'split' has missing values",
        ),
        ({"split": text(*["train"] * 5, "test")}, "column 'split' must be the same in every row of a person"),
        ({"age": np.zeros(5)}, "the columns of the table must be one-dimensional and equally long"),
    ],
)
def test_a_problem_names_the_column_and_the_rule(columns: dict[str, np.ndarray], sentence: str) -> None:
    (problem,) = said(table(**columns))
    assert sentence in problem
    assert CANARY not in problem


def test_flags_must_be_flags() -> None:
    (problem,) = said(table(in_care=text("0", "1", CANARY, "0", "0", "0")), "health")
    assert problem == "column 'in_care' must be 0 or 1, true or false, yes or no"
    assert said(table(in_care=np.array([-0.0, 1, 1, 0, 1, 0.0])), "health") == []


def test_an_empty_table() -> None:
    empty = {name: values[:0] for name, values in table().items()}
    assert said(empty, min_people=5) == ["the table has no rows"]


def test_fewer_people_than_the_minimum_counts_people_not_rows() -> None:
    assert said(table(), min_people=5) == []
    assert said(table(), min_people=6) == ["the table has fewer people than the 6 that are required"]


def test_ids_are_people_however_they_are_written() -> None:
    ids = text("1", "1.0", "2", "3", "4", "4")
    assert said(table(person_id=ids, split=text(*["train"] * 6)), min_people=5) != []
    assert said(table(person_id=ids, split=text(*["train"] * 6)), min_people=4) == []


def test_several_rows_under_a_one_row_contract_need_an_order() -> None:
    rows = {"id": text("a", "b", "b"), "age": np.zeros(3), "y": np.array([0.0, 1, 1])}
    (problem,) = validate(Contract.from_dict(SMALL), rows, None)
    rule = "has several rows for one person, but the contract says one row and has no order_by"
    assert (problem.column, problem.rule) == ("id", rule)
    assert validate(Contract.from_dict(changed(SMALL, unit__rows=2)), rows, None) == ()
    ordered = Contract.from_dict(changed(SMALL, unit__order_by="age"))
    assert validate(ordered, rows, None) == ()


def test_an_unknown_kind_of_agency() -> None:
    assert said(table(), "navy")[0].startswith("the kind of agency must be one of police, probation")


def test_what_an_agency_does_not_hold_is_neither_required_nor_read() -> None:
    nonsense = text(*[CANARY] * 6)
    assert said(table(arrests=GONE, in_care=GONE, two_year_recid=GONE), "council") == []
    assert said(table(arrests=nonsense, in_care=nonsense, two_year_recid=text(*[None] * 6)), "council") == []


def test_every_problem_of_a_table_at_once() -> None:
    bad = table(
        age=text("20", CANARY, None, "50", "60", "60"),
        arrests=GONE,
        severity=text(*[None] * 6),
        two_year_recid=np.zeros(6),
        split=text(CANARY, *["train"] * 5),
    )
    assert said(bad, min_people=100) == [
        "column 'arrests' is not in the table",
        "column 'age' has missing values, which the contract does not allow",
        "column 'severity' has no value in any row",
        "column 'age' must be a number",
        "column 'two_year_recid' has one class only, but a label needs people with and without the outcome",
        "column 'split' must be train, tune or test in every row",
        "the table has fewer people than the 100 that are required",
    ]
