"""Whom a model flags, counted against three more facts: use of services, lead time, and today's practice.

A `UserTable` counts people by (flagged by the model, flagged by practice, intensity, lead). Tables add up as score
tables do, their counts may carry noise of known variance, and every share is one of `models.scores`: of sums of cells,
never an average of averages. What a contract does not declare is an axis with nothing to tell.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, final

import numpy as np
from numpy.typing import ArrayLike

from models import benefit, scores
from models.contract import Contract, LeadTime
from models.disclosure import UNROUNDED, Disclosure
from models.scores import Estimate, FloatArray, Noised, ScoreTable, proportion

Json = dict[str, Any]
Places = int | slice | list[int]

ALL = slice(None)
NO_OUTCOME, OUTCOME = 0, slice(1, None)  # of the lead axis


@final
@dataclass(frozen=True, eq=False, init=False)
class UserTable:
    """People by (flagged, practice, intensity, lead), axes as in `Contract.users_shape`.

    counts:   (2, P, I, L + 2); lead 0 has no outcome, 1 to L are the bands, L + 1 is unknown. With noise neither
              whole nor positive
    variance: what broadcasts to it: variance of the noise in each count, 0 without noise
    """

    counts: FloatArray
    variance: FloatArray

    def __init__(self, counts: ArrayLike, variance: ArrayLike = 0.0) -> None:
        counts = np.array(counts, np.float64)
        if counts.ndim != 4 or counts.shape[0] != 2 or counts.shape[3] < 2:
            raise ValueError(f"counts must have shape (2, P, I, L + 2), got {counts.shape}")
        noise = np.broadcast_to(np.array(variance, np.float64), counts.shape)
        if not np.isfinite(counts).all() or not np.isfinite(noise).all() or (noise < 0).any():
            raise ValueError("counts and variance must be finite, and variance not negative")
        counts.flags.writeable = False
        object.__setattr__(self, "counts", counts)
        object.__setattr__(self, "variance", noise)

    def __add__(self, other: Self) -> "UserTable":
        """The table of both sets of people, of the same shape."""
        if self.counts.shape != other.counts.shape:
            raise ValueError("tables of users with different shapes cannot be added")
        return UserTable(self.counts + other.counts, self.variance + other.variance)

    def people(
        self, *, flagged: Places = ALL, practice: Places = ALL, level: Places = ALL, lead: Places = ALL
    ) -> Noised:
        """Everyone in these places of each axis."""
        wanted = zip(self.counts.shape, (flagged, practice, level, lead), strict=True)
        at = np.ix_(*(np.atleast_1d(np.arange(length)[places]) for length, places in wanted))
        return Noised(float(self.counts[at].sum()), float(self.variance[at].sum()))


def tally(shape: tuple[int, int, int, int], flagged: ArrayLike, place: ArrayLike) -> UserTable:
    """Exact counts of people; each is in exactly one cell.

    flagged: (n,) bool;  place: (n,) whole numbers, places in `shape[1:]` (`models.features.Encoded.user`)
    Nothing here is private yet: the result must not leave the agency without noise.
    """
    rest = int(np.prod(shape[1:]))
    cell = np.asarray(flagged, np.intp) * rest + np.asarray(place, np.intp)
    return UserTable(np.bincount(cell, minlength=2 * rest).reshape(shape))


def summarise(
    table: UserTable, contract: Contract, cutoff: float, disclosure: Disclosure = UNROUNDED
) -> Json:
    """All of `users` in result.json that is read from the table; null for what `contract` does not declare.

    cutoff: the model's, which says how much a wrong flag weighs.  disclosure: what may be published of counts of people
    """
    intensity = None if contract.intensity is None else contract.intensity.group.level_names
    top = None if contract.intensity is None else len(contract.intensity.levels) - 1
    return {
        "by_intensity": None if intensity is None else by_intensity(table, intensity, cutoff, disclosure),
        "most_intensive_share_of_flagged": None
        if top is None
        else share_of_flagged(table, top, disclosure).to_dict(),
        "found_beyond": None if top is None else found_beyond(table, top, disclosure).to_dict(),
        "lead": None if contract.lead_time is None else lead(table, contract.lead_time, disclosure),
        "practice": None if contract.practice is None else practice(table, cutoff, disclosure),
    }


# --- intensity ------------------------------------------------------------------------------------------


def by_intensity(
    table: UserTable, levels: tuple[str, ...], cutoff: float, disclosure: Disclosure = UNROUNDED
) -> dict[str, dict[str, Json]]:
    """For each level who is in it, whom the model flags there, and how often the outcome follows."""
    found: dict[str, dict[str, Estimate]] = {}
    for place, name in enumerate(levels):
        own = _scores(table, "flagged", cutoff, place)
        found[name] = {
            "people": scores.people(own, disclosure=disclosure),
            "share_of_flagged": share_of_flagged(table, place, disclosure),
            "selection_rate": scores.selection_rate(own, cutoff, disclosure=disclosure),
            "tpr": scores.true_positive_rate(own, cutoff, disclosure=disclosure),
            "base_rate": scores.base_rate(own, disclosure=disclosure),
        }
    return {name: _json(estimates) for name, estimates in found.items()}


def share_of_flagged(table: UserTable, level: int, disclosure: Disclosure = UNROUNDED) -> Estimate:
    """P(level | flagged)."""
    others = [place for place in range(table.counts.shape[2]) if place != level]
    return proportion(
        table.people(flagged=1, level=level), table.people(flagged=1, level=others), disclosure=disclosure
    )


def found_beyond(table: UserTable, top: int, disclosure: Disclosure = UNROUNDED) -> Estimate:
    """P(a known level below `top`, the most intensive | flagged and outcome).

    What the model finds that looking at the most intensive users would not. Whoever's level is unknown ("other",
    after `top`) counts as not beyond.
    """
    beyond = table.people(flagged=1, level=slice(0, top), lead=OUTCOME)
    return proportion(
        beyond, table.people(flagged=1, level=slice(top, None), lead=OUTCOME), disclosure=disclosure
    )


# --- lead time ------------------------------------------------------------------------------------------


def lead(table: UserTable, declared: LeadTime, disclosure: Disclosure = UNROUNDED) -> Json:
    """How long before the outcome those rightly flagged were flagged: shares of them, `unknown` among them."""
    bounds = (0.0, *declared.edges, None)
    places = range(1, declared.bands + 2)

    def share(place: int) -> Json:
        rest = [other for other in places if other != place]
        hits, misses = (table.people(flagged=1, lead=at) for at in (place, rest))
        return proportion(hits, misses, disclosure=disclosure).to_dict()

    return {
        "bands": [
            {"low": bounds[band], "high": bounds[band + 1], "share": share(1 + band)}
            for band in range(declared.bands)
        ],
        "unknown": share(declared.bands + 1),
        "median": median(table, declared, disclosure),
    }


def median(table: UserTable, declared: LeadTime, disclosure: Disclosure = UNROUNDED) -> Json | None:
    """The band of the median lead of those rightly flagged whose lead is known; None where noise leaves it open.

    The median lies in a band if less than half are below it and more than half are not above it. Both are claimed
    of intervals: a wrong band needs the interval at one of its edges to lie wholly on the wrong side of one half.
    """
    bounds = (0.0, *declared.edges, None)

    def before(band: int) -> Estimate:
        """P(lead below the band)."""
        hits = table.people(flagged=1, lead=slice(1, 1 + band))
        misses = table.people(flagged=1, lead=slice(1 + band, 1 + declared.bands))
        return proportion(hits, misses, disclosure=disclosure)

    for band in range(declared.bands):
        below, within = before(band), before(band + 1)
        if not (below.publishable and within.publishable):
            return None
        assert below.high is not None  # noqa: S101 - what is publishable has an interval
        assert within.low is not None  # noqa: S101 - what is publishable has an interval
        if (band == 0 or below.high < 0.5) and (band == declared.bands - 1 or within.low > 0.5):
            return {"low": bounds[band], "high": bounds[band + 1]}
    return None


# --- today's practice -----------------------------------------------------------------------------------


def practice(table: UserTable, cutoff: float, disclosure: Disclosure = UNROUNDED) -> dict[str, Json]:
    """Today's practice as if it were a model, at the same people and the same weight of a wrong flag, and both together.

    agreement: P(both flag or neither does).  found_only_by_...: P(only that one flags | outcome).
    """
    own = _scores(table, "practice", cutoff, ALL)
    outcome = {at: table.people(flagged=at[0], practice=at[1], lead=OUTCOME) for at in np.ndindex(2, 2)}
    everyone = {at: table.people(flagged=at[0], practice=at[1]) for at in np.ndindex(2, 2)}
    found = {
        "selection_rate": scores.selection_rate(own, cutoff, disclosure=disclosure),
        "tpr": scores.true_positive_rate(own, cutoff, disclosure=disclosure),
        "fpr": scores.false_positive_rate(own, cutoff, disclosure=disclosure),
        "ppv": scores.positive_predictive_value(own, cutoff, disclosure=disclosure),
        "net_benefit": benefit.net_benefit(own, cutoff, disclosure=disclosure),
        "agreement": proportion(
            everyone[0, 0] + everyone[1, 1], everyone[0, 1] + everyone[1, 0], disclosure=disclosure
        ),
        "found_only_by_model": _only(outcome, (1, 0), disclosure),
        "found_only_by_practice": _only(outcome, (0, 1), disclosure),
    }
    return _json(found)


def _only(outcome: Mapping[tuple[int, ...], Noised], at: tuple[int, int], disclosure: Disclosure) -> Estimate:
    first, *others = (each for where, each in outcome.items() if where != at)
    return proportion(outcome[at], sum(others, start=first), disclosure=disclosure)


def _scores(table: UserTable, by: Literal["flagged", "practice"], cutoff: float, level: Places) -> ScoreTable:
    """The people of `level` in two score bins, below `cutoff` and from it on: those that `by` flags are in the second."""

    def side(place: int, lead: Places) -> Noised:
        if by == "flagged":
            return table.people(flagged=place, level=level, lead=lead)
        return table.people(practice=place, level=level, lead=lead)

    cells = [[side(place, lead) for lead in (NO_OUTCOME, OUTCOME)] for place in (0, 1)]
    return ScoreTable(
        [0.0, cutoff, 1.0],
        [[[each.count for each in row] for row in cells]],
        [[[each.variance for each in row] for row in cells]],
    )


def _json(estimates: Mapping[str, Estimate]) -> dict[str, Json]:
    return {name: estimate.to_dict() for name, estimate in estimates.items()}
