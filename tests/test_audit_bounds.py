"""The audit's bounds: laws, oracles, and the figures that the papers print."""

import math

import numpy as np
import pytest
from scipy import stats

from experiments.audit.bounds import (
    MOST,
    clopper_pearson,
    epsilon_of_noise,
    f_dp,
    gaussian_epsilon,
    gaussian_mu,
    greatest_auc,
    one_run,
)
from federation.privacy import Release, epsilon, noise_for

CONFIDENCE = 0.95


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "delta", "published"),
    [
        (1000, 100, 75, 1e-4, 0.673),  # arXiv:2305.08846v1, Appendix D, p. 46
        (100_000, 1510, 1439, 1e-5, 2.675),  # ibid., section 7, p. 28 (cut off, not rounded: 2.6758)
    ],
)
def test_one_run_gives_what_the_paper_prints(
    canaries: int, guesses: int, correct: int, delta: float, published: float
) -> None:
    assert one_run(correct, guesses, canaries, delta) == pytest.approx(published, abs=1e-3)


@pytest.mark.parametrize(("correct", "guesses"), [(40, 50), (75, 100), (100, 100), (930, 1000)])
def test_without_delta_one_run_is_a_clopper_pearson_limit(correct: int, guesses: int) -> None:
    """Binomial(r, e^ε / (1 + e^ε)) alone: the limit of a proportion, as a log-odds."""
    low = stats.binomtest(correct, guesses, alternative="greater").proportion_ci(CONFIDENCE, "exact").low
    assert one_run(correct, guesses, 1000, 0.0) == pytest.approx(math.log(low / (1 - low)), abs=1e-3)


@pytest.mark.parametrize("bound", [one_run, f_dp])
def test_bounds_grow_with_right_guesses_and_fall_with_confidence_and_delta(bound) -> None:
    by_correct = [bound(correct, 200, 500, 1e-5) for correct in range(100, 201, 10)]
    assert by_correct == sorted(by_correct)
    by_confidence = [bound(180, 200, 500, 1e-5, c) for c in (0.5, 0.9, 0.95, 0.999)]
    assert by_confidence == sorted(by_confidence, reverse=True)
    assert bound(180, 200, 500, 0.0 if bound is one_run else 1e-9) >= one_run(180, 200, 500, 1e-3)
    assert bound(100, 200, 500, 1e-5) == 0  # half of the guesses right says nothing


@pytest.mark.parametrize("level", [0.5, 2.0, 4.0])
@pytest.mark.parametrize("name", ["one run", "f-DP"])
def test_randomised_response_is_refuted_no_more_often_than_allowed(level: float, name: str) -> None:
    """Exactly: m bits, each told truly with chance e^ε / (1 + e^ε), which is (ε, 0)-DP and the worst there is."""
    m, right = 200, 1 / (1 + math.exp(-level))
    bounds = np.array(
        [
            one_run(c, m, m, 0.0, CONFIDENCE)
            if name == "one run"
            else f_dp(c, m, m, 0.0, CONFIDENCE, "approximate")
            for c in range(m + 1)
        ]
    )
    wrongly = float(stats.binom.pmf(np.arange(m + 1), m, right)[bounds > level].sum())
    assert wrongly <= 1 - CONFIDENCE
    assert bounds[int(m * right)] > 0.7 * level - 0.2  # and it is not silent either


