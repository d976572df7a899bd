"""Lower bounds on ε from what an attack got right: pure functions of counts and of measured noise.

Each returns the largest ε that what was seen refutes at `confidence`: a mechanism that is (ε, δ)-DP for a smaller ε
than that would have been guessed this well with probability at most 1 - confidence.

    one run       m canaries are in or out by fair coins, all in one run; `guesses` are guessed, `correct` rightly
    many runs     one canary, many independent runs with it and without it
    noise         the noise itself was measured; the conversion is exact for Gaussian noise
"""

import functools
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from scipy import stats  # type: ignore[import-untyped, unused-ignore]
from scipy.special import log_ndtr, ndtr, ndtri  # type: ignore[import-untyped, unused-ignore]

Curve = Literal["gaussian", "approximate"]
_GRID = 1e-3  # of privacy losses
MOST = 64.0  # no bound is looked for above this ε
_LEAST_NOISE = (
    0.4  # with sampling, less noise is converted as this much: ε falls with the noise, so it stays a bound
)


def one_run(correct: int, guesses: int, canaries: int, delta: float, confidence: float = 0.95) -> float:
    """ε at least, in [0, 64]. Steinke, Nasr, Jagielski 2023, arXiv:2305.08846, Theorem 5.2 and Appendix D.

    With W ~ Binomial(r, e^ε / (1 + e^ε)), v of r guesses about an (ε, δ)-DP mechanism are right with chance at most

        P(W >= v) + 2 m δ max_{i = 1..v} P(v - i <= W < v) / i.

    It holds for any mechanism and any attack. ValueError unless 0 <= correct <= guesses <= canaries.
    """
    _check(correct, guesses, canaries, delta, confidence)

    def refuted(level: float) -> bool:
        return _one_run_chance(correct, guesses, canaries, level, delta) < 1 - confidence

    return _largest(refuted)


def _one_run_chance(correct: int, guesses: int, canaries: int, level: float, delta: float) -> float:
    """The theorem's bound on the chance of `correct` right guesses or more under (level, delta)-DP."""
    right = 1 / (1 + math.exp(-level))
    chance = float(stats.binom.sf(correct - 1, guesses, right))
    if delta > 0 and correct > 0:
        i = np.arange(1, correct + 1)
        below = np.cumsum(stats.binom.pmf(correct - i, guesses, right))
        chance += 2 * canaries * delta * float((below / i).max())
    return chance


def f_dp(
    correct: int,
    guesses: int,
    canaries: int,
    delta: float,
    confidence: float = 0.95,
    curve: Curve = "gaussian",
) -> float:
    """ε at least, in [0, 64]. Mahloujifar, Melis, Chaudhuri 2024, arXiv:2410.22235, Algorithm 2 for two answers.

    Refutes whole trade-off curves f. "gaussian": those of Gaussian noise, f = G_mu, and the ε that the largest
    refuted mu has at δ: a bound for mechanisms whose trade-off curve is near a Gaussian one (one Gaussian release,
    many small steps) and not for others. "approximate": those of (ε, δ)-DP, so it holds for any mechanism.
    ValueError as `one_run`.
    """
    _check(correct, guesses, canaries, delta, confidence)

    def refuted(level: float) -> bool:
        inverse = (
            _gaussian_inverse(level, delta) if curve == "gaussian" else _approximate_inverse(level, delta)
        )
        return _curve_refuted(inverse, correct, guesses, canaries, 1 - confidence)

    return _largest(refuted)


def _curve_refuted(
    inverse: Callable[[float], float], correct: int, guesses: int, canaries: int, chance: float
) -> bool:
    """Algorithm 2: whether f gives `correct` right guesses of `guesses` a probability below `chance`.

    In its letters, with c' guesses, c of them right, and `inverse` that of 1 - f:

        r_c = chance c / m,  h_c = chance (c' - c) / m,  and for i = c - 1 ... 0
        h_i = inverse(r_{i+1}),  r_i = r_{i+1} + i / (c' - i) (h_i - h_{i+1});  refuted where r_0 + h_0 > c' / m
    """
    r, h = chance * correct / canaries, chance * (guesses - correct) / canaries
    for i in range(correct - 1, -1, -1):
        before, h = h, max(h, inverse(r))
        r += i / (guesses - i) * (h - before)
        if r + h > guesses / canaries:  # both only grow from here
            return True
    return False


def _gaussian_inverse(level: float, delta: float) -> Callable[[float], float]:
    """y -> Phi(Phi^-1(y) - mu), the inverse of 1 - G_mu, with the mu whose ε at `delta` is `level`."""
    mu = gaussian_mu(level, delta)
    return lambda y: float(ndtr(ndtri(y) - mu)) if y < 1 else 1.0


