"""The METRICS of result.json: its keys, its values, and that it is plain JSON whatever the noise."""

import json
from typing import Any

import numpy as np
import pytest
from fairlearn.metrics import (
    MetricFrame,
    equalized_odds_difference,
    false_negative_rate,
    false_positive_rate,
    true_positive_rate,
)
from fairlearn.metrics import selection_rate as fairlearn_selection_rate
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, brier_score_loss, precision_score, recall_score

from models.capacity import Capacity, cutoff_within
from models.disclosure import profile
from models.metrics import summarise
from models.scores import NOTHING, ScoreTable, default_edges, selection_rate, tally

EDGES = default_edges()
MARGINS = {
    "sex": {"female": (0, 1), "male": (2, 3)},
    "race": {"a": (0, 2), "b": (1, 3)},
}
NUMBERS = {
    "people", "base_rate", "auc", "auc_bound", "brier", "log_loss", "observed_expected", "ece",
    "selection_rate", "tpr", "fpr", "fnr", "ppv", "accuracy", "net_benefit", "net_benefit_all", "net_benefit_gain",
}  # fmt: skip
FAIRLEARN = {
    "selection_rate": fairlearn_selection_rate,
    "tpr": true_positive_rate,
    "fpr": false_positive_rate,
    "fnr": false_negative_rate,
    "ppv": precision_score,
}
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


def test_without_noise_all_group_metrics_are_fairlearns_on_the_pooled_rows() -> None:
    """Profile none: every rate and gap by group, by combination of groups, within and between agencies."""
    group, score, y = people()
    chosen, rng = (score >= 0.5).astype(int), np.random.default_rng(1)
    agency = np.empty(len(group), object)
    for name, i in zip(
        ("police", "health", "council"), np.array_split(rng.permutation(4000), 3), strict=True
    ):
        agency[i] = name
    names = {
        "sex": np.where(group > 1, "male", "female"),
        "race": np.where(group % 2, "b", "a"),
    }
    found = summarise(agencies(0.0), MARGINS, 0.5, profile("none"))

    def frame(where: Any, at: Any = slice(None)) -> MetricFrame:
        return MetricFrame(metrics=FAIRLEARN, y_true=y[at], y_pred=chosen[at], sensitive_features=where)

    def rates_agree(tables: Any, of: MetricFrame) -> None:
        assert set(tables) == set(of.by_group.index)
        for level, table in tables.items():
            for rate in FAIRLEARN:
                assert table[rate]["value"] == pytest.approx(of.by_group.loc[level, rate], abs=1e-12)

    def gaps_agree(table: Any, of: MetricFrame) -> None:
        differ = of.difference()
        assert {name: gap["value"] for name, gap in table.items()} == pytest.approx(
            {
                "demographic_parity": differ["selection_rate"],
                "equal_opportunity": differ["tpr"],
                "equalized_odds": max(differ["tpr"], differ["fpr"]),
                "predictive_parity": differ["ppv"],
            },
            abs=1e-12,
        )

    for attribute, level in names.items():
        rates_agree(found["groups"][attribute], frame(level))
        gaps_agree(found["gaps"][attribute], frame(level))
        for name, gaps in found["agency_gaps"][attribute].items():
            gaps_agree(gaps, frame(level[agency == name], agency == name))
    both = [f"sex={s} & race={r}" for s, r in zip(names["sex"], names["race"], strict=True)]
    rates_agree(found["intersections"], frame(both))
    rates_agree(found["agencies"], frame(agency))
    differ = frame(agency).difference()
    for rate in ("selection_rate", "tpr", "fpr", "ppv"):
        assert found["between_agencies"][rate]["value"] == pytest.approx(differ[rate], abs=1e-12)


def test_a_constant_predictor_scores_what_it_scores_on_the_rows() -> None:
    _, _, y = people()
    found = summarise(agencies(0.0), MARGINS, 0.5, profile("none"))["constant"]
    for name, says in (("nobody", 0), ("everybody", 1)):
        same = np.full(len(y), says)
        assert found[name]["accuracy"]["value"] == pytest.approx(accuracy_score(y, same))
        assert found[name]["tpr"]["value"] == recall_score(y, same)
        assert found[name]["fpr"]["value"] == says
        assert found[name]["net_benefit"]["value"] == pytest.approx(says * (y.mean() - (1 - y.mean())))
    assert found["base_rate"]["brier"]["value"] == pytest.approx(
        brier_score_loss(y, np.full(len(y), y.mean()))
    )


def test_criteria_conflict_where_base_rates_differ_and_not_where_they_are_as_good_as_equal() -> None:
    def conflicts(n: int, apart: float) -> Any:
        positive = np.array([0.3, 0.3 + apart]) * n
        counts = np.zeros((2, 20, 2))
        counts[:, 12] = np.stack([n - positive, positive], axis=1)
        return summarise({"a": ScoreTable(EDGES, counts)}, {"sex": {"f": (0,), "m": (1,)}}, 0.5)["conflicts"][
            "sex"
        ]

    assert conflicts(5_000, 0.1)["conflict"] is True
    assert conflicts(500_000, 0.01)["conflict"] is False
    assert conflicts(500, 0.01)["conflict"] is None
    assert conflicts(4, 0.5) == {"base_rate_gap": NOTHING.to_dict(), "conflict": None}


@given(st.integers(0, 1000), st.sampled_from([0.05, 0.1, 0.3, 0.9]), st.sampled_from([0.0, 4.0]))
@settings(max_examples=40, deadline=None)
def test_the_cutoff_for_a_capacity_is_the_lowest_edge_that_keeps_within_it(
    seed: int, share: float, sigma: float
) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 50, (2, 20, 2)) + rng.normal(0, sigma, (2, 20, 2))
    table = ScoreTable(EDGES, counts, sigma**2)
    cutoff = cutoff_within(table, share)
    flagged = [selection_rate(table, edge, disclosure=profile("none")).value or 0.0 for edge in EDGES[:-1]]
    if cutoff is None:
        assert flagged[-1] > share
    else:
        at = list(EDGES).index(cutoff)
        assert all(each <= share for each in flagged[at:])
        assert at == 0 or flagged[at - 1] > share


def test_a_capacity_is_judged_on_the_records_own_table() -> None:
    tables = agencies(3.0)
    found = summarise(
        tables, MARGINS, 0.5, profile("uk-default"), capacity=Capacity(0.1, float(EDGES[15]), "tune")
    )
    at = summarise(tables, MARGINS, float(EDGES[15]), profile("uk-default"))
    assert found["capacity"]["overall"] == at["overall"]
    assert {key: found["capacity"][key] for key in ("share", "cutoff", "chosen_on")} == {
        "share": 0.1, "cutoff": EDGES[15], "chosen_on": "tune",
    }  # fmt: skip
    for attribute, levels in found["capacity"]["groups"].items():
        for level, rates in levels.items():
            assert list(rates) == ["selection_rate", "tpr", "fpr", "fnr", "ppv"]
            assert rates == {name: at["groups"][attribute][level][name] for name in rates}


def test_sums_say_nothing_of_agencies() -> None:
    found = summarise(
        {"+3": sum(list(agencies(3.0).values())[1:], agencies(3.0)["police"])}, MARGINS, 0.5, per_agency=False
    )
    assert found["agencies"] == found["agency_gaps"] == found["between_agencies"] == {}
    assert found["overall"]["auc"]["publishable"]


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
