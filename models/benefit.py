"""Is it better to use the model than to flag everybody, or nobody? Net benefit, from counts by score bin.

Whoever flags people at a score of p_t or above says that finding one person is worth w = p_t / (1 - p_t) people
flagged for nothing. Net benefit counts both in one unit, people rightly flagged for each person seen
(Vickers & Elkin, Medical Decision Making 2006, doi:10.1177/0272989X06295361):

    NB = TP / n - w FP / n;   everybody flagged: P / n - w N / n;   nobody flagged: 0.

Each is (a G - b H) / (G + H + R) for three disjoint counts of people. The interval holds the M for which

    (a G - b H - M n)^2 <= z^2 [(a - M)^2 (G + z^2/2 + vG) + (b + M)^2 (H + z^2/2 + vH) + M^2 (R + vR)]:

Fieller's, with the variances of the sample and of the noise side by side in every count, and z^2/2 more of each kind
that counts, as Agresti & Coull (American Statistician 1998) have it, since nobody seen is not nobody there.
"""

from models.disclosure import UNROUNDED, Disclosure
from models.scores import (
    LEVEL,
    NOTHING,
    Estimate,
    Noised,
    ScoreTable,
    between_roots,
    confusion,
    quantile,
)


def net_benefit(
    table: ScoreTable, cutoff: float, *, disclosure: Disclosure = UNROUNDED, level: float = LEVEL
) -> Estimate:
    """TP / n - w FP / n with w = cutoff / (1 - cutoff), in [-w, 1]: people rightly flagged for each person seen."""
    c = confusion(table, cutoff)
    return _benefit(c.tp, c.fp, c.fn + c.tn, 1.0, _odds(cutoff), disclosure, level)


def net_benefit_all(
    table: ScoreTable, cutoff: float, *, disclosure: Disclosure = UNROUNDED, level: float = LEVEL
) -> Estimate:
    """Net benefit at `cutoff` of flagging everybody, in [-w, 1]. That of flagging nobody is 0."""
    c = confusion(table, cutoff)
    return _benefit(c.tp + c.fn, c.fp + c.tn, Noised(0.0, 0.0), 1.0, _odds(cutoff), disclosure, level)


def net_benefit_gain(
    table: ScoreTable, cutoff: float, *, disclosure: Disclosure = UNROUNDED, level: float = LEVEL
) -> Estimate:
    """`net_benefit` less that of the better of flagging everybody and flagging nobody; above 0 the model is useful.

    It is the smaller of two differences, each with its own variance: to nobody it is `net_benefit`, to everybody
    w TN / n - FN / n, about those who are not flagged. The lower end is the smaller of their lower ends: it is too
    high only where that of the truly smaller one is. The upper end is the smaller of the upper ends at half the
    error each, as either may be too low.
    """
    c, w = confusion(table, cutoff), _odds(cutoff)
    strict = 1 - (1 - level) / 2

    def differences(at: float) -> tuple[Estimate, Estimate]:
        to_nobody = _benefit(c.tp, c.fp, c.fn + c.tn, 1.0, w, disclosure, at)
        return to_nobody, _benefit(c.tn, c.fn, c.tp + c.fp, w, 1.0, disclosure, at)

    found, upper = differences(level), differences(strict)
    value, low, high = (
        None if None in ends else min(end for end in ends if end is not None)
        for ends in (
            [each.value for each in found],
            [each.low for each in found],
            [each.high for each in upper],
        )
    )
    return Estimate(value, low, high, all(each.publishable for each in (*found, *upper)))


def _odds(cutoff: float) -> float:
    """w: how many people flagged for nothing weigh as much as one rightly flagged."""
    return cutoff / (1 - cutoff)


def _benefit(
    gained: Noised, harmed: Noised, others: Noised, a: float, b: float, disclosure: Disclosure, level: float
) -> Estimate:
    """(a gained - b harmed) / everyone, in [-b, a]. The whole range, not publishable, where everyone may be noise."""
    everyone, z2 = gained + harmed + others, quantile(level) ** 2
    gained, harmed, others = (count.rounded(disclosure) for count in (gained, harmed, others))
    n, top = gained.count + harmed.count + others.count, a * gained.count - b * harmed.count
    if not n > 0:
        return NOTHING
    of_gained, of_harmed, of_others = (
        max(each.count, 0.0) + each.variance + more
        for each, more in ((gained, z2 / 2), (harmed, z2 / 2), (others, 0.0))
    )
    low, high = between_roots(
        n * n - z2 * (of_gained + of_harmed + of_others),
        n * top - z2 * (a * of_gained - b * of_harmed),
        top * top - z2 * (a * a * of_gained + b * b * of_harmed),
    )
    value = min(max(top / n, -b), a)
    low, high = min(max(low, -b), value), max(min(high, a), value)
    return Estimate(value, low, high, everyone.reaches(disclosure.minimum) and high - low < a + b)
