"""Records -> levels: without noise a map is what pandas counts, a person's rows are cut by a key, mistakes are sentences."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clients.records.cells import DataError
from clients.records.counted import load_counted
from models.contract import Contract
from models.design import Counted, answer, design, merged
from models.workload import OUTSIDE, Workload, read

KEY = b"k" * 32


def contract(rows: int = 2) -> Contract:
    return Contract.from_dict(
        {
            "name": "needs",
            "purpose": "planning",
            "unit": {"kind": "person", "column": "id", "rows": rows, "order_by": "seen"},
            "kinds": ["police", "health"],
            "blocks": {"care": {"held_by": ["health"]}},
            "columns": {
                "age": {"type": "number", "min": 0, "max": 100},
                "need": {"type": "category", "levels": ["housing", "health", "debt"]},
                "offender": {"type": "flag"},
                "severity": {"type": "ordinal", "levels": ["low", "high"]},
                "visits": {"type": "ordinal", "levels": ["few", "many"], "block": "care"},
            },
            "groups": {"sex": {"column": "sex", "levels": {"female": ["F"], "male": ["M"]}}},
            "label": {"column": "label", "positive": ["1"], "horizon": "a year"},
        }
    )


WORKLOAD: dict[str, Any] = {
    "name": "first-look",
    "attributes": {
        "age_band": {"column": "age", "edges": [18, 40]},
        "month": {"column": "seen", "first": "2024-01", "months": 4},
    },
    "queries": [
        {"count": "everybody"},
        {"count": {"need": ["housing", "debt"], "offender": True}, "name": "two needs", "by": ["sex"]},
        {"rate": {"of": {"need": "health"}, "among": {"offender": "yes"}}, "name": "share"},
        {"histogram": "age_band"},
        {"crosstab": ["sex", "need"], "where": {"severity": "high"}},
        {"series": {"by": "month", "of": {"need": "housing"}}, "name": "housing"},
        {"series": {"by": "month"}, "each": "person", "name": "people"},
        {"crosstab": ["month", "need"], "each": "row", "name": "rows"},
        {"rate": {"of": {"need": "debt"}}, "by": ["sex"], "each": "row", "name": "share of rows"},
        {"crosstab": ["visits", "sex"], "name": "visits"},
    ],
}


def records(seed: int, people: int = 300, most: int = 2) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    ids = np.repeat([f"p{seed}-{i}" for i in range(people)], rng.integers(1, most + 1, people))
    n = len(ids)
    return pd.DataFrame(
        {
            "id": ids,
            "seen": rng.choice(
                [f"2024-{month:02d}-{day:02d}" for month in (1, 2, 3, 7) for day in range(1, 29)], n
            ),
            "age": rng.choice([3.0, 17.9, 18.0, 25.0, 40.0, 88.0, np.nan], n),
            "need": rng.choice(["housing", "health", "debt", "moon", None], n),
            "offender": rng.choice(["yes", "no", "1", "0", "TRUE"], n),
            "severity": rng.choice(["low", "high"], n),
            "sex": rng.choice(["F", "M", "X"], n),
            "visits": rng.choice(["few", "many"], n),
            "secret": "canary",
        }
    ).sample(frac=1, random_state=seed)


def load(table: pd.DataFrame, folder: Path, asked: Workload, kind: str = "health", **changes: Any) -> Counted:
    path = folder / "records.csv"
    table.to_csv(path, index=False)
    settings: dict[str, Any] = {"min_people": 1, "key": KEY, **changes}
    rules = settings.pop("contract", contract())
    return load_counted(rules, path, asked, kind, **settings)


def levels(table: pd.DataFrame) -> pd.DataFrame:
    """The levels as pandas would write them, without any of our code."""
    return pd.DataFrame(
        {
            "id": table.id,
            "seen": table.seen,
            "age_band": pd.cut(
                table.age,
                [-np.inf, 18, 40, np.inf],
                right=False,
                labels=["under 18", "18 to under 40", "40 or more"],
            )
            .astype(object)
            .where(table.age.notna(), "other"),
            "need": table.need.where(table.need.isin(["housing", "health", "debt"]), "other"),
            "offender": np.where(table.offender.isin(["yes", "1", "TRUE"]), "yes", "no"),
            "severity": table.severity,
            "sex": table.sex.map({"F": "female", "M": "male"}).fillna("other"),
            "month": table.seen.str[:7].where(table.seen.str[:7] <= "2024-04", OUTSIDE),
            "visits": table.visits,
        }
    )


@pytest.mark.parametrize("rows", [7, 65_536])
def test_without_noise_a_map_is_what_pandas_counts_of_the_pooled_rows(tmp_path: Path, rows: int) -> None:
    """Three agencies, one of which lacks a column. Nobody has more rows than k, so every row counts."""
    rules, whole = contract(), read(WORKLOAD, contract())
    tables = {"health": [records(1), records(2)], "police": [records(3)]}
    readings = []
    for kind, own in tables.items():
        asked = design(whole.held_by(rules, kind), rules.unit.rows)
        for table in own:
            found = load(table, tmp_path, asked.workload, kind, rows=rows)
            readings.append(asked.read(asked.measure(found), 0.0))
    everybody = levels(pd.concat([table for own in tables.values() for table in own]))
    carers = levels(pd.concat(tables["health"]))
    cells = {query.name: answer(query, merged(readings)) for query in whole.queries}
    for query in whole.queries:
        pool = carers if query.name == "visits" else everybody
        pool = pool.sort_values("seen", kind="stable")
        if query.counts == "person":
            pool = pool.groupby("id").tail(1)
        for among in (query.among or {},):
            for name, wanted in among.items():
                pool = pool[pool[name].isin(wanted)]
        hits = pool
        for name, wanted in query.where.items():
            hits = hits[hits[name].isin(wanted)]
        for cell in cells[query.name]:
            of, among_of = hits, pool
            for name, level in zip(query.by, cell.levels, strict=True):
                of, among_of = of[of[name] == level], among_of[among_of[name] == level]
            wanted = len(of) if query.among is None else len(of) / len(among_of)
            assert cell.estimate.value == pytest.approx(wanted, abs=1e-6), (query.name, cell.levels)
    assert {cell.levels for cell in cells["housing"]} == {(f"2024-0{month}",) for month in range(1, 5)}
    assert sum(cell.estimate.value or 0 for cell in cells["rows"]) == pytest.approx(
        (everybody.month != OUTSIDE).sum()
    )


def rows_of(found: Counted) -> dict[tuple[int, ...], int]:
    cells, counts = np.unique(np.stack(list(found.row.values())), axis=1, return_counts=True)
    return {tuple(cell): int(count) for cell, count in zip(cells.T.tolist(), counts, strict=True)}


def test_of_one_person_so_many_rows_count_at_most_whoever_else_is_there(tmp_path: Path) -> None:
    """The law that the sensitivity rests on: who else is in the table, or its order, moves nobody's rows."""
    asked = read({**WORKLOAD, "queries": [WORKLOAD["queries"][7]]}, contract())
    table = records(5, people=40, most=9).fillna({"need": "moon"})
    whole = load(table, tmp_path, asked)
    wanted = table.groupby("id").size().clip(upper=2)
    assert whole.rows == wanted.sum()
    together: dict[tuple[int, ...], int] = {}
    for person in table.id.unique():
        alone = load(table[table.id == person], tmp_path, asked)
        assert alone.rows == wanted[person]
        for cell, count in rows_of(alone).items():
            together[cell] = together.get(cell, 0) + count
    assert together == rows_of(whole)


