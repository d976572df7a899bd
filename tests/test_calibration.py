"""Calibration from bins: scikit-learn within the bounds, coverage with noise, a map that knows its limits."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss
from sklearn.metrics import log_loss as sklearn_log_loss

from models.calibration import (
    IDENTITY,
    brier,
    brier_bound,
    calibration_error,
    centres,
    log_loss,
    log_loss_bound,
    observed_expected,
    recalibrate,
    recalibrated,
    reliability,
)
from models.disclosure import custom
from models.scores import NOTHING, ScoreTable, default_edges, tally

EDGES = default_edges()
MEASURES = {
    "brier": brier,
    "log_loss": log_loss,
    "observed_expected": observed_expected,
    "ece": calibration_error,
}


def sigmoid(z: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-z)))


def sample(rng: np.random.Generator, n: int, a: float = 0.0, b: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """(score, y) with P(y = 1) = sigmoid(a + b logit score)."""
    z = rng.normal(-0.85, 1.2, n)
    return sigmoid(z), (rng.random(n) < sigmoid(a + b * z)).astype(int)


def table_of(score: np.ndarray, y: np.ndarray, edges: np.ndarray = EDGES) -> ScoreTable:
    return tally(edges, np.zeros(len(y), int), score, y, 1)


def shares(a: float = 0.0, b: float = 1.0) -> np.ndarray:
    return table_of(*sample(np.random.default_rng(1), 400_000, a, b)).counts / 400_000


def noised(rng: np.random.Generator, share: np.ndarray, n: int, sigma: float) -> ScoreTable:
    counts = rng.multinomial(n, share.ravel()).reshape(share.shape)
    return ScoreTable(EDGES, counts + rng.normal(0, sigma, share.shape), sigma**2)


SHARES = shares()


# Laws


@given(st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_only_the_sum_over_agencies_and_groups_counts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    score, y = sample(rng, 300)
    group = rng.integers(0, 3, 300)
    parts = np.array_split(rng.permutation(300), 4)
    table = sum((tally(EDGES, group[i], score[i], y[i], 3) for i in parts), start=ScoreTable.zeros(EDGES, 3))
    for measure in MEASURES.values():
        assert measure(table).value == pytest.approx(measure(table_of(score, y)).value)
    assert recalibrate(table) == pytest.approx(recalibrate(table_of(score, y)))


def test_twice_the_people_give_the_same_values_and_narrower_intervals() -> None:
    table = table_of(*sample(np.random.default_rng(0), 1000))
    for measure in MEASURES.values():
        once, twice = measure(table), measure(table + table)
        assert once.value == pytest.approx(twice.value)
        assert once.low is not None
        assert once.high is not None
        assert twice.low is not None
        assert twice.high is not None
        assert twice.high - twice.low < once.high - once.low


# Oracles


@pytest.mark.parametrize("bins", [2, 10, 20, 50])
def test_brier_and_log_loss_are_within_their_bounds_of_scikit_learns(bins: int) -> None:
    edges = default_edges(bins)
    for seed in range(10):
        score, y = sample(np.random.default_rng(seed), 500, b=0.7)
        inside = (score >= edges[1]) & (score < edges[-2]) if bins > 2 else score < 2
        score, y = score[inside], y[inside]
        table = table_of(score, y, edges)
        found, bound = brier(table).value, brier_bound(table)
        assert found is not None
        assert bound is not None
        assert abs(found - brier_score_loss(y, score)) <= bound + 1e-12
        loss, far = log_loss(table).value, log_loss_bound(table)
        assert loss is not None
        assert (far is None) == (bins == 2)
        assert far is None or abs(loss - sklearn_log_loss(y, score)) <= far + 1e-12


def test_measures_of_a_model_that_says_the_centres_are_exact() -> None:
    rng = np.random.default_rng(0)
    score, _ = sample(rng, 2000)
    table = table_of(score, np.zeros(2000, int))
    said = centres(table)[np.digitize(score, EDGES[1:-1])]
    y = (rng.random(2000) < said**1.3).astype(int)
    table = table_of(said, y)
    assert brier(table).value == pytest.approx(brier_score_loss(y, said))
    assert log_loss(table).value == pytest.approx(sklearn_log_loss(y, said))
    assert observed_expected(table).value == pytest.approx(y.sum() / said.sum())
    by_bin = [abs(y[said == c].sum() - said[said == c].sum()) for c in np.unique(said)]
    assert calibration_error(table).value == pytest.approx(sum(by_bin) / 2000)  # Naeini et al., eq. 3


def test_a_bound_is_reached() -> None:
    table = table_of(np.array([0.0]), np.array([1]), np.array([0, 0.5, 1]))
    assert brier(table).value == 0.75**2
    assert brier_bound(table) == pytest.approx(1 - 0.75**2)
    assert log_loss(table).value == pytest.approx(math.log(4))
    assert log_loss_bound(table) is None
    sure = table_of(np.array([0.5]), np.array([1]), np.array([0, 0.5, 1]))
    assert log_loss_bound(sure) == pytest.approx(math.log(0.75 / 0.5))


def test_reliability_lists_every_bin() -> None:
    table = tally([0, 0.2, 0.6, 1], [0] * 30, [0.1] * 10 + [0.3] * 20, [0] * 10 + [1] * 5 + [0] * 15, 1)
    (low, high, centre, never), (_, _, middle, sometimes), (_, _, last, nobody) = reliability(table)
    assert (low, high, centre, middle, last) == pytest.approx((0, 0.2, 0.1, 0.4, 0.8))
    assert never.value == 0
    assert sometimes.value == 0.25
    assert nobody == NOTHING
    assert never.publishable
    assert not reliability(table, disclosure=custom(11))[0][3].publishable


# Odd cases


def test_nobody_has_no_calibration() -> None:
    table = ScoreTable.zeros(EDGES, 2)
    assert all(measure(table) == NOTHING for measure in MEASURES.values())
    assert brier_bound(table) is None
    assert log_loss_bound(table) is None
    assert recalibrate(table) == IDENTITY
    fewer = ScoreTable(EDGES, np.full((1, 20, 2), -3.0), 25)
    assert all(measure(fewer) == NOTHING for measure in MEASURES.values())


def test_whatever_the_noise_the_numbers_are_finite_and_in_range() -> None:
    rng = np.random.default_rng(0)
    for sigma in (0.5, 5, 50):
        for n in (0, 5, 50, 500):
            for _ in range(20):
                table = noised(rng, SHARES, n, sigma)
                for name, measure in MEASURES.items():
                    e = measure(table)
                    ceiling = 1.0 if name in ("brier", "ece") else 1e6
                    if e.low is None or e.high is None:
                        assert not e.publishable
                    else:
                        assert e.value is not None
                        assert 0 <= e.low <= e.value <= e.high <= ceiling
                assert all(map(math.isfinite, recalibrate(table)))


def test_a_small_noisy_group_is_not_publishable() -> None:
    rng = np.random.default_rng(0)
    shown = [[m(noised(rng, SHARES, 4, 5.0)).publishable for m in MEASURES.values()] for _ in range(300)]
    assert np.mean(shown, axis=0).max() <= 0.01


# Numbers


@pytest.mark.parametrize("n", [300, 1000, 2000])
@pytest.mark.parametrize("sigma", [0.0, 5.0])
def test_95_percent_intervals_cover(n: int, sigma: float) -> None:
    """A model that is off: logit y = 0.3 + 0.8 logit score."""
    rng, share = np.random.default_rng(n), shares(0.3, 0.8)
    drawn = [noised(rng, share, n, sigma) for _ in range(600)]
    for name, measure in MEASURES.items():
        truth = measure(ScoreTable(EDGES, share * 1e9)).value
        found = [measure(table) for table in drawn]
        assert truth is not None
        covered = [e.low is not None and e.high is not None and e.low <= truth <= e.high for e in found]
        assert np.mean(covered) >= 0.93, (name, np.mean(covered))


def test_a_calibrated_model_is_not_called_uncalibrated_although_noise_lifts_the_error() -> None:
    rng = np.random.default_rng(0)
    found = [calibration_error(noised(rng, SHARES, 1000, 5.0)) for _ in range(300)]
    assert np.mean([e.value for e in found if e.value is not None]) > 0.05
    assert np.mean([e.low is not None and e.low > 0.01 for e in found]) <= 0.05


# Recalibration


def test_recalibration_without_noise_is_scikit_learns_on_the_centres() -> None:
    score, y = sample(np.random.default_rng(0), 3000, 0.4, 0.7)
    table = table_of(score, y)
    said = centres(table)[np.digitize(score, EDGES[1:-1])]
    logit = np.log(said / (1 - said))
    oracle = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logit[:, None], y)
    a, b = recalibrate(table)
    assert a == pytest.approx(oracle.intercept_[0], abs=1e-5)
    assert b == pytest.approx(oracle.coef_[0, 0], abs=1e-5)


def test_recalibration_recovers_the_map_under_noise() -> None:
    rng, share = np.random.default_rng(0), shares(0.4, 0.7)
    maps = np.array([recalibrate(noised(rng, share, 4000, 5.0)) for _ in range(100)])
    assert np.allclose(maps.mean(0), (0.4, 0.7), atol=0.05)
    assert maps.std(0).max() < 0.12


def test_recalibration_is_the_identity_where_the_table_says_too_little() -> None:
    rng = np.random.default_rng(0)
    assert all(recalibrate(noised(rng, SHARES, n, 15.0)) == IDENTITY for n in (0, 20, 100) for _ in range(30))
    faint = [recalibrate(noised(rng, SHARES, 300, 5.0)) == IDENTITY for _ in range(100)]
    assert np.mean(faint) >= 0.8
    one_class = table_of(np.linspace(0.1, 0.9, 500), np.ones(500, int))
    upside_down = table_of(np.repeat([0.1, 0.9], 500), np.repeat([1, 0], 500))
    one_bin = table_of(np.full(500, 0.3), np.arange(500) % 2)
    separated = table_of(np.repeat([0.2, 0.8], 500), np.repeat([0, 1], 500))
    for table in (one_class, upside_down, one_bin, separated):
        assert recalibrate(table) == IDENTITY


def test_recalibration_improves_a_model_that_is_off_and_hardly_hurts_one_that_is_not() -> None:
    rng = np.random.default_rng(0)
    for (a, b), limit in (((0.8, 0.6), -0.03), ((0.0, 1.0), 0.003)):
        score, y = sample(rng, 20_000, a, b)
        change = [
            sklearn_log_loss(y, recalibrated(score, *recalibrate(noised(rng, shares(a, b), 2000, 5.0))))
            - sklearn_log_loss(y, score)
            for _ in range(5)
        ]
        assert np.mean(change) < limit


def test_recalibrated_scores_keep_their_order_and_their_ends() -> None:
    score = np.array([0.0, 0.01, 0.3, 0.5, 0.99, 1.0])
    mapped = recalibrated(score, 0.4, 0.7)
    assert (np.diff(mapped) > 0).all()
    assert mapped[0] == 0
    assert mapped[-1] == 1
    assert mapped[3] == pytest.approx(1 / (1 + math.exp(-0.4)))
    assert np.allclose(recalibrated(score, *IDENTITY), score)
