"""Held-out people and a model -> one table of counts, of L2 sensitivity 1.

Each person falls in exactly one cell (group, score bin, outcome), so adding or removing one person
changes the table by at most 1 in L2, and one Gaussian draw pays for accuracy, fairness and calibration.
"""

from collections.abc import Callable

import numpy as np
import torch

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
        score = torch.sigmoid(module(x)).double().numpy()
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
    noise: Callable[[int, float], torch.Tensor],
) -> np.ndarray:
    """`table_counts`, each with independent Gaussian noise of std `sigma` people.

    `sigma` is 0 only where the plan says that there is no privacy.
    """
    counts = table_counts(module, x, y, group, edges=edges, n_groups=n_groups)
    if sigma > 0:
        counts = counts + noise(counts.size, sigma).double().numpy().reshape(counts.shape)
    return counts