@pytest.mark.parametrize("mu", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("bound", [one_run, f_dp])
def test_a_gaussian_mechanism_is_refuted_no_more_often_than_allowed(bound, mu: float) -> None:
    """Exactly: every canary guessed by the sign of its statistic is right with chance Phi(mu / 2)."""
    m, delta = 400, 1e-5
    truth = gaussian_epsilon(mu, delta)
    chances = stats.binom.pmf(np.arange(m + 1), m, stats.norm.cdf(mu / 2))
    likely = np.flatnonzero(chances > 1e-9)
    wrongly = sum(chances[c] for c in likely if bound(int(c), m, m, delta, CONFIDENCE) > truth)
    assert wrongly <= 1 - CONFIDENCE


@pytest.mark.parametrize(("shift", "published"), [(1, (1.13346, 2.164749)), (2, (2.311945, 4.7218075))])
def test_bounds_lie_around_those_of_jax_privacy(shift: int, published: tuple[float, float]) -> None:
    """Its tests (canary_score_auditor_test.py) print one-run and f-DP bounds for 10,000 normal quantiles in and out.

    It corrects for the thresholds that it tries, so it is below our best uncorrected one, and with f-DP above the same
    corrected for as many thresholds as canaries.
    """
    m, delta = 20_000, 1e-6
    out = stats.norm.ppf((np.arange(m // 2) + 0.5) / (m // 2))
    counts = []
    for cutoff in np.linspace(1, 3 + shift, 12):
        correct, wrong = int((out + shift >= cutoff).sum()), int((out >= cutoff).sum())
        counts.append((correct, correct + wrong, m, delta))
    assert max(one_run(*each, CONFIDENCE) for each in counts) > published[0]
    assert max(f_dp(*each, CONFIDENCE) for each in counts) > published[1]
    assert max(f_dp(*each, 1 - (1 - CONFIDENCE) / m) for each in counts) < published[1]


@pytest.mark.parametrize("m", [2, 20, 100])
def test_all_right_is_as_rare_as_its_probability_says(m: int) -> None:
    """m of m right has chance (e^ε / (1 + e^ε))^m at most: both bounds are exact there."""
    right = (1 - CONFIDENCE) ** (1 / m)
    exact = max(0.0, math.log(right / (1 - right)))
    assert one_run(m, m, m, 0.0, CONFIDENCE) == pytest.approx(exact, abs=1e-3)
    assert f_dp(m, m, m, 0.0, CONFIDENCE, "approximate") == pytest.approx(exact, abs=1e-3)


def test_simulated_gaussian_release_with_abstentions() -> None:
    """200 runs of 500 canaries, the 50 highest and lowest guessed: at most 5% above the truth, and some slack."""
    rng = np.random.default_rng(0)
    m, mu, delta, above = 500, 1.0, 1e-5, [0, 0]
    truth = gaussian_epsilon(mu, delta)
    for _ in range(200):
        included = rng.random(m) < 0.5
        order = np.argsort(rng.normal(size=m) + mu * included)
        correct = int(included[order[-50:]].sum() + (~included[order[:50]]).sum())
        above[0] += one_run(correct, 100, m, delta) > truth
        above[1] += f_dp(correct, 100, m, delta) > truth
    assert max(above) <= 18  # Binomial(200, 0.05) is above 18 with chance 0.5%


def test_clopper_pearson_by_hand() -> None:
    """50 of 50 against 0 of 50: limits 0.025^(1/50) and 1 - 0.025^(1/50)."""
    edge = 0.025 ** (1 / 50)
    assert clopper_pearson(50, 50, 0, 50, 0.0) == pytest.approx(math.log(edge / (1 - edge)))
    assert clopper_pearson(50, 50, 50, 50, 1e-5) == 0
    assert clopper_pearson(0, 50, 0, 50, 1e-5) == 0


@pytest.mark.parametrize(("noise", "rate"), [(2.0, 1.0), (8.0, 1.0), (1.2, 0.1), (3.0, 0.5)])
def test_conversion_agrees_with_the_accountant_of_claims(noise: float, rate: float) -> None:
    exact = epsilon_of_noise(noise, rate, 10, 1e-5)
    assert exact == pytest.approx(
        epsilon([Release("train", "train", noise, rate, 10)], 1e-5, "pld"), abs=2e-3
    )
    if rate == 1:
        assert gaussian_mu(exact, 1e-5) == pytest.approx(math.sqrt(10) / noise, rel=1e-5)


def test_conversion_never_exceeds_the_claim_of_the_same_noise() -> None:
    for rate, steps in ((1.0, 1), (1.0, 20), (0.1, 40)):
        noise = noise_for(2.0, 1e-5, rate, steps)
        assert epsilon_of_noise(noise, rate, steps, 1e-5) < 2.0
    assert epsilon_of_noise(0.0, 0.1, 5, 1e-5) > 4 < epsilon_of_noise(0.0, 1.0, 1, 1e-5)
    assert epsilon_of_noise(math.inf, 0.1, 5, 1e-5) == 0


def test_greatest_auc() -> None:
    assert greatest_auc(0.0, 0.0) == 0.5
    assert greatest_auc(50.0, 0.0) == pytest.approx(1.0)


@pytest.mark.parametrize("bound", [one_run, f_dp])
@pytest.mark.parametrize("counts", [(5, 4, 10), (5, 20, 10), (-1, 4, 10), (0, 0, 0)])
def test_impossible_counts_are_refused(bound, counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="correct <= guesses <= canaries"):
        bound(*counts, 1e-5)


def test_bounds_end() -> None:
    assert one_run(100_000, 100_000, 100_000, 0.0) <= MOST
