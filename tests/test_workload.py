"""The queries of a demand map: exact without noise, covered with it, and each mistake a sentence."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from models.contract import Contract
from models.design import Counted, answer, design
from models.marginals import WorkloadError
from models.workload import OUTSIDE, Workload, read

CONTRACT = Contract.from_dict(
    {
        "name": "needs",
        "purpose": "planning",
        "unit": {"kind": "person", "column": "id", "rows": 1, "order_by": "seen"},
        "columns": {
            "age": {"type": "number", "min": 0, "max": 100},
            "need": {"type": "category", "levels": ["housing", "health", "debt"]},
            "offender": {"type": "flag"},
            "severity": {"type": "ordinal", "levels": ["low", "high"]},
        },
        "groups": {"sex": {"column": "sex", "levels": {"female": ["F"], "male": ["M"]}}},
        "label": {"column": "label", "positive": ["1"], "horizon": "a year"},
    }
)
WORKLOAD: dict[str, Any] = {
    "name": "first-look",
    "attributes": {
        "age_band": {"column": "age", "edges": [18, 40]},
        "month": {"column": "seen", "first": "2024-01", "months": 3},
    },
    "queries": [
        {"count": "everybody"},
        {"count": {"need": ["housing", "debt"], "offender": True}, "name": "housing or debt"},
        {"rate": {"of": {"need": "health"}, "among": {"offender": "yes"}}},
        {"rate": {"of": {"need": "health"}}, "by": ["sex"], "name": "health by sex"},
        {"histogram": "age_band"},
        {"crosstab": ["need", "sex"], "where": {"severity": "high"}},
        {"series": {"by": "month", "of": {"need": "housing"}}},
    ],
}
RATE = "need health among offender yes"


@pytest.fixture(scope="module")
def people() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    n = 4000
    return pd.DataFrame(
        {
            "age": rng.integers(0, 90, n).astype(float),
            "need": rng.choice(["housing", "health", "debt", "moon"], n),
            "offender": rng.choice(["yes", "no", "1", "0"], n),
            "severity": rng.choice(["low", "high"], n),
            "sex": rng.choice(["F", "M", "X"], n),
            "seen": rng.choice(["2024-01-03", "2024-02-14", "2024-03-31", "2024-07-01"], n),
        }
    )


def columns(people: pd.DataFrame) -> dict[str, np.ndarray]:
    return {name: people[name].to_numpy(dtype=float if name == "age" else object) for name in people.columns}


def answers(workload: Workload, people: pd.DataFrame, sigma: float = 0.0) -> dict[str, Any]:
    """Every answer, with noise of `sigma` times the sensitivity."""
    asked, rng = design(workload), np.random.default_rng(1)
    noise = sigma * asked.sensitivity
    released = asked.measure(Counted(workload.codes(columns(people), "person"), len(people), {}, 0))
    reading = asked.read(released + rng.normal(0, noise, asked.numbers), noise**2)
    return {query.name: answer(query, [reading]) for query in workload.queries}


def test_without_noise_every_answer_is_what_pandas_counts(people: pd.DataFrame) -> None:
    found = answers(read(WORKLOAD, CONTRACT), people)
    value = {name: {cell.levels: cell.estimate.value for cell in cells} for name, cells in found.items()}
    offends = people.offender.isin(["yes", "1"])
    assert value["everybody"] == {(): pytest.approx(len(people))}
    two = people.need.isin(["housing", "debt"]) & offends
    assert value["housing or debt"] == {(): pytest.approx(two.sum())}
    share = (people[offends].need == "health").mean()
    assert value[RATE] == {(): pytest.approx(share)}
    by_sex = (
        (people.need == "health").groupby(people.sex.map({"F": "female", "M": "male", "X": "other"})).mean()
    )
    assert value["health by sex"] == {(sex,): pytest.approx(by_sex[sex]) for sex in by_sex.index}
    bands = pd.cut(people.age, [-1, 17.5, 39.5, 200], labels=["under 18", "18 to under 40", "40 or more"])
    counted = bands.value_counts()
    assert value["age_band"] == {
        **{(str(band),): pytest.approx(counted[band]) for band in counted.index},
        ("other",): pytest.approx(0, abs=1e-6),
    }
    severe = people[people.severity == "high"]
    for (need, sex), count in value["need by sex"].items():
        own = {"female": "F", "male": "M", "other": "X"}[sex]
        wanted = ~severe.need.isin(["housing", "health", "debt"]) if need == "other" else severe.need == need
        assert count == pytest.approx((wanted & (severe.sex == own)).sum(), abs=1e-6)
    series = value["need housing by month"]
    assert set(series) == {("2024-01",), ("2024-02",), ("2024-03",)}
    assert OUTSIDE not in {levels[0] for levels in series}
    housing = people[people.need == "housing"].seen.str[:7].value_counts()
    assert series == {month: pytest.approx(housing[month[0]]) for month in series}


def test_what_cannot_be_told_from_noise_is_not_shown(people: pd.DataFrame) -> None:
    found = answers(read(WORKLOAD, CONTRACT), people[:40], 30.0)
    assert not any(cell.estimate.publishable for cells in found.values() for cell in cells)
    for cells in found.values():
        for cell in cells:
            one = cell.estimate
            assert one.value is None or 0 <= one.low <= one.value <= one.high


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"queries": [{"count": {"colour": "red"}}]},
            "queries\\[0\\].count names 'colour', which is no attribute here",
        ),
        (
            {"queries": [{"count": {"need": "moon"}}]},
            "queries\\[0\\].count need has no level 'moon': it has housing",
        ),
        (
            {"queries": [{"count": {}, "histogram": "need"}]},
            "queries\\[0\\] must have exactly one of count, rate",
        ),
        ({"queries": [{"mean": "age"}]}, "must have exactly one of count, rate, histogram, crosstab, series"),
        ({"queries": []}, "queries must be a list of queries, one at least"),
        ({"queries": [{"histogram": "age"}]}, "names 'age', a number: cut it at edges"),
        ({"queries": [{"series": {"by": "need"}}]}, "by must be an attribute of months, got 'need'"),
        ({"queries": [{"count": {}}, {"count": {}}]}, "'everybody' is there twice: name each query"),
        ({"queries": [{"count": {}, "wher": {}}]}, "queries\\[0\\].wher is not a known setting"),
        (
            {"attributes": {"a": {"column": "need", "edges": [1]}}},
            "attributes.a.column must be a number of the contract",
        ),
        (
            {"attributes": {"a": {"column": "age", "edges": [2, 1]}}},
            "attributes.a.edges must be numbers in ascending order",
        ),
        (
            {"attributes": {"a": {"column": "age", "first": "2024-01"}}},
            "must be the contract's column of dates",
        ),
        ({"attributes": {"a": {"column": "seen", "first": "2024-13"}}}, 'must be a month as "2024-01"'),
        ({"name": "First Look"}, "name must be lower-case letters"),
    ],
)
def test_a_mistake_is_a_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(WorkloadError, match=sentence):
        read({**WORKLOAD, **change}, CONTRACT)
