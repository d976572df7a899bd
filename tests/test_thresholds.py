"""Other thresholds and a recalibration of each agency: chosen on tune, judged on test, and in no score."""

import itertools
import json

import numpy as np
import pytest
from fairlearn.metrics import equal_opportunity_difference
from sklearn.metrics import accuracy_score

from federation.server.analysis import LABEL, analysis
from models import calibration, scores
from models.calibration import Recalibration, recalibrated, recalibration
from models.disclosure import profile
from models.scores import ScoreTable, default_edges, tally
from models.thresholds import decided, group_cutoffs, group_thresholds, recalibrated_table

CUTOFF = 0.4
EDGES = default_edges(20, (CUTOFF,))
LEVELS = {"young": (0, 2), "old": (1, 3)}
NONE = profile("none")


def people(seed: int, n: int = 6000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Group, score (too low for the old), outcome."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 4, n)
    z = rng.normal(-0.5, 1.5, n)
    said = 1 / (1 + np.exp(-z + 0.9 * (group % 2)))
    return group, said, (rng.random(n) < 1 / (1 + np.exp(-z))).astype(int)


def noised(exact: ScoreTable, sigma: float, seed: int = 0) -> ScoreTable:
    noise = np.random.default_rng(seed).normal(0, sigma, exact.counts.shape)
    return ScoreTable(EDGES, exact.counts + noise, sigma**2)


def test_each_cutoff_brings_its_level_as_near_to_everybodys_rate_as_an_edge_can() -> None:
    table = tally(EDGES, *people(0), 4)
    target = scores.true_positive_rate(table, CUTOFF).value
    cutoffs = group_cutoffs(table, LEVELS, CUTOFF)
    assert cutoffs["old"] < CUTOFF < cutoffs["young"]
    for level, groups in LEVELS.items():
        away = {
            edge: abs(scores.true_positive_rate(table.pick(groups), edge).value - target)
            for edge in EDGES[:-1]
        }
        assert away[cutoffs[level]] == min(away.values())


def test_a_level_that_may_not_be_published_keeps_the_cutoff() -> None:
    group, said, y = people(0)
    few = np.flatnonzero(group % 2 == 1)[:9]
    kept = np.r_[np.flatnonzero(group % 2 == 0), few]
    table = tally(EDGES, group[kept], said[kept], y[kept], 4)
    assert group_cutoffs(table, LEVELS, CUTOFF)["old"] == CUTOFF


def test_what_is_judged_is_what_each_person_would_be_told() -> None:
    """Oracle: everybody on test, flagged by the cutoff of their level, in Fairlearn and scikit-learn."""
    tune, (group, said, y) = tally(EDGES, *people(0), 4), people(1)
    test = tally(EDGES, group, said, y, 4)
    found = group_thresholds(tune, test, LEVELS, CUTOFF, disclosure=NONE)
    old = group % 2 == 1
    for cutoff_of, gaps, right in (
        ({"young": CUTOFF, "old": CUTOFF}, found.before, found.accuracy_before),
        (found.cutoffs, found.after, found.accuracy_after),
    ):
        flagged = (said >= np.where(old, cutoff_of["old"], cutoff_of["young"])).astype(int)
        assert gaps["equal_opportunity"].value == pytest.approx(
            equal_opportunity_difference(y, flagged, sensitive_features=old)
        )
        assert right.value == pytest.approx(accuracy_score(y, flagged))
    assert found.after["equal_opportunity"].value < found.before["equal_opportunity"].value / 2  # type: ignore[operator]


def test_one_cutoff_for_all_is_the_cutoff() -> None:
    table = noised(tally(EDGES, *people(0), 4), 3.0)
    own = decided(table, LEVELS, dict.fromkeys(LEVELS, CUTOFF))
    for level, place in zip(LEVELS, itertools.count()):
        for rate in (scores.selection_rate, scores.true_positive_rate, scores.positive_predictive_value):
            one, other = rate(own.pick([place]), 0.5), rate(table.pick(LEVELS[level]), CUTOFF)
            assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))


def test_a_recalibrated_table_is_that_of_recalibrated_scores() -> None:
    group, said, y = people(0)
    found = recalibration(tally(EDGES, group, said, y, 4))
    assert found is not None
    table = recalibrated_table(tally(EDGES, group, said, y, 4), found)
    assert table is not None
    direct = tally(table.edges, group, recalibrated(said, found.intercept, found.slope), y, 4)
    assert np.array_equal(direct.counts, table.counts)
    steep = Recalibration(0.0, 10.0, (0.0, 0.0, 0.0))
    assert recalibrated_table(tally([0, 0.02, 0.98, 1], group, said, y, 4), steep) is None


def test_the_analysis_mends_an_agency_that_is_off_and_says_that_it_is_no_score() -> None:
    tune = {"police": tally(EDGES, *people(0), 4), "tiny": tally(EDGES, *people(5, 9), 4)}
    test = {"police": tally(EDGES, *people(1), 4), "tiny": tally(EDGES, *people(6, 9), 4)}
    found = analysis(tune, test, {"age": LEVELS}, CUTOFF, profile("uk-default"), per_agency=True)
    assert found is not None
    assert found["label"] == LABEL == "analysis only, not used in any score"
    police, tiny = found["recalibration"]["police"], found["recalibration"]["tiny"]
    off = abs(police["before"]["observed_expected"]["value"] - 1)
    assert off > 0.1
    assert abs(police["after"]["observed_expected"]["value"] - 1) < off / 2
    assert police["after"]["ece"]["value"] < police["before"]["ece"]["value"]
    assert (
        police["before"]["brier"]
        == calibration.brier(test["police"], disclosure=profile("uk-default")).to_dict()
    )
    assert tiny["intercept"] is tiny["slope"] is tiny["before"]["ece"]["value"] is None
    assert set(found["group_thresholds"]["age"]) == {
        "target", "cutoffs", "before", "after", "accuracy_before", "accuracy_after",
    }  # fmt: skip
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_without_tune_tables_there_is_no_analysis_and_sums_recalibrate_nobody() -> None:
    test = {"+3": noised(tally(EDGES, *people(1), 4), 3.0)}
    assert analysis({}, test, {"age": LEVELS}, CUTOFF, NONE, per_agency=False) is None
    found = analysis(test, test, {"age": LEVELS}, CUTOFF, NONE, per_agency=False)
    assert found is not None
    assert found["recalibration"] == {}
    assert set(found["group_thresholds"]) == {"age"}
