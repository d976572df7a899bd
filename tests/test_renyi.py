"""Divergences at whole orders: laws, then numerical moments of the noise itself, dp-accounting, Opacus, mpmath."""

import functools
import itertools
import math
import random
from collections.abc import Iterator

import mpmath
import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent, rdp
from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import binom

from federation import renyi

LogPmf = NDArray[np.float64]  # log probabilities of -R, ..., R

WHOLE = tuple(int(a) for a in rdp.rdp_privacy_accountant.DEFAULT_RDP_ORDERS if a == int(a))
noises = st.floats(0.2, 1e4)
rates = st.floats(1e-9, 1.0)
orders = st.integers(2, 1024)
quick = settings(max_examples=60, deadline=None)


def discrete_gaussian(variance: float, reach: int) -> LogPmf:
    """log of N_Z(0, variance) on -reach, ..., reach."""
    exponent = -(np.arange(-reach, reach + 1.0) ** 2) / (2 * variance)
    return np.asarray(exponent - logsumexp(exponent))


def convolved(noise: LogPmf, times: int) -> LogPmf:
    """log density of a sum of `times` independent draws, on the same range: exact far into the tails."""
    total, reach = noise, len(noise) // 2
    shifts = np.arange(-reach, reach + 1)
    for _ in range(times - 1):
        padded = np.pad(total, reach, constant_values=-np.inf)
        total = logsumexp(
            [noise[s + reach] + padded[reach - s : reach - s + len(noise)] for s in shifts], axis=0
        )
    return total


def divergences(p: LogPmf, q: LogPmf, order: int) -> float:
    """D_order(p || q) by plain summation."""
    return float(logsumexp(order * p - (order - 1) * q)) / (order - 1)


def subsampled(noise: LogPmf, shift: int, rate: float, keep: int) -> tuple[LogPmf, LogPmf]:
    """(mixture, mu_0) on the whole numbers up to `keep` away from 0, for one person who shifts by `shift`."""
    reach = len(noise) // 2
    here = np.arange(-keep, keep + 1) + reach
    mu_0, mu_1 = noise[here], noise[here - shift]
    without = math.log1p(-rate) if rate < 1 else -math.inf
    return np.logaddexp(without + mu_0, math.log(rate) + mu_1), mu_0


@functools.cache
def exact(noise_multiplier: float, rate: float, order: int) -> float:
    """The binomial sum of the module, with 400 bits."""
    with mpmath.workprec(400):
        z, q = mpmath.mpf(noise_multiplier), mpmath.mpf(rate)
        total = mpmath.fsum(
            mpmath.binomial(order, k)
            * (1 - q) ** (order - k)
            * q**k
            * mpmath.exp(mpmath.mpf(k * (k - 1)) / (2 * z**2))
            for k in range(order + 1)
        )
        return float(mpmath.log(total) / (order - 1))


# --- laws -------------------------------------------------------------------------------------------


@quick
@given(noises, rates, orders, st.floats(1.0, 10.0))
def test_more_noise_and_fewer_people_never_raise_a_divergence(z: float, q: float, a: int, by: float) -> None:
    here = renyi.rdp(z, q, a)
    assert 0 <= renyi.rdp(z * by, q, a) <= here * (1 + 1e-12)
    assert 0 <= renyi.rdp(z, q / by, a) <= here * (1 + 1e-9)
    assert here <= renyi.rdp(z, 1.0, a) * (1 + 1e-12)


@quick
@given(noises, rates, st.integers(2, 1023), st.floats(0.0, 0.1))
def test_a_divergence_does_not_fall_with_the_order_nor_with_the_closure(
    z: float, q: float, a: int, closure: float
) -> None:
    assert renyi.rdp(z, q, a) <= renyi.rdp(z, q, a + 1) * (1 + 1e-9)
    assert renyi.rdp(z, q, a, closure) == pytest.approx(renyi.rdp(z, q, a) + closure * (2 * a - 1) / (a - 1))


@quick
@given(noises, rates, orders, st.sampled_from([2, 3]))
def test_a_part_of_the_noise_costs_at_least_its_part(z: float, q: float, a: int, m: int) -> None:
    """f(m) = m D(z / sqrt(m)) is superadditive: to be in fewer of the sums, or other parts, costs no more."""
    assert m * renyi.rdp(z, q, a) <= renyi.rdp(z / math.sqrt(m), q, a) * m * (1 + 1e-12)


