"""The likelihood of how many people two noised histograms share, and what it will tell before anything is spent.

A bucket holds Poisson numbers of people known to A alone, to B alone and to both, at rates a - r, b - r and r people a
bucket. The joint probabilities J(r) of two counts are those of a bivariate Poisson pair (Holgate, Biometrika 1964), and each
agency's noise turns counts into what is seen: P(r) = N_A' J(r) N_B. Its generating function makes

    dJ/dr [x, y] = J[x-1, y-1] - J[x-1, y] - J[x, y-1] + J[x, y]

so the Fisher information of r in B buckets, B sum (dP/dr)^2 / P, is known from sizes and epsilons alone. Where a bucket holds
many people (small epsilons) the two counts are taken to be jointly normal, with the same moments.
"""

import math
from typing import Protocol, final

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

LIKELY = 1e-9  # counts and noise that are less likely than this are left out of the likelihood
MANY = 80.0  # people a bucket from which on counts are taken to be normal
WIDEST = 1024  # distinct counts of a histogram, far more than people and noise make: a wider one is a lie, and taken as normal
ROUNDS = 60  # of golden-section search: the interval shrinks by 0.618 each


def noise_variance(epsilon: float) -> float:
    """Variance of discrete Laplace noise, P(k) proportional to exp(-eps |k|): 2 e^-eps / (1 - e^-eps)^2."""
    return 2 * math.exp(-epsilon) / math.expm1(-epsilon) ** 2


class Likelihood(Protocol):
    """Of how many people are in both lists."""

    most: float  # people in the shorter list, as far as its histogram tells: nothing above is possible

    def at(self, shared: float) -> float:
        """Log-likelihood of `shared` people, up to a constant."""


def likelihood(one: IntArray, other: IntArray, epsilons: tuple[float, float]) -> Likelihood:
    """Of two histograms over the same buckets, (buckets,) each."""
    rates = [max(float(each.sum()), 1.0) / len(one) for each in (one, other)]
    widest = max(int(each.max()) - int(each.min()) for each in (one, other))
    exact = max(rates) <= MANY and widest < WIDEST
    return (_Counted if exact else _Normal)(one, other, (rates[0], rates[1]), epsilons)


