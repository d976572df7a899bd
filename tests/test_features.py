"""Encoding looks at one person at a time and at declared bounds alone; the split is a keyed hash."""

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.contract import Contract
from models.features import Encoded, assignment, encode, layout, row_ids, split

KEY = b"a secret that only the node knows"
FRACTIONS = {"train": 0.6, "tune": 0.2, "test": 0.2}

VALUES: dict[str, Any] = {
    "name": "everything",
    "purpose": "test",
    "unit": {"kind": "person", "column": "id", "rows": 1, "order_by": "month"},
    "kinds": ["police", "health"],
    "blocks": {"custody": {"held_by": ["police"]}, "care": {"held_by": ["health"]}},
    "columns": {
        "age": {"type": "number", "min": 18, "max": 90},
        "arrests": {
            "type": "number",
            "min": 0,
            "max": 50,
            "log": True,
            "missing": "indicator",
            "block": "custody",
        },
        "severity": {"type": "ordinal", "levels": ["low", "mid", "high"], "missing": "indicator"},
        "charge": {"type": "category", "levels": ["F", "M"], "missing": "level"},
        "in_care": {"type": "flag", "missing": "indicator", "block": "care"},
    },
    "groups": {
        "sex": {"column": "sex", "levels": {"female": ["F", "Female"], "male": ["M"]}},
        "age_band": {
            "column": "age",
            "edges": [25, 45],
            "levels": ["young", "middle", "old"],
            "other": False,
        },
    },
    "label": {"column": "y", "positive": [1], "horizon": "1 year"},
}
NAMES = (
    "age",
    "arrests",
    "arrests missing",
    "severity",
    "severity=other",
    "severity missing",
    "charge=F",
    "charge=M",
    "charge=other",
    "charge=missing",
    "in_care",
    "in_care missing",
    "not held: custody",
    "not held: care",
)


def contract(**unit: Any) -> Contract:
    return Contract.from_dict(VALUES | {"unit": VALUES["unit"] | unit})


def by_row() -> Contract:
    return Contract.from_dict(VALUES | {"unit": {"kind": "row"}})


def pick(rng: np.random.Generator, n: int, *values: str | None) -> np.ndarray:
    return np.array(values, dtype=object)[rng.integers(0, len(values), n)]


