"""A cutoff that flags no more people than there is capacity for, chosen on one table and judged on another."""

from dataclasses import dataclass
from typing import Literal, final

import numpy as np

from models.scores import ScoreTable


@final
@dataclass(frozen=True)
class Capacity:
    """The highest `share` of people that can be seen to, and the edge from which on they are flagged.

    chosen_on: the part of people whose table the cutoff was chosen on.
    """

    share: float
    cutoff: float
    chosen_on: Literal["tune", "test"]


def cutoff_within(table: ScoreTable, share: float) -> float | None:
    """The lowest bin edge at which, and at all above, at most `share`, in (0, 1), are flagged; None: there is none.

    With noise the share may rise from an edge to the next; sums of noised counts are right on average.
    """
    counts = table.counts.sum((0, 2))
    if not counts.sum() > 0:
        return None
    from_here = np.cumsum(counts[::-1])[::-1] / counts.sum()
    over = np.flatnonzero(from_here > share)
    first = int(over[-1]) + 1 if over.size else 0
    return float(table.edges[first]) if first < counts.size else None
