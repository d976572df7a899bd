"""An agency's own noise on what it counts, in whole numbers: no low bit of what leaves says anything.

Noise in floating point gives exact values away by its last bits (Mironov, On significance of the least
significant bits for differential privacy, CCS 2012). So values are put on a grid of K steps to a person, K a
power of two, and exact discrete Gaussian noise of whole steps is added: what may leave is every multiple of
1 / K, whatever the records are, and float64 holds it exactly.

Neighbouring tables differ by a whole vector of at most D steps (L2). Then noise of variance parameter v costs
at most the Rényi divergence of a Gaussian of std sqrt(v) at sensitivity D, at every order, without sampling
(Canonne, Kamath, Steinke 2020, arXiv:2004.00010, Prop. 5). v >= (sigma D)^2, so it is charged as
`noise_multiplier` sigma.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import final

import numpy as np

from clients import randomness
from clients.randomness import Stream
from federation import masks
from models import quantiles

FINE = 32  # grid steps: the std of the noise on a count is at least this, so rounding sigma up is not seen
LIMIT = 2**52  # grid steps: more than any table has people; with its noise it is exact in float64


@final
@dataclass(frozen=True)
class Grid:
    """`steps` K to a person, a power of two, and the `variance` parameter of the noise, steps squared."""

    steps: int
    variance: int


def grid(sigma: float, steps: int, sensitivity: float) -> Grid:
    """K = `steps`, v = ceil((sigma D)^2) for a `sensitivity` of D steps, so that sqrt(v) / D >= sigma, exactly.

    ValueError where sigma is not above 0 or v is more than can be drawn.
    """
    if not 0 < sigma < math.inf:
        raise ValueError(f"the noise must be above 0 and finite, got {sigma}")
    variance = math.ceil((Fraction(sigma) * Fraction(sensitivity)) ** 2)
    if variance > randomness.MAX_VARIANCE:
        raise ValueError(
            f"noise of {sigma} people is more than can be drawn, {math.sqrt(randomness.MAX_VARIANCE) / sensitivity:.7g}"
        )
    return Grid(steps, variance)


def of_counts(sigma: float) -> Grid:
    """For whole counts, which one person moves by K steps. K is the least power of two with K sigma >= 32."""
    steps = 1
    while 0 < sigma * steps < FINE:
        steps *= 2
    return grid(sigma, steps, steps)


def of_sums(sigma: float) -> Grid:
    """For `models.quantiles.weighted` sums, which one person moves by `SENSITIVITY` steps once they are rounded."""
    return grid(sigma, quantiles.STEPS, quantiles.SENSITIVITY)


def noised(values: np.ndarray, grid: Grid, stream: Stream) -> np.ndarray:
    """`values` (people) rounded to the grid, with independent noise on each; multiples of 1 / K, float64."""
    steps = masks.to_grid(values, grid.steps, LIMIT)
    drawn = randomness.discrete_gaussian(stream, steps.size, grid.variance).reshape(steps.shape)
    return np.asarray((steps + drawn) / grid.steps, np.float64)