def most_likely(found: Likelihood) -> float:
    """The number of people with the largest likelihood, by golden-section search: it has one peak."""
    low, high, ratio = 0.0, found.most, (math.sqrt(5) - 1) / 2
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    at_a, at_b = found.at(a), found.at(b)
    for _ in range(ROUNDS):
        if high - low < 0.01:
            break
        if at_a >= at_b:
            high, b, at_b = b, a, at_a
            a = high - ratio * (high - low)
            at_a = found.at(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + ratio * (high - low)
            at_b = found.at(b)
    return (low + high) / 2


def crossing(found: Likelihood, end: float, best: float, least: float) -> float:
    """Where, between `best` and `end`, the likelihood falls below `least`; `end` where it does not."""
    if found.at(end) >= least:
        return end
    inside, outside = best, end
    for _ in range(ROUNDS):
        if abs(outside - inside) < 0.01:
            break
        middle = (inside + outside) / 2
        if found.at(middle) >= least:
            inside = middle
        else:
            outside = middle
    return inside


def planned_sd(
    people: tuple[float, float], shared: float, buckets: int, epsilons: tuple[float, float]
) -> float:
    """Standard deviation, in people, with which lists of so many people tell that `shared` are in both.

    From the Fisher information (Cramér and Rao's bound, which the most likely number reaches as buckets grow): of
    declared sizes, no record is in it.
    """
    a, b = (max(size, 1.0) / buckets for size in people)
    rate = min(shared / buckets, a, b)
    if max(a, b) > MANY:
        spread = math.sqrt((a + noise_variance(epsilons[0])) * (b + noise_variance(epsilons[1])))
        correlation = rate / spread
        return math.sqrt(buckets) * spread * (1 - correlation**2) / math.sqrt(1 + correlation**2)
    counts = [np.arange(_largest(each) + 1) for each in (a, b)]
    noise = [_noise_of(own, epsilon) for own, epsilon in zip(counts, epsilons, strict=True)]
    joint = _joint(counts, (a, b), rate)
    change = np.diff(np.diff(np.pad(joint, ((1, 0), (1, 0))), axis=0), axis=1)
    seen, slope = (noise[0].T @ each @ noise[1] for each in (joint, change))
    information = buckets * float((slope**2 / np.maximum(seen, 1e-300)).sum())
    return buckets / math.sqrt(information)


@final
class _Counted:
    """Few people a bucket: every count and every noise is summed over."""

    def __init__(
        self, one: IntArray, other: IntArray, rates: tuple[float, float], epsilons: tuple[float, float]
    ) -> None:
        self._buckets, self._rates = len(one), rates
        self.most = min(rates) * self._buckets
        low = [int(each.min()) for each in (one, other)]
        span = [int(each.max()) - start + 1 for each, start in zip((one, other), low, strict=True)]
        seen = np.ravel_multi_index((one - low[0], other - low[1]), span)
        self._seen = np.bincount(seen, minlength=span[0] * span[1]).reshape(span).astype(np.float64)
        self._counts = [np.arange(_largest(rate) + 1) for rate in rates]
        self._noise = [
            laplace(start + np.arange(width)[None, :] - counts[:, None], epsilon)
            for start, width, counts, epsilon in zip(low, span, self._counts, epsilons, strict=True)
        ]

    def at(self, shared: float) -> float:
        """See `Likelihood`."""
        joint = _joint(self._counts, self._rates, shared / self._buckets)
        expected = self._noise[0].T @ joint @ self._noise[1]
        return float((self._seen * np.log(np.maximum(expected, 1e-300))).sum())


@final
class _Normal:
    """Many people a bucket: two normal counts, of which only how they go together is unknown."""

    def __init__(
        self, one: IntArray, other: IntArray, rates: tuple[float, float], epsilons: tuple[float, float]
    ) -> None:
        self._buckets = len(one)
        self.most = min(rates) * self._buckets
        variances = [rate + noise_variance(epsilon) for rate, epsilon in zip(rates, epsilons, strict=True)]
        self._spread = math.sqrt(variances[0] * variances[1])
        x, y = ((each - each.mean()) / math.sqrt(v) for each, v in zip((one, other), variances, strict=True))
        self._squares, self._products = float((x * x + y * y).sum()), float((x * y).sum())

    def at(self, shared: float) -> float:
        """See `Likelihood`."""
        correlation = shared / self._buckets / self._spread
        rest = 1 - correlation**2
        fit = (self._squares - 2 * correlation * self._products) / rest
        return -(self._buckets * math.log(rest) + fit) / 2


def _joint(counts: list[IntArray], rates: tuple[float, float], shared: float) -> FloatArray:
    """Chances that a bucket holds (x, y) people, of whom those at rate `shared` are in both, (len, len)."""
    alone = [_poisson(own, max(rate - shared, 0.0)) for own, rate in zip(counts, rates, strict=True)]
    joint = np.zeros([len(own) for own in counts])
    for together, chance in enumerate(_poisson(np.arange(_largest(shared) + 1), shared)):
        if together < min(joint.shape):
            ends = [len(own) - together for own in counts]
            joint[together:, together:] += chance * np.outer(alone[0][: ends[0]], alone[1][: ends[1]])
    return joint


def _noise_of(counts: IntArray, epsilon: float) -> FloatArray:
    """Chances that a count is seen as another, (counts, seen): as far as noise is likely to go."""
    reach = math.ceil(-math.log(LIKELY) / epsilon)
    return laplace(np.arange(-reach, int(counts[-1]) + reach + 1)[None, :] - counts[:, None], epsilon)


def _largest(rate: float) -> int:
    """A count that a Poisson number of this rate is above less often than `LIKELY`, or about so."""
    return math.ceil(rate + 6 * math.sqrt(rate) + 12)


def _poisson(counts: IntArray, rate: float) -> FloatArray:
    if rate <= 0:
        return np.asarray(counts == 0, np.float64)
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, counts[-1] + 1)))])
    found: FloatArray = np.exp(counts * math.log(rate) - rate - log_factorials[counts])
    return found


def laplace(values: IntArray, epsilon: float) -> FloatArray:
    """P(k) = (1 - e^-eps) / (1 + e^-eps) e^(-eps |k|)."""
    found: FloatArray = math.tanh(epsilon / 2) * np.exp(-epsilon * np.abs(values))
    return found
