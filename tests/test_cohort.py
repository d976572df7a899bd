"""How many people agencies share, from noised histograms: right on average, covered, and as close as promised."""

import math

import numpy as np
import pytest

from models import cohort, overlap
from models.cohort import both, buckets_for, core, size
from models.overlap import noise_variance


def noise(rng: np.random.Generator, buckets: int, epsilon: float) -> np.ndarray:
    """Discrete Laplace noise, as the difference of two geometric numbers: another way than the module's formula."""
    one, other = rng.geometric(-math.expm1(-epsilon), (2, buckets))
    return np.asarray(one - other)


def lists(
    rng: np.random.Generator, own: list[int], shared: int, buckets: int, epsilon: float
) -> list[np.ndarray]:
    """Noised histograms of lists of `own` people, `shared` of whom are in every list."""
    common = rng.integers(0, buckets, shared)
    return [
        np.bincount(np.r_[common, rng.integers(0, buckets, people - shared)], minlength=buckets)
        + noise(rng, buckets, epsilon)
        for people in own
    ]


def trials(own: list[int], shared: int, times: int, epsilon: float = 1.0) -> list[cohort.Estimate]:
    rng, buckets = np.random.default_rng(5), buckets_for(max(own), epsilon)
    found = []
    for _ in range(times):
        histograms = lists(rng, own, shared, buckets, epsilon)
        pair = len(own) == 2
        found.append(both(*histograms, (epsilon, epsilon)) if pair else core(histograms))
    return found


def error(found: list[cohort.Estimate], shared: int) -> float:
    """Root-mean-square, relative."""
    return math.sqrt(np.mean([((one.value or 0.0) - shared) ** 2 for one in found])) / shared


def covered(found: list[cohort.Estimate], shared: int) -> float:
    return float(np.mean([one.low <= shared <= one.high for one in found]))


def test_two_lists_of_ten_thousand_at_epsilon_one() -> None:
    """Asked: 15 of 100 at most. The product of the histograms, which is simpler, has 13."""
    found = trials([10_000, 10_000], 2_000, 80)
    assert error(found, 2_000) < 0.135
    assert covered(found, 2_000) >= 0.93
    assert np.mean([one.high - one.low for one in found]) < 1_100
    assert np.mean([one.value for one in found]) == pytest.approx(2_000, rel=0.05)


def test_lists_that_share_nobody_are_not_said_to_share_anybody() -> None:
    found = trials([3_000, 2_000], 0, 40)
    assert np.mean([one.publishable for one in found]) <= 0.1


def test_lists_of_other_lengths_and_other_epsilons() -> None:
    rng = np.random.default_rng(2)
    found = []
    for _ in range(40):
        one, other = lists(rng, [4_000, 900], 600, 2_000, 0.0 + 1.5)
        found.append(both(one, other, (1.5, 1.5)))
    assert covered(found, 600) >= 0.9
    assert error(found, 600) < 0.25


@pytest.mark.parametrize("shared", [300, 285])
def test_a_list_that_is_wholly_in_the_other_is_covered(shared: int) -> None:
    """Its length is known no better than its histogram tells: people on probation whom the police all know."""
    found = trials([300, 1500], shared, 60)
    assert covered(found, shared) >= 0.9


def test_the_order_of_agencies_and_of_buckets_says_nothing() -> None:
    rng = np.random.default_rng(3)
    one, other = lists(rng, [500, 400], 200, 600, 1.0)
    shuffled = rng.permutation(600)
    found = both(one, other, (1.0, 1.0))
    for again in (both(other, one, (1.0, 1.0)), both(one[shuffled], other[shuffled], (1.0, 1.0))):
        assert again.value == pytest.approx(found.value, abs=0.05)
        assert again.low == pytest.approx(found.low, abs=0.05)


def test_three_agencies_have_a_core_with_its_error() -> None:
    found = trials([20_000, 20_000, 20_000], 8_000, 40, epsilon=2.0)
    assert covered(found, 8_000) >= 0.9
    assert error(found, 8_000) < 0.3
    assert np.mean([one.value for one in found]) == pytest.approx(8_000, rel=0.15)


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 3.0])
def test_noise_is_discrete_laplace(epsilon: float) -> None:
    drawn = noise(np.random.default_rng(0), 200_000, epsilon)
    assert drawn.var() == pytest.approx(noise_variance(epsilon), rel=0.03)
    values = np.arange(-3, 4)
    seen = np.array([(drawn == value).mean() for value in values])
    np.testing.assert_allclose(overlap.laplace(values, epsilon), seen, atol=0.005)


def test_sizes_and_buckets() -> None:
    rng = np.random.default_rng(1)
    found = [size(lists(rng, [1_000, 1_000], 0, 1_000, 1.0)[0], 1.0) for _ in range(200)]
    assert covered(found, 1_000) >= 0.93
    assert buckets_for(10_000, 1.0) == pytest.approx(10_862, abs=2)
    assert buckets_for(3, 0.01) == 16
    assert buckets_for(1_000, 0.5) < buckets_for(1_000, 1.0) < buckets_for(1_000, 2.0)


def test_histograms_of_other_buckets_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="histograms must be of the same buckets"):
        both(np.zeros(4, np.int64), np.zeros(5, np.int64), (1.0, 1.0))