def sample(n: int = 300, people: int = 120, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows with everything in them: out of bounds, unlisted, missing; `month` is distinct within a person."""
    rng = np.random.default_rng(seed)
    arrests = rng.integers(-5, 90, n).astype(float)
    arrests[rng.random(n) < 0.2] = np.nan
    return {
        "id": np.array([f"p{i:03d}" for i in rng.integers(0, people, n)], dtype=object),
        "month": rng.permutation(n).astype(float),
        "age": rng.normal(50, 40, n),
        "arrests": arrests,
        "severity": pick(rng, n, "low", "mid", "high", "odd", None),
        "charge": pick(rng, n, "F", "M", "X", None),
        "in_care": pick(rng, n, "0", "1", "yes", "No", "TRUE", None),
        "sex": pick(rng, n, "F", "Female", "M", "?", None),
        "y": rng.integers(0, 2, n).astype(float),
    }


def rows(table: dict[str, np.ndarray], places: Any) -> dict[str, np.ndarray]:
    return {name: values[places] for name, values in table.items()}


def same(a: Encoded, b: Encoded) -> None:
    """Equal to the last bit, person by person."""
    order, other = np.argsort(a.ids), np.argsort(b.ids)
    for name in ("ids", "x", "y", "present", "group"):
        np.testing.assert_array_equal(getattr(a, name)[order], getattr(b, name)[other], err_msg=name)


# --- laws ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3])
def test_a_person_is_encoded_as_if_alone(k: int) -> None:
    table = sample()
    everybody = encode(contract(rows=k), table, "police")
    for i in range(0, len(everybody.ids), 7):
        alone = encode(contract(rows=k), rows(table, table["id"] == everybody.ids[i]), "police")
        assert alone.ids.tolist() == [everybody.ids[i]]
        np.testing.assert_array_equal(alone.x[0], everybody.x[i])
        np.testing.assert_array_equal(alone.present[0], everybody.present[i])
        assert alone.group[0] == everybody.group[i]


@pytest.mark.parametrize("k", [1, 3])
def test_the_order_of_rows_is_irrelevant(k: int) -> None:
    table = sample()
    shuffled = rows(table, np.random.default_rng(1).permutation(300))
    same(encode(contract(rows=k), table, "police"), encode(contract(rows=k), shuffled, "police"))


def test_rows_of_a_row_contract_move_together() -> None:
    table, order = sample(), np.random.default_rng(1).permutation(300)
    one, other = encode(by_row(), table, "police"), encode(by_row(), rows(table, order), "police")
    np.testing.assert_array_equal(one.x[order], other.x)
    np.testing.assert_array_equal(one.group[order], other.group)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=False), min_size=1, max_size=20))
def test_whatever_a_number_is_its_feature_is_within_bounds(numbers: list[float]) -> None:
    table = rows(sample(), np.arange(len(numbers)))
    table["age"] = np.nan_to_num(np.array(numbers))
    table["arrests"] = np.array(numbers)
    x = encode(by_row(), table, "police").x
    assert np.isfinite(x).all()
    assert np.abs(x).max() <= 1


def test_what_an_agency_does_not_hold_is_zero_and_said() -> None:
    table, names, blocks = sample(), layout(contract()).names, layout(contract()).block
    for kind, other in (("police", "care"), ("health", "custody")):
        lacking = {name: v for name, v in table.items() if name not in ("arrests", "in_care")}
        held = "arrests" if kind == "police" else "in_care"
        x = encode(contract(), lacking | {held: table[held]}, kind).x
        foreign = [i for i, block in enumerate(blocks) if block == other]
        assert foreign
        assert not x[:, foreign].any()
        assert (x[:, names.index(f"not held: {other}")] == 1).all()
        own = "custody" if kind == "police" else "care"
        assert (x[:, names.index(f"not held: {own}")] == 0).all()
        same(encode(contract(), table, kind), encode(contract(), lacking | {held: table[held]}, kind))


def test_absent_rows_are_zero_and_not_present() -> None:
    people = encode(contract(rows=4), sample(), "police")
    n = len(people.ids)
    assert people.x.shape == (n, 4, len(NAMES))
    assert people.y is not None
    assert people.y.shape == people.present.shape == (n, 4)
    assert 0 < (people.present == 0).mean() < 1
    assert not people.x[people.present == 0].any()
    assert not people.y[people.present == 0].any()
    assert (people.present[:, -1] == 1).all()
    assert (np.diff(people.present, axis=1) >= 0).all()


def test_the_last_of_several_rows_is_the_one_of_a_one_row_contract() -> None:
    several, one = encode(contract(rows=4), sample(), "police"), encode(contract(), sample(), "police")
    np.testing.assert_array_equal(several.x[:, -1], one.x)
    np.testing.assert_array_equal(several.group, one.group)


# --- oracles -----------------------------------------------------------------------------------------------


def test_the_layout_names_every_feature_and_its_block() -> None:
    assert layout(contract()).names == NAMES
    blocks = dict(zip(NAMES, layout(contract()).block, strict=True))
    assert {name for name, block in blocks.items() if block == "custody"} == {"arrests", "arrests missing"}
    assert {name for name, block in blocks.items() if block == "care"} == {"in_care", "in_care missing"}


def test_values_by_hand() -> None:
    table = {
        "age": np.array([18.0, 54, 200]),
        "arrests": np.array([50.0, -3, np.nan]),
        "severity": np.array(["high", "odd", None], dtype=object),
        "charge": np.array(["M", "X", None], dtype=object),
        "sex": np.array(["F", "M", None], dtype=object),
        "y": np.array(["1", "0", "1.0"], dtype=object),
    }
    people = encode(by_row(), table, "police")
    expected = [
        [-1, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1],
        [0, -1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 1],
        [1, 0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1],
    ]
    np.testing.assert_array_equal(people.x, np.array(expected, dtype=np.float32))
    assert people.x.dtype == np.float32
    assert people.y is not None
    assert people.y.tolist() == [1, 0, 1]
    assert people.clipped == {"age": 1, "arrests": 1}
    assert people.unknown == {"severity": 1, "charge": 1}
    assert len(set(people.ids)) == 3
    names = [contract().group_names[place] for place in people.group]
    assert names == ["sex=female & age_band=young", "sex=male & age_band=old", "sex=other & age_band=old"]


@pytest.mark.parametrize(
    ("settings", "formula"),
    [
        ({}, lambda v: (v - 5) / 5),
        ({"center": 2, "scale": 4}, lambda v: (v - 2) / 4),
        ({"log": True}, lambda v: 2 * np.log1p(v) / np.log(11) - 1),
        ({"log": True, "center": 0.25, "scale": 2}, lambda v: (np.log1p(v) / np.log(11) - 0.25) / 2),
    ],
)
def test_a_number_is_scaled_by_its_declared_center_and_scale(settings: dict[str, Any], formula: Any) -> None:
    columns = {"v": {"type": "number", "min": 0, "max": 10} | settings}
    one = Contract.from_dict(
        VALUES | {"columns": columns, "groups": {}, "blocks": {}, "unit": {"kind": "row"}}
    )
    values = np.array([-4.0, 0, 1, 2.5, 10, 12])
    encoded = encode(one, {"v": values}, "police").x[:, 0]
    np.testing.assert_allclose(encoded, formula(np.clip(values, 0, 10)), rtol=1e-6)


def test_categories_are_the_dummies_of_pandas() -> None:
    table = sample()
    levels = [v if v in ("F", "M") else "missing" if v is None else "other" for v in table["charge"]]
    dummies = pd.get_dummies(pd.Categorical(levels, categories=["F", "M", "other", "missing"]))
    at = NAMES.index("charge=F")
    np.testing.assert_array_equal(encode(by_row(), table, "police").x[:, at : at + 4], dummies.to_numpy())


@pytest.mark.parametrize("k", [1, 2, 3])
def test_rows_are_bounded_as_pandas_would(k: int) -> None:
    table = sample()
    people = encode(contract(rows=k), table, "police")
    frame = pd.DataFrame({"id": table["id"], "month": table["month"], "row": np.arange(300)})
    kept = frame.sort_values("month").groupby("id")["row"].apply(lambda values: values.tail(k).tolist())
    single = encode(by_row(), table, "police")
    for person, present, x in zip(
        people.ids, people.present, people.x.reshape(len(people.ids), k, -1), strict=True
    ):
        assert np.sum(present) == len(kept[person])
        np.testing.assert_array_equal(x[k - len(kept[person]) :], single.x[kept[person]])


def test_without_an_order_the_last_in_the_file_is_the_most_recent() -> None:
    last = Contract.from_dict(VALUES | {"unit": {"kind": "person", "column": "id", "rows": 2}})
    table = sample()
    here = np.arange(300)
    same(
        encode(last, table, "police"),
        encode(contract(rows=2), table | {"month": here.astype(float)}, "police"),
    )


@pytest.mark.parametrize(
    "months",
    [["2024-01-31", "2023-12-01", "2024-02-01"], ["9", "2", "10"], ["2024-01", "2023-12", "2024-02"]],
)
def test_text_that_is_dates_or_numbers_orders_rows(months: list[str]) -> None:
    table = rows(sample(), np.arange(3)) | {
        "id": np.array(["a"] * 3, dtype=object),
        "month": np.array(months, dtype=object),
    }
    people = encode(contract(rows=3), table, "police")
    np.testing.assert_array_equal(people.x[0], encode(by_row(), rows(table, [1, 0, 2]), "police").x)


def test_of_equal_months_the_later_row_counts() -> None:
    table = rows(sample(), np.arange(2)) | {"id": np.array(["a", "a"], dtype=object), "month": np.zeros(2)}
    np.testing.assert_array_equal(
        encode(contract(), table, "police").x[0], encode(by_row(), table, "police").x[1]
    )


def test_groups_are_those_of_pandas() -> None:
    table = sample()
    people = encode(by_row(), table, "police")
    sex = [{"F": "female", "Female": "female", "M": "male"}.get(str(v), "other") for v in table["sex"]]
    bins = [-np.inf, 25, 45, np.inf]
    bands = pd.cut(table["age"], bins, right=False, labels=["young", "middle", "old"])
    names = [f"sex={s} & age_band={band}" for s, band in zip(sex, bands, strict=True)]
    assert [contract().group_names[place] for place in people.group] == names


def test_margins_collect_an_attribute_level() -> None:
    table = sample()
    group = encode(by_row(), table, "police").group
    females = np.isin(group, contract().group_margins["sex"]["female"])
    np.testing.assert_array_equal(females, np.isin(table["sex"].astype(str), ["F", "Female"]))


def test_a_group_in_a_block_that_is_not_held_is_other() -> None:
    groups = {"in_care": {"column": "in_care", "levels": {"yes": ["1"], "no": ["0"]}}}
    one = Contract.from_dict(VALUES | {"groups": groups})
    table = sample()
    del table["in_care"]
    assert set(encode(one, table, "police").group.tolist()) == {one.group_names.index("in_care=other")}


def test_the_label_is_none_where_it_is_not_held_or_not_known_yet() -> None:
    label = VALUES["label"] | {"held_by": ["police"]}
    columns = {name: v for name, v in VALUES["columns"].items() if name != "in_care"}
    one = Contract.from_dict(
        VALUES | {"label": label, "columns": columns, "blocks": {"custody": {"held_by": ["police"]}}}
    )
    table = sample()
    assert encode(one, table, "police").y is not None
    assert encode(one, table, "health").y is None
    del table["y"]
    assert encode(one, table, "police").y is None


def test_a_table_that_nobody_validated_is_refused_without_a_cell() -> None:
    canary = np.array(["CANARY-7731"] * 300, dtype=object)
    with pytest.raises(ValueError, match="column 'age' must be a number") as refused:
        encode(contract(), sample() | {"age": canary}, "police")
    assert "CANARY" not in str(refused.value)
    table = sample()
    del table["charge"]
    with pytest.raises(ValueError, match="column 'charge' is not in the table"):
        encode(contract(), table, "police")


def test_nothing_prints_records() -> None:
    people = encode(contract(), sample(), "police")
    assert people.ids[0] not in repr(people)
    assert "array" not in repr(people)


# --- names of rows ----------------------------------------------------------------------------------------

cells_ = st.fixed_dictionaries(
    {
        "age": st.sampled_from([20.0, 30.0, 95.0]),
        "arrests": st.sampled_from([0.0, 1.0, float("nan")]),
        "charge": st.sampled_from(["F", "X", None]),
        "y": st.sampled_from(["0", "1"]),
    }
)


def table_of(cells: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    table = rows(sample(1), np.zeros(len(cells), dtype=int))
    for name in ("charge", "y"):
        table[name] = as_ids([row[name] for row in cells])
    for name in ("age", "arrests"):
        table[name] = np.array([row[name] for row in cells])
    return table


def text_of(row: dict[str, Any]) -> str:
    return repr(sorted(row.items()))


def dealt(cells: list[dict[str, Any]]) -> Counter[tuple[str, str]]:
    """How often each row, by what it holds, is in each part."""
    parts = split(encode(by_row(), table_of(cells), "police").ids, FRACTIONS, KEY)
    return Counter(zip(map(text_of, cells), parts.tolist(), strict=True))


@given(st.lists(cells_, min_size=2, max_size=25), st.data())
def test_one_row_less_changes_one_row_of_one_part(cells: list[dict[str, Any]], data: st.DataObject) -> None:
    """Also among rows that are alike: 54 different rows, so lists of 25 have several."""
    i = data.draw(st.integers(0, len(cells) - 1))
    lost = dealt(cells) - dealt(cells[:i] + cells[i + 1 :])
    assert dealt(cells[:i] + cells[i + 1 :]) < dealt(cells)
    assert [row for row, _ in lost.elements()] == [text_of(cells[i])]


def test_rows_that_are_put_in_front_deal_nobody_anew() -> None:
    old, new = sample(200, seed=0), sample(50, seed=1)
    both = {name: np.concatenate([new[name], old[name]]) for name in old}
    before = split(row_ids(by_row(), old, "police"), FRACTIONS, KEY)
    after = split(row_ids(by_row(), both, "police"), FRACTIONS, KEY)
    np.testing.assert_array_equal(after[50:], before)
    assert set(before) == {"train", "tune", "test"}


def test_any_cell_that_the_contract_needs_names_a_row_and_no_other_does() -> None:
    table = rows(sample(300), np.arange(1))
    (name,) = row_ids(by_row(), table, "police")
    needed = by_row().needs("police")
    for column, values in table.items():
        other = np.nan_to_num(values) + 1 if values.dtype.kind == "f" else as_ids(["another"])
        (changed,) = row_ids(by_row(), table | {column: other}, "police")
        assert (changed != name) == (column in needed), column
    assert set(needed) == set(table) - {"id", "month", "in_care"}


def test_many_rows_are_named_as_few_and_rows_that_are_alike_are_numbered() -> None:
    table = rows(sample(300), np.arange(140_000) % 300)  # three chunks
    ids = row_ids(by_row(), table, "police")
    assert len(set(ids)) == len(ids)
    one = row_ids(by_row(), rows(table, np.arange(300)), "police")
    assert ids[:300].tolist() == one.tolist()
    assert {i.rpartition("-")[0] for i in ids} == {i.rpartition("-")[0] for i in one}


def test_an_assignment_is_named_by_who_is_where_in_any_order() -> None:
    ids, parts = as_ids(["a", "b", "c"]), as_ids(["train", "test", "train"])
    name = assignment(ids, parts, KEY)
    assert assignment(ids[::-1], parts[::-1], KEY) == name
    others = [
        assignment(ids, parts, KEY + b"!"),
        assignment(ids, as_ids(["test", "test", "train"]), KEY),
        assignment(ids, as_ids(["test", "train", "train"]), KEY),
        assignment(ids[:2], parts[:2], KEY),
        assignment(as_ids(["a", "b", "d"]), parts, KEY),
    ]
    assert len({name, *others}) == 6
    assert assignment(ids, parts, bytes(200)) != name


# --- the split ---------------------------------------------------------------------------------------------

some_ids = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=30, unique=True)


def as_ids(values: list[str]) -> np.ndarray:
    ids = np.empty(len(values), dtype=object)
    ids[:] = values
    return ids


@given(some_ids, some_ids)
def test_who_comes_later_changes_nobodys_part(early: list[str], late: list[str]) -> None:
    before = dict(zip(early, split(as_ids(early), FRACTIONS, KEY), strict=True))
    both = sorted({*early, *late})
    after = dict(zip(both, split(as_ids(both), FRACTIONS, KEY), strict=True))
    assert {i: after[i] for i in early} == before


def test_the_same_id_is_always_in_the_same_part() -> None:
    ids = as_ids(["a", "b", "a", "c", "a"])
    parts = split(ids, FRACTIONS, KEY)
    assert parts[0] == parts[2] == parts[4]


def test_a_larger_test_part_keeps_those_who_were_in_it() -> None:
    ids = as_ids([str(i) for i in range(2000)])
    small = split(ids, {"train": 0.8, "tune": 0.1, "test": 0.1}, KEY) == "test"
    large = split(ids, {"train": 0.5, "tune": 0.1, "test": 0.4}, KEY) == "test"
    assert (large >= small).all()


def test_shares_are_the_fractions_and_another_key_is_another_split() -> None:
    n = 20_000
    ids = as_ids([str(i) for i in range(n)])
    one, other = split(ids, FRACTIONS, KEY), split(ids, FRACTIONS, KEY + b"!")
    for part, share in FRACTIONS.items():
        # five standard deviations of a binomial count
        assert abs(np.sum(one == part) - n * share) < 5 * np.sqrt(n * share * (1 - share))
    # independent splits agree with probability .6^2 + .2^2 + .2^2 = .44
    assert np.mean(one == other) == pytest.approx(0.44, abs=0.02)


def test_a_part_may_be_everybody_and_a_key_may_be_long() -> None:
    ids = as_ids([str(i) for i in range(500)])
    assert set(split(ids, {"test": 1.0}, KEY)) == {"test"}
    assert set(split(ids, {"train": 0.5, "test": 0.5}, bytes(200))) == {"train", "test"}
    assert len(split(ids[:0], FRACTIONS, KEY)) == 0


@pytest.mark.parametrize(
    ("fractions", "key", "rule"),
    [
        ({"train": 0.6, "test": 0.2}, KEY, "add up to 1"),
        ({"train": 1.2, "test": -0.2}, KEY, "add up to 1"),
        ({"train": 0.5, "valid": 0.5}, KEY, "shares of train, tune, test"),
        (FRACTIONS, b"", "key of a split must not be empty"),
    ],
)
def test_an_impossible_split_is_refused(fractions: dict[str, float], key: bytes, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        split(as_ids(["a"]), fractions, key)


def test_an_explicit_split_is_taken_from_the_column() -> None:
    one = Contract.from_dict(VALUES | {"split": {"column": "part"}})
    table = sample()
    parts = {person: ("train", "tune", "test")[i % 3] for i, person in enumerate(sorted(set(table["id"])))}
    people = encode(one, table | {"part": as_ids([parts[i] for i in table["id"]])}, "police")
    assert people.part is not None
    assert people.part.tolist() == [parts[i] for i in people.ids]
    assert encode(contract(), table, "police").part is None
