"""How many people two or three agencies both know, from noised histograms of keyed hashes: nobody is matched.

Each agency drops its people into `buckets` by a hash under a secret that the agencies share, and releases how many are
in each, with discrete Laplace noise of its own. One person is in one bucket, so a release of parameter epsilon is
epsilon-differentially private (Ghosh, Roughgarden, Sundararajan, STOC 2009). A person whom both know is in the same
bucket of both, so the two histograms go together the more, the more people are in both lists.

For two agencies the number is the one that makes the two histograms most likely. A bucket holds Poisson numbers of
people known to A alone, to B alone and to both; each agency's sum reaches us with its noise. Counts of people are small
whole numbers and the likelihood knows it: it is closer than the product of the histograms, whose expectation is the same
number (an AMS sketch: Alon, Matias, Szegedy, STOC 1996). Three agencies' shared core is the third joint cumulant of their histograms,
which for sums of Poisson numbers is the rate of what all three share.
"""

import math
from collections.abc import Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray

from models.scores import LEVEL, Estimate, quantile

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

LIKELY = 1e-9  # counts and noise that are less likely than this are left out of the likelihood
ROUNDS = 60  # of golden-section search: the interval shrinks by 0.618 each


def buckets_for(people: int, epsilon: float) -> int:
    """How many buckets tell most about lists of `people`: more have less noise of chance, and more of privacy.

    people / tau with tau = e^eps / (e^eps - 1)^2, the least variance that eps leaves of one bit.
    """
    tau = math.exp(epsilon) / math.expm1(epsilon) ** 2
    return max(16, round(people / tau))


def noise_variance(epsilon: float) -> float:
    """Variance of discrete Laplace noise, P(k) proportional to exp(-eps |k|): 2 e^-eps / (1 - e^-eps)^2."""
    return 2 * math.exp(-epsilon) / math.expm1(-epsilon) ** 2


def size(histogram: IntArray, epsilon: float, level: float = LEVEL) -> Estimate:
    """How many people are in one histogram (buckets,); the interval is that of the noise."""
    value, sd = float(histogram.sum()), math.sqrt(len(histogram) * noise_variance(epsilon))
    margin = quantile(level) * sd
    return Estimate(max(value, 0.0), max(value - margin, 0.0), max(value + margin, 0.0), value >= 3 * sd)


def both(one: IntArray, other: IntArray, epsilons: tuple[float, float], level: float = LEVEL) -> Estimate:
    """How many people are in both lists. `one` and `other`: noised histograms over the same buckets, (buckets,).

    The interval is where the likelihood ratio is not below what `level` allows (Wilks). Publishable where it
    does not reach 0.
    """
    if one.shape != other.shape or one.ndim != 1:
        raise ValueError(f"histograms must be of the same buckets, got {one.shape} and {other.shape}")
    pair = _Pair(one, other, epsilons)
    best = pair.most_likely()
    drop = quantile(level) ** 2 / 2
    top = pair.log_likelihood(best)
    low = pair.crossing(0.0, best, top - drop)
    high = pair.crossing(pair.most, best, top - drop)
    return Estimate(best, low, high, low > 0)


def core(histograms: Sequence[IntArray], level: float = LEVEL) -> Estimate:
    """How many people are in all of two or three lists, by their joint cumulant; its sd is that of independent buckets."""
    buckets = len(histograms[0])
    centred = [histogram - histogram.mean() for histogram in histograms]
    products = np.prod(centred, axis=0)
    value = float(products.sum()) * (buckets / (buckets - 1))
    margin = quantile(level) * float(products.std()) * math.sqrt(buckets)
    low, high = max(value - margin, 0.0), max(value + margin, 0.0)
    return Estimate(min(max(value, 0.0), high), low, high, low > 0)


@final
class _Pair:
    """The likelihood of how many people two histograms share."""

    def __init__(self, one: IntArray, other: IntArray, epsilons: tuple[float, float]) -> None:
        self._buckets = len(one)
        self._rates = [max(float(each.sum()), 1.0) / self._buckets for each in (one, other)]
        self.most = min(self._rates) * self._buckets
        low = [int(each.min()) for each in (one, other)]
        span = [int(each.max()) - start + 1 for each, start in zip((one, other), low, strict=True)]
        seen = np.ravel_multi_index((one - low[0], other - low[1]), span)
        self._seen = np.bincount(seen, minlength=span[0] * span[1]).reshape(span).astype(np.float64)
        self._counts = [np.arange(_largest(rate) + 1) for rate in self._rates]
        self._noise = [
            _laplace(start + np.arange(width)[None, :] - counts[:, None], epsilon)
            for start, width, counts, epsilon in zip(low, span, self._counts, epsilons, strict=True)
        ]

    def log_likelihood(self, shared: float) -> float:
        """Of `shared` people in both lists, up to a constant."""
        rate = shared / self._buckets
        alone = [
            _poisson(counts, max(own - rate, 0.0))
            for counts, own in zip(self._counts, self._rates, strict=True)
        ]
        joint = np.zeros([len(counts) for counts in self._counts])
        for together, chance in enumerate(_poisson(np.arange(_largest(rate) + 1), rate)):
            if together < min(joint.shape):
                ends = [len(counts) - together for counts in self._counts]
                joint[together:, together:] += chance * np.outer(alone[0][: ends[0]], alone[1][: ends[1]])
        expected = self._noise[0].T @ joint @ self._noise[1]
        return float((self._seen * np.log(np.maximum(expected, 1e-300))).sum())

    def most_likely(self) -> float:
        """The number of people with the largest likelihood, by golden-section search: it has one peak."""
        low, high, ratio = 0.0, self.most, (math.sqrt(5) - 1) / 2
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        at_a, at_b = self.log_likelihood(a), self.log_likelihood(b)
        for _ in range(ROUNDS):
            if high - low < 0.01:
                break
            if at_a >= at_b:
                high, b, at_b = b, a, at_a
                a = high - ratio * (high - low)
                at_a = self.log_likelihood(a)
            else:
                low, a, at_a = a, b, at_b
                b = low + ratio * (high - low)
                at_b = self.log_likelihood(b)
        return (low + high) / 2

    def crossing(self, end: float, best: float, least: float) -> float:
        """Where, between `best` and `end`, the likelihood falls below `least`; `end` where it does not."""
        if self.log_likelihood(end) >= least:
            return end
        inside, outside = best, end
        for _ in range(ROUNDS):
            if abs(outside - inside) < 0.01:
                break
            middle = (inside + outside) / 2
            if self.log_likelihood(middle) >= least:
                inside = middle
            else:
                outside = middle
        return inside


def _largest(rate: float) -> int:
    """A count that a Poisson number of this rate is above less often than `LIKELY`, or about so."""
    return math.ceil(rate + 6 * math.sqrt(rate) + 12)


def _poisson(counts: NDArray[np.int64], rate: float) -> FloatArray:
    if rate <= 0:
        return np.asarray(counts == 0, np.float64)
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, counts[-1] + 1)))])
    found: FloatArray = np.exp(counts * math.log(rate) - rate - log_factorials[counts])
    return found


def _laplace(values: NDArray[np.int64], epsilon: float) -> FloatArray:
    """P(k) = (1 - e^-eps) / (1 + e^-eps) e^(-eps |k|)."""
    found: FloatArray = math.tanh(epsilon / 2) * np.exp(-epsilon * np.abs(values))
    return found