def _approximate_inverse(level: float, delta: float) -> Callable[[float], float]:
    """The inverse of x -> min(1, δ + e^ε x, 1 - e^-ε (1 - δ - x)), which is 1 - f of (ε, δ)-DP."""
    factor = math.exp(level)
    return lambda y: max(0.0, (y - delta) / factor, 1 - delta - factor * (1 - y))


def clopper_pearson(
    hits_with: int,
    runs_with: int,
    hits_without: int,
    runs_without: int,
    delta: float,
    confidence: float = 0.95,
) -> float:
    """ε at least, in [0, 64], from independent runs with a person and without: how often an event happened in each.

    With simultaneous Clopper-Pearson limits a <= P(event | with), b >= P(event | without), (ε, δ)-DP needs
    a <= e^ε b + δ and 1 - b <= e^ε (1 - a) + δ (Jagielski, Ullman, Oprea 2020, arXiv:2006.07709, section 3).
    The event must be named before looking.
    """
    miss = (1 - confidence) / 2
    low = float(stats.beta.ppf(miss, hits_with, runs_with - hits_with + 1)) if hits_with else 0.0
    all_out = hits_without == runs_without
    high = 1.0 if all_out else float(stats.beta.ppf(1 - miss, hits_without + 1, runs_without - hits_without))
    pairs = ((low - delta, high), (1 - high - delta, 1 - low))
    return min(MOST, max([0.0, *(math.log(a / b) for a, b in pairs if a > 0)]))


# --- from noise to ε ----------------------------------------------------------------------------------


def epsilon_of_noise(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> float:
    """ε at `delta` of `steps` steps with this noise, by tight accounting: not the claim's upper bound.

    sample_rate 1: the Gaussian's own formula, exact. Below: dp-accounting's privacy loss distribution of the
    Poisson-sampled Gaussian, add-or-remove, which is within 1e-3 (`federation.privacy`'s "pld" is the same on a
    finer, slower grid); noise below 0.5, none included, is then converted as 0.5, because less takes long and says
    the same. 0 for infinite noise.
    """
    if math.isinf(noise_multiplier):
        return 0.0
    if sample_rate == 1:
        return gaussian_epsilon(math.sqrt(steps) / max(noise_multiplier, 1e-3), delta)
    return _sampled_epsilon(max(noise_multiplier, _LEAST_NOISE), sample_rate, steps, delta)


@functools.lru_cache(maxsize=256)
def _sampled_epsilon(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> float:
    from dp_accounting.pld import privacy_loss_distribution  # a second, for bounds that need none of it

    one = privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier, sampling_prob=sample_rate, value_discretization_interval=_GRID
    )
    return float(one.self_compose(steps).get_epsilon_for_delta(delta))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """ε at `delta`, (0, 1), of Gaussian noise of std 1 on sensitivity `mu`, >= 0; exact.

    δ = Phi(mu / 2 - ε / mu) - e^ε Phi(-mu / 2 - ε / mu)   (Balle, Wang 2018, arXiv:1805.06530, Theorem 8)
    """
    if mu == 0 or _gaussian_delta(0.0, mu) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while _gaussian_delta(high, mu) > delta:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _gaussian_delta(middle, mu) > delta else (low, middle)
    return low


@functools.lru_cache(maxsize=4096)
def gaussian_mu(level: float, delta: float) -> float:
    """The mu whose `gaussian_epsilon` at `delta` is `level`, >= 0."""
    low, high = 0.0, 1.0
    while gaussian_epsilon(high, delta) <= level:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_epsilon(middle, delta) <= level else (low, middle)
    return low


def _gaussian_delta(level: float, mu: float) -> float:
    return float(ndtr(mu / 2 - level / mu) - math.exp(level + log_ndtr(-mu / 2 - level / mu)))


def greatest_auc(level: float, delta: float) -> float:
    """The largest area under the ROC curve of any attack on an (ε, δ)-DP mechanism, at most:

    that of the curve of (ε, 0)-DP, e^ε / (1 + e^ε), plus δ. (A ROC curve is at most 1 - f; Dong, Roth, Su 2019,
    arXiv:1905.02383, section 2.)
    """
    return min(1.0, 1 / (1 + math.exp(-level)) + delta)


def _largest(refuted: Callable[[float], bool]) -> float:
    """The largest ε in [0, 64] that is refuted, to 1e-4 and from below; 0 where none is."""
    low, high = 0.0, 1.0
    while high < MOST and refuted(high):
        low, high = high, 2 * high
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def _check(correct: int, guesses: int, canaries: int, delta: float, confidence: float) -> None:
    if not 0 <= correct <= guesses <= canaries or canaries < 1:
        raise ValueError(
            f"need 0 <= correct <= guesses <= canaries and a canary, got {correct}, {guesses}, {canaries}"
        )
    if not 0 <= delta < 1 or not 0 < confidence < 1:
        raise ValueError(f"need delta in [0, 1) and confidence in (0, 1), got {delta}, {confidence}")