@pytest.mark.parametrize("z", [0.0, 1e-300, 1e-160, 1e-3, 1.0, 1e50, 1e153, 1e154, 1.2e154, 1e200, 1.7e308])
@pytest.mark.parametrize("q", [5e-324, 1e-300, 1e-12, 0.25, 1 - 2**-53, 1.0])
@pytest.mark.parametrize("a", [2, 5, 1024])
def test_no_noise_costs_everything_and_nothing_is_ever_not_a_number(z: float, q: float, a: int) -> None:
    """NaN would be a cost that no budget refuses: it is not above any number."""
    found = renyi.rdp(z, q, a)
    assert found >= 0
    assert (found == math.inf) == (z < 1e-100)


@pytest.mark.parametrize("order", [0, 1, -3, 1025, 2.5, math.nan, math.inf])
def test_an_order_that_is_not_a_whole_number_from_2_is_refused(order: float) -> None:
    with pytest.raises(ValueError, match="order must be a whole number from 2 to 1024"):
        renyi.rdp(1.0, 0.5, order)  # type: ignore[arg-type]


# --- numerical moments ------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", [0.3, 2.0, 5.0, 30.0])
@pytest.mark.parametrize("shift", [1, 2, 5])
def test_the_divergence_is_that_of_the_discrete_gaussian(variance: float, shift: int) -> None:
    """Canonne, Kamath, Steinke 2020, Prop. 5, and Theorem 5 of Mironov et al. under x -> c - x, summed out."""
    for q, a in itertools.product((0.001, 0.1, 0.5, 0.9, 1.0), (2, 3, 5, 8, 17)):
        keep = a * shift + math.ceil(40 * math.sqrt(variance))
        mixture, mu_0 = subsampled(discrete_gaussian(variance, keep + shift), shift, q, keep)
        claimed = renyi.rdp(math.sqrt(variance) / shift, q, a)
        assert divergences(mixture, mu_0, a) == pytest.approx(claimed, rel=1e-9, abs=1e-12)
        assert divergences(mu_0, mixture, a) <= claimed * (1 + 1e-9) + 1e-12


def test_many_coordinates_move_as_one() -> None:
    """Shift (3, -4) is shift 5 in every direction of mu_0 and mu_1, on a grid of two coordinates."""
    variance, q = 12.0, 0.3
    for a in (2, 3, 4):
        reach = 4 * a + 40
        one = discrete_gaussian(variance, reach)
        here = np.arange(4, 2 * reach - 3)
        mu_0 = one[here][:, None] + one[here]
        mu_1 = one[here - 3][:, None] + one[here + 4]
        mixture = np.logaddexp(math.log1p(-q) + mu_0, math.log(q) + mu_1)
        claimed = renyi.rdp(math.sqrt(variance) / 5, q, a)
        assert divergences(mixture, mu_0, a) == pytest.approx(claimed, rel=1e-9)
        assert divergences(mu_0, mixture, a) <= claimed


@functools.cache
def sum_of_shares(variance: float, shares: int) -> LogPmf:
    return convolved(discrete_gaussian(variance, 160), shares)


SUMS = [(0.5, 2), (0.5, 5), (1.0, 2), (1.0, 6), (2.0, 3), (4.0, 2)]


@pytest.mark.parametrize(("variance", "shares"), SUMS)
def test_asum_of_shares_is_within_its_closure_of_one_discrete_gaussian(variance: float, shares: int) -> None:
    """Kairouz, Liu, Steinke 2021, Thm. 5, for variances where the difference can be seen."""
    total, one = sum_of_shares(variance, shares), discrete_gaussian(variance * shares, 160)
    inside = np.arange(-60, 61) + 160
    apart = float(np.abs(total - one)[inside].max())
    claimed = renyi.closure(variance, shares, 1)
    assert apart <= claimed + 1e-12
    if shares == 2 and variance <= 1:
        assert apart > claimed / 10  # the bound is about something; for more shares it is loose


@pytest.mark.parametrize(("variance", "shares"), SUMS)
def test_the_closure_covers_asum_of_shares_in_both_directions(variance: float, shares: int) -> None:
    total = sum_of_shares(variance, shares)
    closure = renyi.closure(variance, shares, 1)
    for shift, q, a in itertools.product((1, 2), (0.01, 0.3, 1.0), (2, 3, 5)):
        mixture, mu_0 = subsampled(total, shift, q, 60)
        claimed = renyi.rdp(math.sqrt(variance * shares) / shift, q, a, closure) + 1e-12
        assert divergences(mixture, mu_0, a) <= claimed
        assert divergences(mu_0, mixture, a) <= claimed


