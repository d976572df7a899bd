"""Structural checks: what the claim's proof assumes, looked at directly. Each is a test at a given confidence.

They may look where no attacker can (sums without noise), so they are no bounds on ε: a check that fails says that
the proof does not apply.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped, unused-ignore]

from experiments.audit.attacks import Finding
from experiments.audit.canaries import Canaries, round_seed
from experiments.audit.mechanisms import FloatArray, Mechanism

ROUNDS = 12  # whose noise `noise` compares
SLACK = 1e-3  # of a sensitivity: sums of float32 are that exact


def check(method: str, ok: bool, confidence: float, good: str, bad: str, seen: dict[str, float]) -> Finding:
    """The finding of a check: one of two sentences."""
    sentence = f"{method}: {good}" if ok else f"{method}: FAILS, {bad}"
    return Finding(method, "check", ok, confidence, sentence, seen=seen)


def sensitivity(mechanism: Mechanism, canaries: Canaries, confidence: float, seed: int) -> Finding:
    """The sum, without noise and with everyone in it, with and without one canary: moved by `sensitivity` at most."""
    exact = mechanism.silent().at_rate(1.0)
    everyone = np.ones(canaries.count, bool)
    whole = exact(canaries.module, canaries.with_canaries(everyone), seed)
    moved = 0.0
    for j in range(min(8, canaries.count)):
        without = everyone.copy()
        without[j] = False
        less = exact(canaries.module, canaries.with_canaries(without), seed)
        moved = max(moved, float(np.sqrt(np.square(whole - less).sum(1)).max()))
    allowed = mechanism.sensitivity
    return check(
        "sensitivity",
        moved <= allowed * (1 + SLACK),
        confidence,
        f"one extreme record moves a sum by {moved:.4f} clipping norms at most",
        f"one extreme record moves a sum by {moved:.4g} clipping norms, {allowed:.4f} are accounted for",
        {"moved": moved, "allowed": allowed},
    )


def sampler(mechanism: Mechanism, canaries: Canaries, rounds: int, confidence: float, seed: int) -> Finding:
    """Who took part in which round is independent coins of chance q, as far as three counts can tell.

    From sums without noise. With n canaries and T rounds: how many took part in all is Binomial(n T, q); the sizes
    of the rounds vary as Binomial(n, q) does (batches of one size do not) and the people's counts as
    Binomial(T, q) (an epoch that is dealt out does not). Each at a third of the error, two-sided.
    """
    rate = mechanism.plan.sample_rate
    silent, people = mechanism.silent(), canaries.with_canaries(np.ones(canaries.count, bool))
    drawn = [
        canaries.statistic(silent(canaries.module, people, round_seed(seed, i))[0]) for i in range(rounds)
    ]
    part = np.array(drawn) > 0.5 * mechanism.sensitivity
    chances = sampler_chances(part, rate)
    worst = min(chances, key=lambda name: chances[name])
    return check(
        "sampling",
        3 * chances[worst] >= 1 - confidence,
        confidence,
        f"who takes part looks like independent coins of chance {rate:g}",
        f"the {worst} cannot come from independent coins of chance {rate:g} (p = {chances[worst]:.1g}): no amplification "
        "by Poisson sampling may be claimed",
        chances,
    )


def sampler_chances(part: NDArray[np.bool_], rate: float) -> dict[str, float]:
    """p-values of `sampler`'s three tests for (rounds, people) of who took part."""
    if rate == 1:
        return {"number of people": float(part.all())}
    total = stats.binomtest(int(part.sum()), part.size, rate).pvalue
    return {
        "number of people": float(total),
        "spread of batch sizes": _spread_chance(part.sum(1), part.shape[1], rate),
        "spread of people's counts": _spread_chance(part.sum(0), part.shape[0], rate),
    }


def _spread_chance(counts: NDArray[np.int64], n: int, rate: float) -> float:
    """Two-sided p-value of sum (count - n q)^2 / n q (1 - q) for independent Binomial(n, q) counts.

    As chi-squared with the degrees of freedom that give it the right variance, 2 + excess kurtosis for each count.
    """
    variance = n * rate * (1 - rate)
    freedom = len(counts) * 2 / (2 + (1 - 6 * rate * (1 - rate)) / variance)
    value = freedom * float(np.square(counts - n * rate).mean()) / variance
    return min(1.0, 2 * min(float(stats.chi2.cdf(value, freedom)), float(stats.chi2.sf(value, freedom))))


def noise(mechanism: Mechanism, canaries: Canaries, confidence: float, seed: int) -> Finding:
    """What is added is Gaussian of the claimed std, and another draw in each vector and each round.

    Noise = a round less the same round without noise. Two tests, half the error each: Kolmogorov-Smirnov of all of it
    against N(0, (z x sensitivity)^2); and the largest correlation r of two vectors, |r| sqrt(p) against a normal
    quantile for so many pairs.
    """
    vectors = noise_vectors(mechanism, canaries, seed)
    std = mechanism.plan.noise_multiplier * mechanism.sensitivity
    shape = float(stats.kstest(vectors.ravel() / std, "norm").pvalue)
    alike = _alike_chance(vectors)
    return check(
        "noise",
        2 * min(shape, alike) >= 1 - confidence,
        confidence,
        f"Gaussian of std {std:.3f} clipping norms, drawn anew for each agency and round",
        f"not what is claimed: shape p = {shape:.1g}, two vectors alike p = {alike:.1g}",
        {"shape p": shape, "alike p": alike, "std": float(vectors.std()), "claimed std": std},
    )


def noise_vectors(mechanism: Mechanism, canaries: Canaries, seed: int) -> FloatArray:
    """The noise of `ROUNDS` rounds, (rounds x releases, p), nobody being a canary."""
    people = canaries.with_canaries(np.zeros(canaries.count, bool))
    silent = mechanism.silent()
    found = []
    for number in range(ROUNDS):
        at = (canaries.module, people, round_seed(seed, number))
        found.append(mechanism(*at) - silent(*at))
    return np.concatenate(found)


def _alike_chance(vectors: FloatArray) -> float:
    """Bonferroni p-value of the largest |correlation| between two rows; 0 where a row is constant."""
    if (vectors.std(1) == 0).any():
        return 0.0
    r = np.abs(np.corrcoef(vectors))
    above = r[np.triu_indices(len(r), 1)]
    chance = 2 * float(stats.norm.sf(float(above.max()) * math.sqrt(vectors.shape[1])))
    return min(1.0, chance * len(above))
