"""Held-out people and a model -> tables of counts, each of L2 sensitivity 1.

Each person falls in exactly one cell (group, score bin, outcome), so adding or removing one person
changes the table by at most 1 in L2, and one Gaussian draw pays for accuracy, fairness and calibration. A table
of users is a second one, of the same people in exactly one cell (flagged, practice, intensity, lead) each.
"""

import numpy as np
import torch

from clients import blocks, noise
from clients.randomness import Stream
from models import users
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
    y = y[:, -1] if y.ndim == 2 else y
    return tally(edges, group, _scores(module, x), y.numpy(), n_groups).counts.astype(np.float64)


def user_counts(
    module: torch.nn.Module,
    x: torch.Tensor,
    user: np.ndarray,
    *,
    cutoff: float,
    shape: tuple[int, int, int, int],
) -> np.ndarray:
    """Whole counts of shape `Contract.users_shape`, float64, without noise: they must not leave.

    `x` as in `table_counts`, so whoever is flagged here is at or above the bin edge `cutoff` there. `user`: (n,) places
    in `shape[1:]`.
    """
    return users.tally(shape, _scores(module, x) >= cutoff, user).counts.astype(np.float64)


def _scores(module: torch.nn.Module, x: torch.Tensor) -> np.ndarray:
    """A score for each person, float64 (n,), by the most recent row."""
    x = x[:, -1] if x.ndim == 3 else x
    with torch.no_grad():
        score = torch.sigmoid(blocks.logits(module, x)).double().numpy()
    # an overflow is one person's: it must not show as an error
    return np.asarray(np.nan_to_num(score, nan=0.0))


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
    return _noised(table_counts(module, x, y, group, edges=edges, n_groups=n_groups), sigma, stream)


def noised_users(
    module: torch.nn.Module,
    x: torch.Tensor,
    user: np.ndarray,
    *,
    cutoff: float,
    shape: tuple[int, int, int, int],
    sigma: float,
    stream: Stream,
) -> np.ndarray:
    """`user_counts`, with noise as in `noised_table`."""
    return _noised(user_counts(module, x, user, cutoff=cutoff, shape=shape), sigma, stream)


def _noised(counts: np.ndarray, sigma: float, stream: Stream) -> np.ndarray:
    return noise.noised(counts, noise.of_counts(sigma), stream) if sigma > 0 else counts
