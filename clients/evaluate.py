"""Held-out people and a model -> one table of counts, of L2 sensitivity 1.

Each person falls in exactly one cell (group, score bin, outcome), so adding or removing one person
changes the table by at most 1 in L2, and one Gaussian draw pays for accuracy, fairness and calibration.
"""

import numpy as np
import torch

from clients import blocks, noise
from clients.randomness import Stream
from models.scores import tally


def table_counts(
    module: torch.nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    group: np.ndarray,
    *,
    edges: np.ndarray,
    n_groups: int,
) -> np.ndarray:
    """Whole counts of shape (n_groups, bins, 2), float64, without noise: they must not leave.

    `x` has shape (n, d), or (n, k, d) with the most recent row last: a person is scored once, by that row.
    """
    if x.ndim == 3:
        x, y = x[:, -1], y[:, -1]
    with torch.no_grad():
        score = torch.sigmoid(blocks.logits(module, x)).double().numpy()
    score = np.nan_to_num(score, nan=0.0)  # an overflow is one person's: it must not show as an error
    return tally(edges, group, score, y.numpy(), n_groups).counts.astype(np.float64)


def noised_table(
    module: torch.nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    group: np.ndarray,
    *,
    edges: np.ndarray,
    n_groups: int,
    sigma: float,
    stream: Stream,
) -> np.ndarray:
    """`table_counts`, each with independent discrete Gaussian noise of std `sigma` people (`clients.noise`).

    `sigma` is 0 only where the plan says that there is no privacy: then the counts are exact.
    """
    counts = table_counts(module, x, y, group, edges=edges, n_groups=n_groups)
    return noise.noised(counts, noise.of_counts(sigma), stream) if sigma > 0 else counts
