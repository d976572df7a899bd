"""The likelihood of an overlap, and what it will tell before anything is spent: against brute force and simulation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import cohort, overlap
from models.disclosure import custom, profile
from models.overlap import noise_variance, planned_sd
from models.scores import NOTHING, Estimate


def noise(rng: np.random.Generator, buckets: int, epsilon: float) -> np.ndarray:
    one, other = rng.geometric(-math.expm1(-epsilon), (2, buckets))
    return np.asarray(one - other)


def pair(rng: np.random.Generator, n: int, shared: int, buckets: int, epsilon: float) -> list[np.ndarray]:
    common = rng.integers(0, buckets, shared)
    own = [np.r_[common, rng.integers(0, buckets, n - shared)] for _ in range(2)]
    return [np.bincount(each, minlength=buckets) + noise(rng, buckets, epsilon) for each in own]


# --- the likelihood -----------------------------------------------------------------------------------


def test_the_likelihood_is_that_of_every_way_to_fill_a_bucket() -> None:
    """Brute force over (alone A, alone B, both), each Poisson, and the noise of each."""

    def poisson(k: int, rate: float) -> float:
        return math.exp(-rate) * rate**k / math.factorial(k)

    def chance(x: int, y: int, a: float, b: float, r: float, epsilon: float) -> float:
        return sum(
            poisson(i, a - r)
            * poisson(j, b - r)
            * poisson(k, r)
            * math.tanh(epsilon / 2) ** 2
            * math.exp(-epsilon * (abs(x - i - k) + abs(y - j - k)))
            for i, j, k in itertools.product(range(14), repeat=3)
        )

    one, other = np.array([2, 0, 1, 3, -1, 1]), np.array([1, 0, 2, 3, 1, -1])
    a, b = one.sum() / 6, other.sum() / 6
    found = overlap.likelihood(one, other, (1.2, 1.2))
    for shared in (0.5, 2.0, 4.0):
        brute = sum(math.log(chance(x, y, a, b, shared / 6, 1.2)) for x, y in zip(one, other, strict=True))
        assert found.at(shared) == pytest.approx(brute, abs=1e-6)


@pytest.mark.parametrize("epsilon", [0.3, 1.0])
def test_counting_and_the_normal_agree_where_buckets_hold_many(
    epsilon: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair(np.random.default_rng(0), 60_000, 20_000, 1_000, epsilon)
    counted = cohort.both(one, other, (epsilon, epsilon))
    monkeypatch.setattr(overlap, "MANY", 1.0)
    normal = cohort.both(one, other, (epsilon, epsilon))
    width = counted.high - counted.low  # type: ignore[operator]
    for name in ("value", "low", "high"):
        assert getattr(normal, name) == pytest.approx(getattr(counted, name), abs=0.12 * width)


# --- before anything is spent -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "shared", "epsilon"), [(3_000, 900, 1.0), (3_000, 1_500, 2.0), (4_000, 0, 1.5)]
)
def test_the_planned_error_is_the_one_that_comes(n: int, shared: int, epsilon: float) -> None:
    """At no overlap the number cannot be below 0: half of a normal's square is left."""
    rng, buckets = np.random.default_rng(7), cohort.planned_buckets((n, n), epsilon)
    found = [
        cohort.both(*pair(rng, n, shared, buckets, epsilon), (epsilon, epsilon)).value for _ in range(80)
    ]
    planned = cohort.planned_sd((n, n), shared, epsilon, buckets)
    rms = math.sqrt(np.mean([(value - shared) ** 2 for value in found]))  # type: ignore[operator]
    assert rms == pytest.approx(planned / (1 if shared else math.sqrt(2)), rel=0.3)


@settings(max_examples=25, deadline=None)
@given(st.integers(100, 50_000), st.integers(100, 50_000), st.floats(0.2, 4))
def test_more_epsilon_tells_smaller_overlaps_and_the_order_of_lists_says_nothing(
    one: int, other: int, epsilon: float
) -> None:
    def least(sizes: tuple[int, int], eps: float) -> float:
        return cohort.least(sizes, eps, cohort.planned_buckets(sizes, eps))

    assert least((one, other), epsilon) == pytest.approx(least((other, one), epsilon), rel=1e-6)
    assert least((one, other), 1.5 * epsilon) < least((one, other), epsilon) * 1.01


def test_epsilon_for_is_the_least_that_tells() -> None:
    sizes = (5_000, 3_000)
    found = cohort.epsilon_for(sizes, 300)
    assert found is not None
    tells = [cohort.least(sizes, e, cohort.planned_buckets(sizes, e)) for e in (found, 0.9 * found)]
    assert tells[0] <= 300 < tells[1]
    assert cohort.epsilon_for(sizes, 0.1) is None