@pytest.mark.parametrize(("variance", "shares"), [(0.5, 3), (1.0, 2)])
def test_the_closure_covers_two_coordinates(variance: float, shares: int) -> None:
    total, q, keep = sum_of_shares(variance, shares), 0.3, 60
    closure = renyi.closure(variance, shares, 2)
    here = np.arange(-keep, keep + 1) + 160
    mu_0 = total[here][:, None] + total[here]
    mu_1 = total[here - 1][:, None] + total[here + 2]
    mixture = np.logaddexp(math.log1p(-q) + mu_0, math.log(q) + mu_1)
    for a in (2, 3, 5):
        claimed = renyi.rdp(math.sqrt(variance * shares / 5), q, a, closure)
        assert divergences(mixture, mu_0, a) <= claimed
        assert divergences(mu_0, mixture, a) <= claimed


def test_closure_is_the_sum_in_the_paper() -> None:
    assert renyi.closure(1, 1, 25_000) == 0
    by_hand = 10 * 61 * sum(math.exp(-2 * math.pi**2 * 2 * k / (k + 1)) for k in range(1, 6))
    assert renyi.closure(2, 6, 61) == pytest.approx(by_hand, rel=1e-12)
    assert renyi.closure(20**2, 100, 10**9) < 1e-300  # what a plan may have
    falling = [renyi.closure(v, 6, 4) for v in range(1, 6)]
    assert falling == sorted(falling, reverse=True)


# --- a person at several agencies in one sum --------------------------------------------------------


def several(z: float, q: float, m: int, furthest: int) -> tuple[LogPmf, LogPmf]:
    """log densities of sum_k Binom(m, q)(k) N(k, z^2) and N(0, z^2), on a grid of z / 24."""
    x = np.arange(-30 * z, furthest * m + 30 * z, z / 24)
    parts = [
        math.log(max(float(binom.pmf(k, m, q)), 1e-300)) - (x - k) ** 2 / (2 * z * z) for k in range(m + 1)
    ]
    unit = math.log(1 / 24) - 0.5 * math.log(2 * math.pi)  # grid step / std, and the density's constant
    return logsumexp(parts, axis=0) + unit, -(x**2) / (2 * z * z) + unit


@pytest.mark.parametrize("z", [0.7, 1.5, 4.0, 12.5])
@pytest.mark.parametrize("q", [0.01, 0.1, 0.25, 0.9])
@pytest.mark.parametrize("m", [2, 3])
def test_parts_of_the_noise_cost_at_least_the_mixture(z: float, q: float, m: int) -> None:
    """All contributions point the same way: the exact mixture, both directions, against m parts of the noise."""
    for a in (2, 3, 5, 12):
        mixture, alone = several(z, q, m, a)
        claimed = m * renyi.rdp(z / math.sqrt(m), q, a)
        forward, backward = divergences(mixture, alone, a), divergences(alone, mixture, a)
        assert max(forward, backward) <= claimed * (1 + 1e-9)
        if z / math.sqrt(m) > 7:
            assert claimed < 1.1 * forward  # and not much more, where the noise is large
        if (
            m == 2 and a == 3
        ):  # the same by the multinomial: E_Q[prod of ratios] = exp(sum of inner products / z^2)
            assert forward == pytest.approx(by_inner_products(z, q, m, a), rel=1e-9)


def by_inner_products(z: float, q: float, m: int, a: int) -> float:
    weights = [float(binom.pmf(k, m, q)) for k in range(m + 1)]
    total = sum(
        math.prod(weights[k] for k in ks)
        * math.exp(sum(c * d for c, d in itertools.combinations(ks, 2)) / z**2)
        for ks in itertools.product(range(m + 1), repeat=a)
    )
    return math.log(total) / (a - 1)


def test_parts_of_the_noise_are_exact_without_sampling() -> None:
    for z, a, m in itertools.product((1.0, 5.0), (2, 7), (2, 3)):
        assert m * renyi.rdp(z / math.sqrt(m), 1.0, a) == pytest.approx(renyi.rdp(z / m, 1.0, a))