def test_which_rows_count_is_the_keys_choice_not_the_calendars(tmp_path: Path) -> None:
    asked = read({**WORKLOAD, "queries": [WORKLOAD["queries"][7]]}, contract())
    table = records(6, people=400, most=12)
    month = list(asked.attributes).index("month")
    assert rows_of(load(table, tmp_path, asked)) == rows_of(load(table, tmp_path, asked))
    assert rows_of(load(table, tmp_path, asked)) != rows_of(load(table, tmp_path, asked, key=b"other"))
    share = (np.array(list(load(table, tmp_path, asked).row.values())[month]) == 4).mean()  # July: outside
    assert share == pytest.approx((table.seen.str[:7] == "2024-07").mean(), abs=0.05)


def test_only_the_columns_that_are_asked_about_are_read(tmp_path: Path) -> None:
    asked = read({"name": "small", "queries": [{"histogram": "sex"}]}, contract())
    table = records(1)[["id", "seen", "sex"]]
    found = load(table, tmp_path, asked)
    assert set(found.person) == {"sex"}
    assert (found.row, found.rows) == ({}, 0)


def test_a_period_without_data_is_honest_zeros(tmp_path: Path) -> None:
    late = {"month": {"column": "seen", "first": "2030-01", "months": 2}}
    query = {"series": {"by": "month"}, "name": "late"}
    asked = read({"name": "late", "attributes": late, "queries": [query]}, contract())
    plan = design(asked, 2)
    exact, deviation = plan.measure(load(records(1), tmp_path, asked)), 3 * plan.sensitivity
    assert [cell.estimate.value for cell in answer(asked.queries[0], [plan.read(exact, 0.0)])] == [0, 0]
    rng = np.random.default_rng(0)
    noised = plan.read(exact + rng.normal(0, deviation, plan.numbers), deviation**2)
    for cell in answer(asked.queries[0], [noised]):
        assert cell.estimate.low == 0
        assert cell.estimate.publishable is False


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda table: table.drop(columns=["need"]), "column 'need' is not in the table"),
        (lambda table: table.assign(age="old"), "column 'age' must be a number"),
        (lambda table: table.assign(seen="soon"), "column 'seen' must be numbers, or dates"),
        (lambda table: table.assign(id=None), "column 'id' has no value in any row"),
        (lambda table: table.assign(offender="maybe"), "has values outside the levels of the group offender"),
        (lambda table: table[table.id == table.id.iloc[0]], "has fewer people than the 2 that are required"),
    ],
)
def test_a_mistake_is_a_sentence_without_a_cell(change: Any, sentence: str, tmp_path: Path) -> None:
    asked = read(WORKLOAD, contract())
    with pytest.raises(DataError, match=sentence) as caught:
        load(change(records(1)), tmp_path, asked, min_people=2)
    assert "records.csv does not fit the map first-look" in str(caught.value)
    assert not {"old", "soon", "maybe", "canary", "p1-"} & set(str(caught.value).split())


def test_where_the_unit_is_the_row_every_row_is_somebody(tmp_path: Path) -> None:
    rules = Contract.from_dict(
        {
            "name": "rows",
            "purpose": "planning",
            "unit": {"kind": "row"},
            "columns": {"need": {"type": "category", "levels": ["housing", "health"]}},
            "label": {"column": "label", "positive": ["1"], "horizon": "a year"},
        }
    )
    asked = read({"name": "rows", "queries": [{"histogram": "need", "each": "row"}]}, rules)
    assert asked.queries[0].counts == "person"
    table = records(4)
    found = load(table, tmp_path, asked, contract=rules)
    assert found.people == len(table)
    assert np.bincount(found.person["need"])[0] == (table.need == "housing").sum()