@pytest.mark.parametrize("sizes", [(10_000, 10_000), (100_000, 2_000), (300, 300)])
def test_the_buckets_that_are_planned_are_about_the_best(sizes: tuple[int, int]) -> None:
    planned = cohort.planned_buckets(sizes, 1.0)
    error = planned_sd(sizes, 0.1 * min(sizes), planned, (1.0, 1.0))
    for factor in (0.25, 0.5, 2, 4):
        assert error <= 1.01 * planned_sd(sizes, 0.1 * min(sizes), round(planned * factor), (1.0, 1.0))


def test_levels_of_like_size_cost_no_accuracy() -> None:
    whole = cohort.planned_sd((8_000, 8_000), 2_000, 1.0, cohort.planned_buckets((8_000, 8_000), 1.0))
    buckets = cohort.planned_buckets((8_000, 8_000), 1.0, 4)
    assert cohort.planned_sd((8_000, 8_000), 2_000, 1.0, buckets, 4) == pytest.approx(whole, rel=0.01)


def test_the_closed_form_where_buckets_hold_many_meets_the_sum() -> None:
    below, above = (planned_sd((size, size), 0.3 * size, 100, (0.5, 0.5)) for size in (7_900, 8_100))
    assert above == pytest.approx(below, rel=0.05)


# --- sums, shares and what may be published -----------------------------------------------------------

ESTIMATES = st.tuples(st.floats(0, 1e4), st.floats(0, 1e3), st.floats(0, 1e3)).map(
    lambda t: Estimate(t[0], max(t[0] - t[1], 0.0), t[0] + t[2], t[0] - t[1] > 0)
)


@given(st.lists(ESTIMATES, min_size=1, max_size=6))
def test_a_sum_of_parts_is_no_wider_than_its_parts_together(parts: list[Estimate]) -> None:
    found = cohort.together(parts)
    assert found.value == pytest.approx(sum(part.value or 0 for part in parts))
    assert found.low >= sum(part.low or 0 for part in parts) - 1e-6  # type: ignore[operator]
    assert found.high <= sum(part.high or 0 for part in parts) + 1e-6  # type: ignore[operator]
    alone = cohort.together(parts[:1])
    assert (alone.low, alone.high) == (
        pytest.approx(parts[0].low, abs=1e-6),
        pytest.approx(parts[0].high, abs=1e-6),
    )


@pytest.mark.long
def test_a_sum_over_levels_covers() -> None:
    rng, buckets, covered = np.random.default_rng(3), cohort.planned_buckets((2_000, 2_000), 1.5, 2), []
    for _ in range(60):
        parts = [cohort.both(*pair(rng, 1_000, own, buckets, 1.5), (1.5, 1.5)) for own in (300, 500)]
        found = cohort.together(parts)
        covered.append(found.low <= 800 <= found.high)  # type: ignore[operator]
    assert np.mean(covered) >= 0.88


def test_the_disclosure_rule_rounds_and_withholds() -> None:
    rule = profile("uk-default")
    assert cohort.published(Estimate(103.0, 81.0, 122.0, True), rule) == Estimate(105, 80, 125, True)
    assert not cohort.published(Estimate(9.0, 1.0, 20.0, True), rule).publishable
    assert not cohort.published(Estimate(103.0, 0.0, 220.0, False), rule).publishable
    assert cohort.published(NOTHING, rule) == NOTHING
    assert cohort.published(Estimate(9.0, 1.0, 20.0, True), custom(5)).value == 9.0


def test_a_share_has_the_ends_of_both() -> None:
    shared, people = Estimate(200.0, 100.0, 300.0, True), Estimate(1000.0, 800.0, 1250.0, True)
    found = cohort.share_of(shared, people)
    assert (found.value, found.low, found.high) == (0.2, pytest.approx(0.08), pytest.approx(0.375))
    assert cohort.share_of(Estimate(900.0, 700.0, 1100.0, True), people).high == 1.0
    assert cohort.share_of(Estimate(200.0, 100.0, 300.0, False), people) == NOTHING
    assert cohort.share_of(shared, Estimate(1000.0, 0.0, 1250.0, True)).high == 1.0


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_sizes_of_every_shape(epsilon: float) -> None:
    counts = np.full((3, 50), 7)
    found = cohort.size(counts, epsilon)
    assert found.value == 1050
    assert found.high - 1050 == pytest.approx(1.96 * math.sqrt(150 * noise_variance(epsilon)), rel=1e-3)  # type: ignore[operator]
