"""The METRICS of result.json: its keys, its values, and that it is plain JSON whatever the noise."""

import json
from typing import Any

import numpy as np
import pytest
from fairlearn.metrics import equalized_odds_difference
from sklearn.metrics import accuracy_score, recall_score

from models.metrics import summarise
from models.scores import ScoreTable, default_edges, tally

EDGES = default_edges()
MARGINS = {
    "sex": {"female": (0, 1), "male": (2, 3)},
    "race": {"a": (0, 2), "b": (1, 3)},
}
NUMBERS = {
    "people", "base_rate", "auc", "auc_bound", "brier", "log_loss", "observed_expected", "ece",
    "selection_rate", "tpr", "fpr", "fnr", "ppv", "accuracy", "net_benefit", "net_benefit_all", "net_benefit_gain",
}  # fmt: skip
ESTIMATE = {"value", "low", "high", "publishable"}


def people(seed: int = 0, n: int = 4000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 4, n)
    z = rng.normal(-0.85 + 0.3 * (group > 1), 1.5)
    return group, 1 / (1 + np.exp(-z)), (rng.random(n) < 1 / (1 + np.exp(-z))).astype(int)


def agencies(sigma: float, n: int = 4000, seed: int = 0) -> dict[str, ScoreTable]:
    rng = np.random.default_rng(seed + 1)
    group, score, y = people(seed, n)
    tables = {}
    for name, i in zip(("police", "health", "council"), np.array_split(rng.permutation(n), 3), strict=True):
        exact = tally(EDGES, group[i], score[i], y[i], 4)
        tables[name] = ScoreTable(EDGES, exact.counts + rng.normal(0, sigma, exact.counts.shape), sigma**2)
    return tables


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for one in value.values() for leaf in leaves(one)]
    if isinstance(value, list):
        return [leaf for one in value for leaf in leaves(one)]
    return [value]


@pytest.mark.parametrize(("sigma", "n"), [(0.0, 4000), (5.0, 4000), (5.0, 30), (50.0, 0)])
def test_it_has_the_keys_of_schema_1_and_is_plain_json(sigma: float, n: int) -> None:
    found = summarise(agencies(sigma, n), MARGINS, 0.5)
    assert set(found) == {
        "overall", "agencies", "groups", "intersections", "gaps", "agency_gaps", "between_agencies", "worst_gap",
        "constant", "conflicts", "capacity", "reliability", "cutoff",
    }  # fmt: skip
    assert list(found["intersections"]) == [
        "sex=female & race=a", "sex=female & race=b", "sex=male & race=a", "sex=male & race=b",
    ]  # fmt: skip
    assert {name: list(each) for name, each in found["agency_gaps"].items()} == {
        name: ["police", "health", "council"] for name in MARGINS
    }
    assert set(found["between_agencies"]) == {"selection_rate", "tpr", "fpr", "ppv", "base_rate"}
    for one in (found["constant"]["nobody"], found["constant"]["everybody"]):
        assert set(one) == {"accuracy", "tpr", "fpr", "net_benefit"}
    assert set(found["constant"]["base_rate"]) == {"brier"}
    assert all(set(each) == {"base_rate_gap", "conflict"} for each in found["conflicts"].values())
    assert found["capacity"] is None
    described = [
        found["overall"],
        *found["agencies"].values(),
        *(m for levels in found["groups"].values() for m in levels.values()),
        *found["intersections"].values(),
    ]
    assert list(found["agencies"]) == ["police", "health", "council"]
    assert {name: set(levels) for name, levels in found["groups"].items()} == {
        "sex": {"female", "male"},
        "race": {"a", "b"},
    }
    for metrics in described:
        assert set(metrics) == NUMBERS
        assert all(set(estimate) == ESTIMATE for estimate in metrics.values())
    for one in found["gaps"].values():
        assert set(one) == {
            "demographic_parity", "equal_opportunity", "equalized_odds", "predictive_parity",
        }  # fmt: skip
        assert all(set(estimate) == ESTIMATE for estimate in one.values())
    assert set(found["worst_gap"]) == {"attribute", "gap", *ESTIMATE}
    assert found["worst_gap"]["gap"] == "equalized_odds"
    assert found["cutoff"] == 0.5
    assert len(found["reliability"]) == 20
    assert all(set(b) == {"low", "high", "mean_score", "observed"} for b in found["reliability"])
    assert {type(leaf) for leaf in leaves(found)} <= {float, bool, str, type(None)}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_without_noise_it_is_the_pooled_rows() -> None:
    group, score, y = people()
    found, chosen = summarise(agencies(0.0), MARGINS, 0.5), (score >= 0.5).astype(int)
    sex, race = group // 2, group % 2
    assert found["overall"]["people"] == {"value": 4000, "low": 4000, "high": 4000, "publishable": True}
    assert found["overall"]["accuracy"]["value"] == pytest.approx(accuracy_score(y, chosen))
    assert found["groups"]["sex"]["male"]["tpr"]["value"] == pytest.approx(
        recall_score(y[sex == 1], chosen[sex == 1])
    )
    assert found["groups"]["race"]["a"]["people"]["value"] == (race == 0).sum()
    odds = {
        "sex": equalized_odds_difference(y, chosen, sensitive_features=sex),
        "race": equalized_odds_difference(y, chosen, sensitive_features=race),
    }
    for name, gap in odds.items():
        assert found["gaps"][name]["equalized_odds"]["value"] == pytest.approx(gap)
    assert found["worst_gap"]["attribute"] == max(odds, key=lambda name: odds[name])
    assert found["worst_gap"]["value"] == pytest.approx(max(odds.values()))
    assert sum(one["people"]["value"] for one in found["agencies"].values()) == 4000


