"""What recalibrating each agency, or a cutoff for each group, would change: analysis only, used in no score.

Both are fitted on tune people and judged on test people, from tables that were released anyway, so they cost no ε.
A cutoff for each group treats people differently because of the group: for a protected characteristic that is direct
discrimination in most uses (Equality Act 2010, s. 13). It is computed because it shows what equal treatment of
outcomes would cost (Hardt, Price & Srebro, NeurIPS 2016), not so that anyone does it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from models import fairness, scores
from models.calibration import Recalibration, recalibrated
from models.disclosure import UNROUNDED, Disclosure
from models.fairness import Levels
from models.scores import Estimate, FloatArray, ScoreTable, cutoff_bin

DECIDED = (0.0, 0.5, 1.0)  # edges of a table that only says who was flagged


def recalibrated_table(table: ScoreTable, found: Recalibration) -> ScoreTable | None:
    """The table of the scores that `found` makes of those in `table`: the same counts between other edges.

    None where two edges get the same score, in double precision.
    """
    edges = recalibrated(table.edges, found.intercept, found.slope)
    return ScoreTable(edges, table.counts, table.variance) if (np.diff(edges) > 0).all() else None


def group_cutoffs(
    tune: ScoreTable, levels: Levels, cutoff: float, *, disclosure: Disclosure = UNROUNDED
) -> dict[str, float]:
    """For each level the bin edge at which its true positive rate is nearest to everybody's at `cutoff`.

    The nearest to `cutoff` of several; `cutoff` itself where the level's rate may not be published.
    """
    target = scores.true_positive_rate(tune, cutoff, disclosure=disclosure).value
    found = {}
    for name, groups in levels.items():
        one = tune.pick(groups)
        shown = scores.true_positive_rate(one, cutoff, disclosure=disclosure).publishable
        found[name] = float(cutoff) if target is None or not shown else _nearest(one, target, cutoff)
    return found


def _nearest(table: ScoreTable, target: float, cutoff: float) -> float:
    positive = table.counts[:, :, 1].sum(0)
    rates = np.clip(np.cumsum(positive[::-1])[::-1] / positive.sum(), 0.0, 1.0)
    starts = table.edges[:-1]
    order = np.lexsort((abs(starts - cutoff), abs(rates - target).round(12)))
    return float(starts[order[0]])


def decided(table: ScoreTable, levels: Levels, cutoffs: Mapping[str, float]) -> ScoreTable:
    """Who is flagged when each level has a cutoff of its own: one group for each level, edges `DECIDED`."""

    def halves(cells: FloatArray, groups: Sequence[int], first: int) -> FloatArray:
        of_level = cells[np.asarray(groups, np.intp)].sum(0)
        return np.stack([of_level[:first].sum(0), of_level[first:].sum(0)])

    at = {name: cutoff_bin(table.edges, cutoffs[name]) for name in levels}
    counts, variance = (
        np.stack([halves(cells, groups, at[name]) for name, groups in levels.items()])
        for cells in (table.counts, table.variance)
    )
    return ScoreTable(DECIDED, counts, variance)


@final
@dataclass(frozen=True)
class GroupThresholds:
    """One attribute's cutoffs, and its gaps and the accuracy with the one cutoff and with these, on test people.

    Each gap's interval holds for all pairs of levels at once, neither over the gaps nor over before and after.
    """

    cutoffs: dict[str, float]
    before: dict[str, Estimate]
    after: dict[str, Estimate]
    accuracy_before: Estimate
    accuracy_after: Estimate


def group_thresholds(
    tune: ScoreTable, test: ScoreTable, levels: Levels, cutoff: float, *, disclosure: Disclosure = UNROUNDED
) -> GroupThresholds:
    """Cutoffs chosen on `tune`, judged on `test`: tables with the same edges and groups."""
    cutoffs = group_cutoffs(tune, levels, cutoff, disclosure=disclosure)
    own = decided(test, levels, cutoffs)
    places = {name: [place] for place, name in enumerate(levels)}
    half = DECIDED[1]
    return GroupThresholds(
        cutoffs=cutoffs,
        before=fairness.gaps(test, levels, cutoff, disclosure=disclosure),
        after=fairness.gaps(own, places, half, disclosure=disclosure),
        accuracy_before=scores.accuracy(test, cutoff, disclosure=disclosure),
        accuracy_after=scores.accuracy(own, half, disclosure=disclosure),
    )
