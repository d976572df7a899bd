"""Group multipliers: how much a person's gradient counts, by audit group and outcome. Public numbers in an order.

A multiplier m is in [1/M, M], M = `most` of the plan, and their mean is 1. A node multiplies each person's *clipped*
gradient by m / max m, which is in (0, 1]. So whatever the multipliers are, a person still moves the sum by at most C,
the noise is the same and nothing more is charged; and multipliers that are all alike change no bit. (A factor on the
loss, before clipping, would keep the sensitivity too, but those whose gradients are clipped to C would not feel it:
docs/fairness.md.) Multiplying again by max m afterwards would raise the noise with it, so nobody does.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from models.scores import FloatArray

EVEN = 1e-6  # how far from 1 the mean may be


def bounded(values: ArrayLike, most: float) -> FloatArray:
    """`values` (any shape, above 0) x one factor, cut to [1 / most, most], so that the mean is 1.

    The mean rises with the factor, from 1 / most to most, so there is one; found by halving its logarithm's range.
    """
    given = np.asarray(values, np.float64)
    if not (np.isfinite(given).all() and (given > 0).all()):
        raise ValueError("multipliers must be finite numbers above 0")
    low, high = -math.log(most * given.max()), math.log(most / given.min())

    def cut(factor: float) -> FloatArray:
        return np.asarray(np.clip(given * math.exp(factor), 1 / most, most))

    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if cut(middle).mean() < 1 else (low, middle)
    return cut(high)


def problem(
    values: Sequence[float], most: float, n_groups: int, levels: Iterable[Sequence[int]] = ()
) -> str | None:
    """The rule that the multipliers of an order break, or None. `values`: two for each group, outcome 0 first.

    levels: the groups of each level of the attribute by which the plan says that people count: all of them count alike.
    """
    if len(values) != 2 * n_groups:
        return f"an order has two multipliers for each of {n_groups} groups, or none, got {len(values)}"
    found, slack = np.asarray(values, np.float64), 1 + EVEN
    if not ((found >= 1 / (most * slack)) & (found <= most * slack)).all():  # nor NaN
        return f"a multiplier is not within 1/{most:g} and {most:g}"
    if not abs(found.mean() - 1) <= EVEN:
        return "the mean of the multipliers is not 1"
    rows = found.reshape(-1, 2)
    if any((rows[list(groups)] != rows[groups[0]]).any() for groups in levels):
        return "people of one level, with one outcome, have several multipliers"
    return None


def shares(values: Sequence[float]) -> FloatArray:
    """What each clipped gradient is multiplied by, shape (groups, 2) by outcome, in (0, 1]."""
    found = np.asarray(values, np.float64).reshape(-1, 2)
    return np.asarray(found / found.max())