def test_how_people_are_split_over_agencies_changes_only_the_agencies() -> None:
    group, score, y = people()
    whole = summarise({"all": tally(EDGES, group, score, y, 4)}, MARGINS, 0.5)
    parts = summarise(agencies(0.0), MARGINS, 0.5)
    of_agencies = dict.fromkeys(("agencies", "agency_gaps", "between_agencies"))
    assert whole | of_agencies == parts | of_agencies
    assert whole["agencies"]["all"] == whole["overall"]


def test_the_order_of_agencies_is_irrelevant() -> None:
    tables = agencies(5.0)
    forth = summarise(tables, MARGINS, 0.5)
    back = summarise(dict(reversed(tables.items())), MARGINS, 0.5)
    for one, other in zip(leaves(forth["overall"]), leaves(back["overall"]), strict=True):
        assert one == pytest.approx(other)


def test_a_small_noisy_level_is_flagged_and_left_out_of_gaps() -> None:
    rng = np.random.default_rng(0)
    counts = np.zeros((3, 20, 2))
    counts[:2] = 40
    counts[2, 10, 1] = 4
    margins = {"sex": {"female": (0,), "male": (1,), "other": (2,)}}
    shown = 0
    for _ in range(50):
        found = summarise({"a": ScoreTable(EDGES, counts + rng.normal(0, 5, counts.shape), 25)}, margins, 0.5)
        assert found["groups"]["sex"]["female"]["tpr"]["publishable"]
        shown += any(e["publishable"] for e in found["groups"]["sex"]["other"].values())
        value = found["gaps"]["sex"]["demographic_parity"]["value"]
        assert value is not None
        assert value < 0.2
    assert shown <= 2


def test_without_groups_there_is_no_worst_gap() -> None:
    found = summarise({"a": ScoreTable.zeros(EDGES, 1)}, {}, 0.5)
    assert found["worst_gap"] == {
        "attribute": None, "gap": "equalized_odds", "value": None, "low": None, "high": None, "publishable": False,
    }  # fmt: skip
    assert found["groups"] == {}
    assert found["gaps"] == {}


def test_no_tables_and_no_such_cutoff_are_refused() -> None:
    with pytest.raises(ValueError, match="no score table"):
        summarise({}, MARGINS, 0.5)
    with pytest.raises(ValueError, match="nearest edge"):
        summarise(agencies(0.0), MARGINS, 0.51)
