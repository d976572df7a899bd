"""Attacks on what leaves, each of which ends in a `Finding`: a lower bound on ε next to the claim.

They know everything but the secret, as differential privacy allows: model, other people, plan and code.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped, unused-ignore]

from experiments.audit.bounds import clopper_pearson, epsilon_of_noise, f_dp, one_run
from experiments.audit.canaries import Canaries, round_seed
from experiments.audit.mechanisms import FloatArray, Mechanism
from federation.plan import PrivacyPlan
from federation.privacy import epsilon

SHARES_GUESSED = (
    1 / 32,
    1 / 8,
    1 / 2,
    1.0,
)  # of the canaries; each at a quarter of the error that is allowed
NOISE_ERROR = 0.1  # of a fit's error, what the limit of the noise may use
RARELY = 0.1  # sample rate of `alone`


@dataclass(frozen=True)
class Finding:
    """One bound, or one structural check (`epsilon` None), and whether it leaves the claim standing.

    epsilon: the lower bound at `confidence`; estimate: the attack's best guess, where it has one. claim: the ε that
    it is held against. seen: what was counted or measured.
    """

    method: str
    kind: Literal["bound", "check"]
    ok: bool
    confidence: float
    sentence: str
    claim: float | None = None
    epsilon: float | None = None
    estimate: float | None = None
    seen: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def bound(
    method: str,
    level: float,
    claim: float,
    confidence: float,
    estimate: float | None = None,
    seen: dict[str, float] | None = None,
) -> Finding:
    """The finding of a lower bound `level` against `claim`."""
    ok = level <= claim
    verdict = "does not exceed" if ok else "EXCEEDS"
    sentence = f"{method}: ε is at least {level:.2f} ({confidence:.1%} confidence), which {verdict} the claim {claim:.2f}"
    return Finding(method, "bound", ok, confidence, sentence, claim, level, estimate, seen)


# --- the noise, measured ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """A pair of Gaussians: noise of std `noise`, moved by `shift` where a person took part; and their limits.

    The noise is at most `noise_most` and the shift at least `shift_least`, together at the fit's confidence.
    """

    noise: float
    noise_most: float
    shift: float
    shift_least: float

    @property
    def multiplier(self) -> float:
        """The effective noise multiplier, noise / shift."""
        return self.noise / self.shift if self.shift > 0 else math.inf

    @property
    def multiplier_most(self) -> float:
        """Its upper limit; inf where no shift was seen."""
        return self.noise_most / self.shift_least if self.shift_least > 0 else math.inf


def fit(
    inside: FloatArray,
    outside: FloatArray,
    sample_rate: float,
    confidence: float,
    noise_alone: FloatArray | None = None,
) -> Fit:
    """From statistics of canaries that were in (each took part with chance `sample_rate`) and out.

    s^2 = variance of `noise_alone` (default: of `outside`), at most s^2 (n - 1) / chi2_{a, n-1};
    shift = (mean inside - mean outside) / q, less z_{1-b} standard errors. Of the error 1 - confidence = a + b, a
    is a tenth: the noise is far better known than the shift. Assumes Gaussian noise, independent between
    statistics (`checks.noise` looks at both). ValueError for fewer than 2 of either.
    """
    if min(inside.size, outside.size) < 2:
        raise ValueError("a fit needs two canaries that are in and two that are out: take more canaries")
    alone = outside if noise_alone is None else noise_alone
    miss, freedom = (1 - confidence) * NOISE_ERROR, alone.size - 1
    noise = float(alone.std(ddof=1))
    most = noise * math.sqrt(freedom / float(stats.chi2.ppf(miss, freedom)))
    shift = float(inside.mean() - outside.mean()) / sample_rate
    error = math.sqrt(inside.var(ddof=1) / inside.size + outside.var(ddof=1) / outside.size) / sample_rate
    return Fit(noise, most, shift, shift - float(stats.norm.ppf(confidence + miss)) * error)


def gaussian_pair(
    seen: FloatArray,
    included: NDArray[np.bool_],
    plan: PrivacyPlan,
    rounds: int,
    claim: float,
    confidence: float,
    method: str = "Gaussian pair",
) -> Finding:
    """`fit` on all (rounds seen, m) statistics, converted through the plan's sample rate and a run's `rounds`.

    More rounds may have been seen than a run has: each is the same mechanism, and more of them measure it better.
    """
    found = fit(seen[:, included], seen[:, ~included], plan.sample_rate, confidence)
    at = (plan.sample_rate, rounds, plan.delta)
    level, estimate = epsilon_of_noise(found.multiplier_most, *at), epsilon_of_noise(found.multiplier, *at)
    return bound(method, level, claim, confidence, estimate, asdict(found))


# --- guessing who was in ------------------------------------------------------------------------------


def guesses(
    seen: FloatArray, included: NDArray[np.bool_], plan: PrivacyPlan, claim: float, confidence: float
) -> list[Finding]:
    """Both one-run bounds, on guesses by likelihood ratio, from one run's (rounds, m) statistics.

    score_j = sum over rounds of log(1 - q + q exp((2 t - 1) / 2 sigma^2)), the log likelihood ratio of "in" under
    the claimed noise; of the r guesses, the r / 2 highest are "in" and the r / 2 lowest "out".
    """
    score = _log_ratio(seen, plan.sample_rate, plan.noise_multiplier).sum(0)
    each = 1 - (1 - confidence) / len(SHARES_GUESSED)
    found = []
    for method, of in (("one run, any mechanism", one_run), ("one run, Gaussian curve", f_dp)):
        best = (0.0, 0, 0)
        for share in SHARES_GUESSED:
            correct, guessed = count_right(score, included, share)
            best = max(best, (of(correct, guessed, len(score), plan.delta, each), correct, guessed))
        counted = {"correct": float(best[1]), "guesses": float(best[2]), "canaries": float(len(score))}
        found.append(bound(method, best[0], claim, confidence, seen=counted))
    return found


def _log_ratio(t: FloatArray, sample_rate: float, noise: float) -> FloatArray:
    exponent = (2 * t - 1) / (2 * noise**2)
    if sample_rate == 1:
        return exponent
    return np.asarray(np.logaddexp(math.log1p(-sample_rate), math.log(sample_rate) + exponent))


def count_right(score: FloatArray, included: NDArray[np.bool_], share: float) -> tuple[int, int]:
    """(right, guesses): half of `share` of the canaries guessed in, by highest score, and half out, by lowest."""
    half = max(1, int(len(score) * share / 2))
    order = np.argsort(score, kind="stable")
    return int(included[order[-half:]].sum() + (~included[order[:half]]).sum()), 2 * half


# --- one person alone ---------------------------------------------------------------------------------


def alone(
    mechanism: Mechanism, canaries: Canaries, delta: float, confidence: float, runs: int, seed: int
) -> Finding:
    """One canary and nobody else, rarely in a batch: is an empty batch a release like any other?

    Runs of one round with the canary and without; the event is that anything but exact zeros left. An agency that
    skips empty batches, noise and all, sends zeros whenever nobody was drawn, and only zeros where nobody is.
    """
    rarely = mechanism.at_rate(RARELY)
    claim = epsilon([rarely.plan.gradient_release(1)], delta)
    hits = []
    for there in (True, False):
        people = canaries.with_canaries(np.array([there]))
        rounds = (rarely(canaries.module, people, round_seed(seed, 2 * i + there)) for i in range(runs))
        hits.append(sum(bool(released[0].any()) for released in rounds))
    level = clopper_pearson(hits[0], runs, hits[1], runs, delta, confidence)
    seen = {"noised with": float(hits[0]), "noised without": float(hits[1]), "runs": float(runs)}
    return bound("one person alone", level, claim, confidence, seen=seen)