@pytest.mark.parametrize("angle", [0.0, 0.8, math.pi / 2, 2.2, math.pi])
def test_contributions_that_point_elsewhere_cost_no_more(angle: float) -> None:
    """Two agencies, two coordinates: sensitivities at an angle, down to those that cancel."""
    z, q = 1.2, 0.2
    step = z / 6
    x = np.arange(-4 - 10 * z, 8 + 10 * z, step)
    grid = np.stack(np.meshgrid(x, x, indexing="ij"), axis=-1)
    first, second = np.array([1.0, 0.0]), np.array([math.cos(angle), math.sin(angle)])
    unit = 2 * math.log(step / z) - math.log(2 * math.pi)
    shifts = [(0 * first, (1 - q) ** 2), (first, q * (1 - q)), (second, q * (1 - q)), (first + second, q * q)]
    parts = [math.log(weight) - ((grid - c) ** 2).sum(-1) / (2 * z * z) + unit for c, weight in shifts]
    mixture, alone = logsumexp(parts, axis=0), -(grid**2).sum(-1) / (2 * z * z) + unit
    aligned = several(z, q, 2, 3)
    for a in (2, 3):
        claimed = 2 * renyi.rdp(z / math.sqrt(2), q, a)
        assert max(divergences(mixture, alone, a), divergences(alone, mixture, a)) <= claimed
        assert divergences(mixture, alone, a) <= divergences(*aligned, a) * (1 + 1e-6)


# --- oracles ----------------------------------------------------------------------------------------


def random_steps(count: int, seed: int) -> Iterator[tuple[float, float, int]]:
    draw = random.Random(seed)
    for _ in range(count):
        z, q = 10 ** draw.uniform(-0.5, 3), 10 ** draw.uniform(-6, 0)
        yield z, q, draw.choice([2, 3, 4, 5, 8, 16, 63, 256, 1024, draw.randint(2, 1024)])


def test_three_hundred_steps_agree_with_dp_accounting() -> None:
    compared = 0
    for z, q, a in random_steps(600, seed=1):
        accountant = rdp.RdpAccountant([a], NeighboringRelation.ADD_OR_REMOVE_ONE)
        accountant.compose(PoissonSampledDpEvent(q, GaussianDpEvent(z)))
        (theirs,) = accountant.rdp
        if theirs > 1e-7:  # they sum from k = 0 and lose digits below: see the next tests
            assert renyi.rdp(z, q, a) == pytest.approx(theirs, rel=1e-6)
            compared += 1
    assert compared >= 250


def test_whole_curves_agree_with_opacus() -> None:
    from opacus.accountants.analysis.rdp import compute_rdp

    for z, q in ((0.6, 0.01), (1.0, 0.1), (3.0, 0.25), (12.5, 0.25), (2.0, 1.0)):
        expected = compute_rdp(q=q, noise_multiplier=z, steps=1, orders=list(WHOLE))
        np.testing.assert_allclose([renyi.rdp(z, q, a) for a in WHOLE], expected, rtol=1e-7)


def test_seventy_steps_agree_with_400_bits() -> None:
    """Large noise and tiny rates too, where summing from k = 0 would cancel all digits."""
    steps = [step for step in random_steps(90, seed=2) if step[2] <= 256]
    extremes = [(1e6, 1e-6, 2), (1e4, 1e-12, 64), (1e8, 0.5, 5), (0.3, 1e-9, 128), (0.3, 1e-30, 1024)]
    for z, q, a in steps + extremes:
        assert renyi.rdp(z, q, a) == pytest.approx(exact(z, q, a), rel=1e-9)


# --- the budget -------------------------------------------------------------------------------------


@quick
@given(st.floats(0.01, 50.0), st.floats(1e-12, 0.1), orders)
def test_budget_and_epsilon_are_inverses(epsilon: float, delta: float, a: int) -> None:
    budget = renyi.rdp_budget(epsilon, delta, a)
    assert renyi.epsilon_at(budget, delta, a) == pytest.approx(epsilon, rel=1e-12, abs=1e-12)
    assert renyi.rdp_budget(epsilon * 1.1, delta, a) > budget
    assert renyi.rdp_budget(epsilon, delta * 1.1, a) > budget


