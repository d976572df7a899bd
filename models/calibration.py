"""Is a score of 0.3 right three times in ten? From counts by score bin.

The table does not hold people's scores, only their bins. The middle of a bin stands for the scores in it
(`centres`): no other single score is nearer to the furthest of them. So each number here is that of a model
that says only the centre; `brier_bound` and `log_loss_bound` say how far the exact scores' number can be.

Brier score, log loss and O/E are ratios of weighted counts, with weights a above and b below. The interval
holds the M for which (sum a n - M sum b n)^2 <= z^2 sum (n + v) (a - M b)^2: Fieller's, with the variances of
the sample and of the noise side by side in every count.
"""

import math
from dataclasses import dataclass
from typing import final

import numpy as np

from models.disclosure import UNROUNDED, Disclosure
from models.scores import (
    LEVEL,
    NOTHING,
    Estimate,
    FloatArray,
    Noised,
    ScoreTable,
    between_roots,
    proportion,
    quantile,
    spread,
)

IDENTITY = (0.0, 1.0)


def centres(table: ScoreTable) -> FloatArray:
    """The score that stands for each bin: its middle, shape (B,), in (0, 1)."""
    return (table.edges[:-1] + table.edges[1:]) / 2


def reliability(
    table: ScoreTable, *, disclosure: Disclosure = UNROUNDED
) -> list[tuple[float, float, float, Estimate]]:
    """(low edge, high edge, centre, observed rate) of each bin, over everyone in the table."""
    counts, noise = table.counts.sum(0).tolist(), table.variance.sum(0).tolist()
    observed = [
        proportion(Noised(n[1], v[1]), Noised(n[0], v[0]), disclosure=disclosure)
        for n, v in zip(counts, noise, strict=True)
    ]
    ends = table.edges.tolist()
    return list(zip(ends[:-1], ends[1:], centres(table).tolist(), observed, strict=True))


def brier(table: ScoreTable, *, disclosure: Disclosure = UNROUNDED, level: float = LEVEL) -> Estimate:
    """Mean (centre - y)^2, in [0, 1]; 0 is perfect (Brier 1950)."""
    return _ratio(table, _squares(centres(table)), np.ones((1, 2)), disclosure, level, ceiling=1.0)


def log_loss(table: ScoreTable, *, disclosure: Disclosure = UNROUNDED, level: float = LEVEL) -> Estimate:
    """Mean -log P(y) when the model says the centre, in nats, >= 0."""
    return _ratio(table, _logs(centres(table)), np.ones((1, 2)), disclosure, level)


def observed_expected(
    table: ScoreTable, *, disclosure: Disclosure = UNROUNDED, level: float = LEVEL
) -> Estimate:
    """O/E: people with y = 1 over the sum of scores; above 1 the model says too little, below 1 too much."""
    expected = np.repeat(centres(table)[:, None], 2, axis=1)
    return _ratio(table, np.array([[0.0, 1.0]]), expected, disclosure, level)


def _squares(score: FloatArray) -> FloatArray:
    return np.stack([score**2, (1 - score) ** 2], axis=1)


def _logs(score: FloatArray) -> FloatArray:
    with np.errstate(divide="ignore"):
        return -np.log(np.stack([1 - score, score], axis=1))


def _ratio(
    table: ScoreTable,
    a: FloatArray,
    b: FloatArray,
    disclosure: Disclosure,
    level: float,
    ceiling: float = math.inf,
) -> Estimate:
    """sum a n / sum b n over everyone, in [0, ceiling]; a and b of shape (B, 2) or (1, 2).

    No interval, and not publishable, when the denominator cannot be told from noise.
    """
    counts, w, z2 = table.counts.sum(0), spread(table), quantile(level) ** 2
    everyone = Noised(float(counts.sum()), float(table.variance.sum()))
    top, bottom = float((a * counts).sum()), float((b * counts).sum())
    if not (everyone.count > 0 and bottom > 0):
        return NOTHING
    value = min(max(top / bottom, 0.0), ceiling)
    low, high = between_roots(
        bottom**2 - z2 * float((w * b * b).sum()),
        top * bottom - z2 * float((w * a * b).sum()),
        top**2 - z2 * float((w * a * a).sum()),
    )
    if not math.isfinite(high):
        return Estimate(value, None, None, False)
    low, high = min(max(low, 0.0), value), max(min(high, ceiling), value)
    shown = everyone.reaches(disclosure.minimum) and high - low < ceiling
    return Estimate(*disclosure.coarse(value, low, high), shown)


