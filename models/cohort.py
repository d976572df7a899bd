"""How many people two or three agencies both know, from noised histograms of keyed hashes: nobody is matched.

Each agency drops its people into `buckets` by a hash under a secret that the agencies share, and releases how many are
in each, with discrete Laplace noise of its own. One person is in one bucket, so a release of parameter epsilon is
epsilon-differentially private (Ghosh, Roughgarden, Sundararajan, STOC 2009). A person whom both know is in the same
bucket of both, so the two histograms go together the more, the more people are in both lists.

For two agencies the number is the one that makes the two histograms most likely (`models.overlap`). A bucket holds Poisson
numbers of people known to A alone, to B alone and to both; each agency's sum reaches us with its noise. Counts of people are
small whole numbers and the likelihood knows it: it is closer than the product of the histograms, whose expectation is the same
number (an AMS sketch: Alon, Matias, Szegedy, STOC 1996). Three agencies' shared core is the third joint cumulant of their histograms,
which for sums of Poisson numbers is the rate of what all three share.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models import overlap
from models.disclosure import Disclosure
from models.overlap import noise_variance
from models.scores import LEVEL, NOTHING, Estimate, quantile

IntArray = NDArray[np.int64]

TOLD = 3.0  # standard deviations of its error from which on a number of people can be told from none
LEAST_BUCKETS, MOST_BUCKETS = 16, 2**24
EPSILONS = (0.01, 12.0)  # where `epsilon_for` looks


def buckets_for(people: float, epsilon: float) -> int:
    """How many buckets tell most about lists of `people`: more have less noise of chance, and more of privacy.

    people / tau with tau = e^eps / (e^eps - 1)^2, the least variance that eps leaves of one bit. For lists of different
    lengths `people` is their geometric mean (`overlap.planned_sd` has its least there).
    """
    tau = math.exp(epsilon) / math.expm1(epsilon) ** 2
    return min(max(LEAST_BUCKETS, round(people / tau)), MOST_BUCKETS)


def planned_buckets(people: Sequence[int], epsilon: float, levels: int = 1) -> int:
    """Buckets of each of `levels` levels of a group, from the sizes that the agencies declare."""
    mean = math.exp(sum(math.log(size) for size in people) / len(people))
    return buckets_for(mean / levels, epsilon)


def planned_sd(
    people: tuple[int, int], shared: float, epsilon: float, buckets: int, levels: int = 1
) -> float:
    """Standard deviation, in people, of `both` at that overlap, before anything is spent; levels of like size."""
    each = (people[0] / levels, people[1] / levels)
    return math.sqrt(levels) * overlap.planned_sd(each, shared / levels, buckets, (epsilon, epsilon))


def least(people: tuple[int, int], epsilon: float, buckets: int, levels: int = 1) -> float:
    """The smallest overlap, in people, that lists of these declared sizes can tell from none."""
    return TOLD * planned_sd(people, 0.0, epsilon, buckets, levels)


def epsilon_for(people: tuple[int, int], shared: float, levels: int = 1) -> float | None:
    """The least epsilon of each agency, to two digits, at which an overlap of `shared` can be told; None: above 12."""

    def tells(epsilon: float) -> bool:
        return least(people, epsilon, planned_buckets(people, epsilon, levels), levels) <= shared

    low, high = EPSILONS
    if not tells(high):
        return None
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if tells(middle) else (middle, high)
    scale = 10 ** (1 - math.floor(math.log10(high)))
    return float(math.ceil(high * scale) / scale)


def size(histogram: IntArray, epsilon: float, level: float = LEVEL) -> Estimate:
    """How many people are in one histogram, of any shape; the interval is that of the noise."""
    value, sd = float(histogram.sum()), math.sqrt(histogram.size * noise_variance(epsilon))
    margin = quantile(level) * sd
    return Estimate(max(value, 0.0), max(value - margin, 0.0), max(value + margin, 0.0), value >= TOLD * sd)


def both(one: IntArray, other: IntArray, epsilons: tuple[float, float], level: float = LEVEL) -> Estimate:
    """How many people are in both lists. `one` and `other`: noised histograms over the same buckets, (buckets,).

    The interval is where the likelihood ratio is not below what `level` allows (Wilks). The likelihood takes the lists'
    lengths as their histograms tell them; where that comes near the shorter one's, of which all may be in the other,
    the interval goes as far as that length itself may. Publishable where it does not reach 0.
    """
    if one.shape != other.shape or one.ndim != 1:
        raise ValueError(f"histograms must be of the same buckets, got {one.shape} and {other.shape}")
    found = overlap.likelihood(one, other, epsilons)
    best = overlap.most_likely(found)
    enough = found.at(best) - quantile(level) ** 2 / 2
    low = overlap.crossing(found, 0.0, best, enough)
    high = overlap.crossing(found, found.most, best, enough)
    longest = min(
        _longest(histogram, epsilon, level) for histogram, epsilon in zip((one, other), epsilons, strict=True)
    )
    if high > 2 * found.most - longest:
        high = max(high, longest)
    return Estimate(best, low, high, low > 0)


def _longest(histogram: IntArray, epsilon: float, level: float) -> float:
    """The upper end of how many people are in one histogram."""
    return size(histogram, epsilon, level).high or 0.0


def core(histograms: Sequence[IntArray], level: float = LEVEL) -> Estimate:
    """How many people are in all of two or three lists, by their joint cumulant; its sd is that of independent buckets."""
    buckets = len(histograms[0])
    centred = [histogram - histogram.mean() for histogram in histograms]
    products = np.prod(centred, axis=0)
    value = float(products.sum()) * (buckets / (buckets - 1))
    margin = quantile(level) * float(products.std()) * math.sqrt(buckets)
    low, high = max(value - margin, 0.0), max(value + margin, 0.0)
    return Estimate(min(max(value, 0.0), high), low, high, low > 0)


def together(parts: Sequence[Estimate]) -> Estimate:
    """The sum of independent numbers of people, as of the levels of a group (Zou and Donner, Statist. Med. 2008).

    low = sum v - sqrt(sum (v - low)^2), high likewise: each part's own interval is recovered where there is one part.
    """
    values = [part.value or 0.0 for part in parts]
    below = math.hypot(*(value - (part.low or 0.0) for value, part in zip(values, parts, strict=True)))
    above = math.hypot(*((part.high or 0.0) - value for value, part in zip(values, parts, strict=True)))
    low = max(sum(values) - below, 0.0)
    return Estimate(sum(values), low, sum(values) + above, low > 0)


def published(found: Estimate, rule: Disclosure) -> Estimate:
    """A number of people as the disclosure rule lets it out: rounded, its interval outward, not below the minimum."""
    if found.value is None or found.low is None or found.high is None:
        return NOTHING
    value, (low, high) = rule.rounded(found.value), rule.outward(found.low, found.high)
    return Estimate(value, low, high, found.publishable and found.value >= rule.minimum)


def share_of(shared: Estimate, people: Estimate) -> Estimate:
    """Which share of a list is in the other too, [0, 1], of two numbers as `published` left them.

    The interval goes from the least of the one by the most of the other to the reverse: it holds whenever both do.
    """
    if not (shared.publishable and people.publishable):
        return NOTHING
    assert shared.value is not None  # noqa: S101 - whatever is publishable has all three
    assert people.value is not None  # noqa: S101
    ends = [
        0.0 if top is None or not bottom else min(top / bottom, 1.0)
        for top, bottom in ((shared.low, people.high), (shared.high, people.low))
    ]
    high = ends[1] if people.low else 1.0
    value = min(shared.value / people.value, 1.0) if people.value else 0.0
    return Estimate(value, ends[0], high, True)