@quick
@given(st.floats(0.0, 50.0), st.floats(1e-12, 0.1), orders)
def test_epsilon_at_one_order_is_dp_accountings(divergence: float, delta: float, a: int) -> None:
    theirs = float(compute_epsilon([a], [divergence], delta)[0])
    found = renyi.epsilon_at(divergence, delta, a)
    if delta**2 + math.expm1(-divergence) <= 0:  # else they answer 0 by another inequality
        assert found == pytest.approx(theirs, rel=1e-12, abs=1e-12)
    assert found >= theirs - 1e-12
    assert renyi.epsilon_at(divergence + 1, delta, a) >= found
    assert renyi.epsilon_at(divergence, delta / 2, a) >= found


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 1.0, 3.0, 8.0, 20.0])
@pytest.mark.parametrize("delta", [1e-8, 1e-5, 1e-3])
def test_the_filters_order_admits_most_gaussian_noise(epsilon: float, delta: float) -> None:
    chosen = renyi.filter_order(epsilon, delta)

    def admits(a: int) -> float:
        """How many Gaussian releases with noise multiplier 1."""
        return renyi.rdp_budget(epsilon, delta, a) / renyi.rdp(1.0, 1.0, a)

    assert admits(chosen) > 0
    assert all(admits(a) <= admits(chosen) for a in range(2, renyi.MOST_ORDER + 1))
    # no order, fractions and those beyond the range included, admits more: sum a / 2 z^2 = epsilon at best
    costs = min(renyi.epsilon_at(admits(chosen) * a / 2, delta, a) for a in range(2, renyi.MOST_ORDER + 1))
    assert costs == pytest.approx(epsilon, rel=1e-9)


def test_the_filters_order_is_low_where_the_budget_is_large() -> None:
    assert 3 <= renyi.filter_order(8.0, 1e-5) <= 6
    falling = [renyi.filter_order(epsilon, 1e-5) for epsilon in (0.1, 0.5, 1.0, 3.0, 8.0, 30.0)]
    assert falling == sorted(falling, reverse=True)


# --- discrete Laplace -------------------------------------------------------------------------------

purities = st.floats(1e-6, 50.0)
any_order = st.floats(1.001, 1024.0)


@functools.cache
def summed(epsilon: float, order: float, reach: int, flipped: bool) -> float:
    """D_order of P(k) ~ exp(-epsilon |k|) and P(k - 1), term by term, with 200 bits; or of P(k - 1) and P(k)."""
    with mpmath.workprec(200):
        e, a = mpmath.mpf(epsilon), mpmath.mpf(order)
        ends = range(-reach, reach + 1)
        logs = [-e * (a * abs(k - flipped) + (1 - a) * abs(k - (not flipped))) for k in ends]
        return float(mpmath.log(mpmath.fsum(map(mpmath.exp, logs)) * mpmath.tanh(e / 2)) / (a - 1))


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("epsilon", [0.05, 0.5, 1.0, 4.0, 20.0])
def test_laplace_is_the_sum_over_all_whole_numbers_in_both_directions(epsilon: float, flipped: bool) -> None:
    for order in (1.01, 1.5, 7, 256):
        exact = summed(epsilon, order, math.ceil(45 / epsilon), flipped)
        assert renyi.laplace(epsilon, order) == pytest.approx(exact, rel=1e-12)


@quick
@given(purities, any_order, st.floats(1.0, 10.0))
def test_laplace_is_monotone_and_below_its_limits(epsilon: float, a: float, by: float) -> None:
    here = renyi.laplace(epsilon, a)
    assert 0 < here <= min(epsilon, a * epsilon**2 / 2) * (1 + 1e-9)
    assert here <= renyi.laplace(epsilon, a * by) * (1 + 1e-9)
    assert here <= renyi.laplace(epsilon * by, a) * (1 + 1e-9)
    assert renyi.laplace(epsilon, math.inf) == epsilon
    assert here >= epsilon - math.log(1 + math.exp(-epsilon)) / (a - 1) - epsilon / (a - 1) - 1e-12


def test_laplace_numbers_that_overflow_or_vanish_stay_bounds() -> None:
    assert renyi.laplace(1e300, 1024) == 1e300
    assert renyi.laplace(800.0, 2) == pytest.approx(800.0)
    assert renyi.laplace(1e-6, 2) == pytest.approx(1e-12, rel=1e-5)
    assert renyi.laplace(1e-6, 1.001) > 0


@pytest.mark.parametrize("order", [1, 0.5, -2, math.nan])
def test_laplace_has_no_order_up_to_1(order: float) -> None:
    with pytest.raises(ValueError, match="order must be above 1"):
        renyi.laplace(1.0, order)