def brier_bound(table: ScoreTable) -> float | None:
    """|Brier score of the exact scores - `brier`| is at most this (without noise); None for nobody."""
    return _bound(table, _squares(table.edges), _squares(centres(table)))


def log_loss_bound(table: ScoreTable) -> float | None:
    """|log loss of the exact scores - `log_loss`| is at most this (without noise).

    None without a finite bound: someone has y = 1 in the bin that starts at 0, or y = 0 in the last.
    """
    return _bound(table, _logs(table.edges), _logs(centres(table)))


def _bound(table: ScoreTable, at_edges: FloatArray, at_centres: FloatArray) -> float | None:
    """Mean over people of the most that a monotone loss changes from a bin's centre to its ends."""
    counts = np.maximum(table.counts.sum(0), 0.0)
    most = np.maximum(abs(at_edges[:-1] - at_centres), abs(at_edges[1:] - at_centres))[counts > 0]
    people = counts[counts > 0]
    return float(people @ most / people.sum()) if people.size and np.isfinite(most).all() else None


def calibration_error(
    table: ScoreTable, *, disclosure: Disclosure = UNROUNDED, level: float = LEVEL
) -> Estimate:
    """Expected calibration error, sum_b n_b / n |observed rate_b - centre_b|, in [0, 1].

    Naeini et al., AAAI 2015; the centre stands for the bin's mean score. Chance and noise push a sum of
    absolute values upwards, so the interval reaches further down than up. With d_b = n_b (observed - centre),
    s_b the standard deviation of its error and D = sum |d_b|: the errors add at most their own absolute
    values, and D is on average not below the truth. So, with S^2 = sum s_b^2 and everything over n,

        D - [sqrt(2/pi) sum s_b + z sqrt(1 - 2/pi) S]  <=  truth  <=  D + z S.
    """
    counts, centre, z = table.counts.sum(0), centres(table), quantile(level)
    everyone = Noised(float(counts.sum()), float(table.variance.sum()))
    if not everyone.count > 0:
        return NOTHING
    total = float(abs((1 - centre) * counts[:, 1] - centre * counts[:, 0]).sum())
    s = np.sqrt((spread(table) * _squares(centre)).sum(1))
    up = z * math.sqrt(float(s @ s))
    down = math.sqrt(2 / math.pi) * float(s.sum()) + math.sqrt(1 - 2 / math.pi) * up
    value, low, high = (min(max(x / everyone.count, 0.0), 1.0) for x in (total, total - down, total + up))
    shown = everyone.reaches(disclosure.minimum) and high - low < 1
    return Estimate(*disclosure.coarse(value, low, high), shown)


@final
@dataclass(frozen=True)
class Recalibration:
    """p' = sigmoid(intercept + slope logit p), with the covariance of the two numbers, noise included.

    covariance: (variance of the intercept, covariance, variance of the slope).
    """

    intercept: float
    slope: float
    covariance: tuple[float, float, float]

    def interval(self, logit: FloatArray, level: float = LEVEL) -> tuple[FloatArray, FloatArray, FloatArray]:
        """(p', low, high) at each logit of p, all of its shape: an interval of the map, by the delta method.

        It says how sure the map is of the share among people with this logit; nobody's own future is in it.
        """
        eta, (aa, ab, bb) = self.intercept + self.slope * logit, self.covariance
        margin = quantile(level) * np.sqrt(np.maximum(aa + 2 * ab * logit + bb * logit**2, 0.0))
        return _sigmoid(eta), _sigmoid(eta - margin), _sigmoid(eta + margin)


def recalibration(table: ScoreTable) -> Recalibration | None:
    """The map that the table's counts fit best (Platt 1999), by Newton's method.

    The likelihood's equations are linear in the counts, so noise alone does not bias them; bins whose count
    is within three standard deviations of nothing but noise stay out. None when the table cannot be trusted
    to do better than no map: fewer than two bins left, a standard error of 0.25 or more (of b, or of the
    shift at the mean score; noise included), a shift beyond 5, or b outside [0.1, 10]. As b > 0, nobody's
    order changes.
    """
    counts, noise, centre = table.counts.sum(0), table.variance.sum(0), centres(table)
    sure = counts.sum(1) > 3 * np.sqrt(noise.sum(1))
    logit = np.log(centre / (1 - centre))[sure]
    return _fitted(logit, counts[sure].sum(1), counts[sure, 1], noise[sure])


def recalibration_of(logit: FloatArray, y: FloatArray) -> Recalibration | None:
    """`recalibration` from people themselves: their logits and outcomes, both (n,). For their own agency alone."""
    return _fitted(logit, np.ones_like(logit), y, np.zeros((len(logit), 2)))


def recalibrate(table: ScoreTable) -> tuple[float, float]:
    """(intercept, slope) of `recalibration`; the identity (0, 1) where there is none."""
    found = recalibration(table)
    return IDENTITY if found is None else (found.intercept, found.slope)


def _fitted(
    logit: FloatArray, n: FloatArray, positive: FloatArray, noise: FloatArray
) -> Recalibration | None:
    """The map from n people at each logit, `positive` of them with the outcome; noise: (., 2) variances."""
    if len(np.unique(logit)) < 2:
        return None
    mean = float(n @ logit / n.sum())
    x = np.stack([np.ones_like(logit), logit - mean], axis=1)
    theta = _newton(x, n, positive, np.array([mean, 1.0]))
    if theta is None:
        return None
    p, (v_negative, v_positive) = _sigmoid(x @ theta), noise.T
    bread = np.linalg.inv(_information(x, n * p * (1 - p)))
    meat = _information(x, n * p * (1 - p) + (1 - p) ** 2 * v_positive + p**2 * v_negative)
    v = bread @ meat @ bread
    b = float(theta[1])
    if not (np.sqrt(np.diag(v)).max() < 0.25 and abs(theta[0] - mean) <= 5 and 0.1 <= b <= 10):
        return None
    aa = float(v[0, 0] - 2 * mean * v[0, 1] + mean**2 * v[1, 1])
    return Recalibration(float(theta[0]) - b * mean, b, (aa, float(v[0, 1] - mean * v[1, 1]), float(v[1, 1])))


def recalibrated(score: FloatArray, a: float, b: float) -> FloatArray:
    """sigmoid(a + b logit score), the same shape; 0 and 1 stay what they are."""
    with np.errstate(divide="ignore"):
        return _sigmoid(a + b * (np.log(score) - np.log1p(-score)))


def _newton(x: FloatArray, n: FloatArray, positive: FloatArray, theta: FloatArray) -> FloatArray | None:
    """Maximum of sum positive * eta - n log(1 + e^eta), eta = x @ theta; concave as long as n > 0.

    Steps are halved until they climb. None without a maximum at hand: it runs away or does not settle.
    """

    def likelihood(at: FloatArray) -> float:
        return float(positive @ (x @ at) - n @ np.logaddexp(0, x @ at))

    for _ in range(30):
        p = _sigmoid(x @ theta)
        information = _information(x, n * p * (1 - p))
        if not abs(theta).max() < 20 or np.linalg.cond(information) > 1e10:
            return None
        step = np.linalg.solve(information, x.T @ (positive - n * p))
        if abs(step).max() < 1e-9:
            return theta
        while likelihood(theta + step) < likelihood(theta) and abs(step).max() > 1e-9:
            step = step / 2
        theta = theta + step
    return None


def _information(x: FloatArray, weight: FloatArray) -> FloatArray:
    return np.asarray(x.T @ (weight[:, None] * x))


def _sigmoid(eta: FloatArray) -> FloatArray:
    return np.exp(-np.logaddexp(0, -eta))
