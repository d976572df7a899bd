"""A demand map over the agencies: each says whether it is ready, then sends one noised vector of counts.

The result is `map.json` (schema 1), JSON-clean: every answer with its interval, and what it cost. Beside it `series.json`
keeps the noised monthly counts as they came, for `fedrisk signs`: neither rounded nor withheld, it is no paper to hand on.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.serverapp import Grid

from federation import wire
from federation.demand import MapPlan, MapRequest
from federation.experiment import Experiment
from federation.plan import Participant
from federation.privacy import Event, epsilon, epsilon_at_several
from federation.protocol import MapOrder, MapReply
from federation.release import VIEWERS, Release, SharedRelease
from federation.server import masked
from federation.server.exchange import (
    NOT_A_REPLY,
    Federation,
    Round,
    RunError,
    answers,
    meet,
    quorum,
    too_few,
)
from federation.server.result import RunFacts, asked_header
from federation.server.rounds import Heads, charged
from federation.server.tracking import Tracker
from models.contract import Group
from models.design import Cell, Design, Reading, answer, everybody, merged, noised
from models.disclosure import Disclosure
from models.scores import LEVEL, NOTHING, Estimate
from models.workload import OUTSIDE, Attribute, Months, Query, Workload

MAP, SERIES = "map.json", "series.json"
# the largest number that an honest agency sends: so many people for each that it declares, all in one cell
MOST_PEOPLE = 100.0


@dataclass(frozen=True)
class MapJob:
    """One map to draw: of which agencies, what, and the folder where it is kept."""

    experiment: Experiment
    facts: RunFacts
    folder: Path
    request: MapRequest
    tracker: Tracker


@dataclass
class Released:
    """What arrived: by agency its numbers, or the `total` of `summed` agencies, all in grid steps."""

    own: dict[str, np.ndarray] = field(default_factory=dict)
    total: np.ndarray | None = None
    summed: tuple[str, ...] = ()


def run_map(grid: Grid, job: MapJob) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ask for the job's workload on `grid`; what map.json and series.json hold.

    A deployed coordinator keeps the ledgers' heads beside the job's folder, over all its runs. `RunError` where fewer
    agencies than `min_agencies`, or than the masks need, sent counts: who did not, and why as far as they say.
    """
    experiment, facts, plan = job.experiment, job.facts, job.request.plan
    heads = Heads(job.folder if facts.simulation else job.folder.parent)
    federation = meet(grid, experiment, plan, heads.read())
    got = Round()
    released = (_own if plan.circle is None else _summed)(grid, experiment, federation, plan, got)
    heads.keep(federation.heads)
    _note(federation, got, released)
    counted = [name for name, found in federation.status.items() if found["status"] == "counted"]
    if got.void is not None or len(counted) < quorum(experiment, plan=plan):
        raise RunError(got.void or too_few(experiment, federation, "the map"))
    picture = Picture(experiment, plan, released)
    spent = {name: list(plan.releases()) for name in charged(got)}
    found = {
        **_header(experiment, plan, facts),
        "privacy": _privacy(experiment, plan, facts, list(spent.values())),
        **picture.to_dict(),
        "agencies": {
            participant.name: _agency(participant, federation.status, spent.get(participant.name, []), plan)
            | {"people": picture.people(participant.name).to_dict()}
            for participant in plan.participants
        },
        "not_asked": [json.loads(each.canonical) for each in job.request.not_asked],
        "files": {"series": SERIES},
    }
    return found, picture.series()


# --- asking -------------------------------------------------------------------------------------------


def _own(grid: Grid, experiment: Experiment, federation: Federation, plan: MapPlan, got: Round) -> Released:
    """Each agency's own noised numbers; a reply that is not as agreed is rejected and named."""
    order = MapOrder(plan, heads=dict(federation.heads))
    asked = {name: wire.pack_map_order(order, node) for name, node in federation.nodes.items()}
    own = {}
    for name, (_, reply) in answers(grid, experiment, federation, asked, got).items():
        problem = _problem(reply, name, experiment, plan)
        if problem is not None or not isinstance(reply, MapReply):
            got.rejected[name] = problem or NOT_A_REPLY
            continue
        got.replied.append(name)
        federation.saw({name: reply.head})
        own[name] = reply.numbers
    return Released(own)


def _summed(
    grid: Grid, experiment: Experiment, federation: Federation, plan: MapPlan, got: Round
) -> Released:
    """The sum behind masks, which nobody sees the parts of."""
    try:
        session = masked.set_up(grid, experiment, federation, plan.masked_draws)
    except masked.SetUpError as error:
        raise RunError(str(error)) from None
    order = MapOrder(plan, heads=dict(federation.heads))
    total = masked.ask_map(grid, experiment, federation, session, order, got)
    return Released(total=total, summed=tuple(got.replied))


def _problem(reply: object, name: str, experiment: Experiment, plan: MapPlan) -> str | None:
    """Why a reply is rejected, or None. It names the rule, and no value of the reply."""
    if not isinstance(reply, MapReply) or reply.agency != name:
        return NOT_A_REPLY
    if reply.releases != plan.releases():
        return "the reply was charged as something else than was ordered"
    design = plan.design_of(experiment.data_contract, name)
    assert design is not None  # noqa: S101 - `meet` leaves out whoever holds nothing
    if reply.numbers.shape != (design.numbers,) or reply.numbers.dtype != np.int64:
        return f"numbers must have shape ({design.numbers},) and type int64"
    most = (
        MOST_PEOPLE * plan.participant(name).public_size + 1000 * plan.noise_multiplier
    ) * design.sensitivity
    if (np.abs(reply.numbers.astype(np.float64)) > most).any():
        return f"numbers counts more people than {MOST_PEOPLE:g} x its declared size"
    return None


def _note(federation: Federation, got: Round, released: Released) -> None:
    """What became of each agency that was ready."""
    for name in [name for name, found in federation.status.items() if found["status"] == "trained"]:
        if name in released.own or name in released.summed:
            federation.status[name] = {"status": "counted", "reason": None}
        elif name in got.rejected:
            federation.status[name] = {"status": "rejected", "reason": got.rejected[name]}
        elif name in got.refused:
            federation.status[name] = {"status": "refused", "reason": got.refused[name]}
        else:
            federation.status[name] = {"status": "late", "reason": "did not answer"}


# --- what it says ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Promise:
    """What is known of an answer before anything is spent.

    agencies: who answers it.  cells: how many numbers it has.  one, together: the median std of the noise in a cell at one
    agency (None behind masks) and of all together, in people; of a rate, in its numerator.  least, least_one: people below
    which a cell cannot be told.  needs, needs_one: the ε at which the disclosure rule's minimum could be told; None: it can.
    """

    query: Query
    agencies: tuple[str, ...]
    cells: int
    one: float | None
    together: float
    least: float
    least_one: float | None
    needs: float | None
    needs_one: float | None


def promises(experiment: Experiment, plan: MapPlan, names: Sequence[str] | None = None) -> list[Promise]:
    """Of each query of the plan, if agencies `names` answer (None: all that hold it)."""
    contract, rule = experiment.data_contract, experiment.settings.evaluation.rule
    asked = [p.name for p in plan.participants if names is None or p.name in names]
    designs = {name: plan.design_of(contract, name) for name in asked}
    found = []
    for query in plan.asked(contract).queries:
        of = {n: d for n, d in designs.items() if d is not None and query in d.workload.queries}
        if of:
            found.append(_promise(query, of, plan, rule))
    return found


def _promise(query: Query, designs: Mapping[str, Design], plan: MapPlan, rule: Disclosure) -> Promise:
    variances = {name: own_variance(plan, design) for name, design in designs.items()}
    each = [design.expected(query, variances[name]) for name, design in designs.items()]
    least, noisiest = max(
        ((design.least(query, variances[name], rule), name) for name, design in designs.items()),
        key=lambda found: found[0].people,
    )
    together = designs[noisiest].least(query, len(designs) * variances[noisiest], rule)
    one = float(max(np.median(sd) for sd in each))
    every = float(np.median(np.sqrt(np.sum([sd**2 for sd in each], axis=0))))
    if plan.circle is not None:  # all shares together are one agency's noise, and there is no one agency's
        return Promise(
            query,
            tuple(designs),
            len(each[0]),
            None,
            one,
            least.people,
            None,
            _needs(plan, least.factor),
            None,
        )
    return Promise(
        query,
        tuple(designs),
        len(each[0]),
        one,
        every,
        together.people,
        least.people,
        _needs(plan, together.factor),
        _needs(plan, least.factor),
    )


def _needs(plan: MapPlan, factor: float | None) -> float | None:
    """The ε of a release with `factor` times less noise."""
    if factor is None or plan.noise_multiplier == 0:
        return None
    return epsilon([Release("map", "all", max(plan.noise_multiplier / factor, 0.001), 1.0, 1)], plan.delta)


def own_variance(plan: MapPlan, design: Design) -> float:
    """Of the noise on each number of one agency (behind masks, of all honest shares together), grid steps squared."""
    return (plan.noise_multiplier * design.sensitivity) ** 2


class Picture:
    """The answers of a map, read off what the agencies released. Reading costs no privacy."""

    def __init__(self, experiment: Experiment, plan: MapPlan, released: Released) -> None:
        contract = experiment.data_contract
        self._rule: Disclosure = experiment.settings.evaluation.rule
        self._workload: Workload = plan.asked(contract)
        self._own: dict[str, Reading] = {}
        for name, numbers in released.own.items():
            design = plan.design_of(contract, name)
            assert design is not None  # noqa: S101 - it answered
            self._own[name] = design.read(numbers, own_variance(plan, design))
        self._all, self._names = merged(list(self._own.values())), tuple(self._own)
        if released.total is not None:
            design, event = plan.design_of(contract, released.summed[0]), plan.release()
            assert design is not None  # noqa: S101 - it answered
            assert isinstance(event, SharedRelease)  # noqa: S101 - as the total says
            variance = float(len(released.summed) * event.share_variance)
            self._all, self._names = [design.read(released.total, variance)], released.summed
        self._promises = {each.query.name: each for each in promises(experiment, plan, self._names)}
        self._compared = sum(
            self._sizes(query) for query in self._workload.queries if self._is_compared(query)
        )

    def people(self, name: str) -> Estimate:
        """How many people agency `name` counted; nothing where only a sum is known."""
        return self._people([self._own[name]] if name in self._own else [])

    def to_dict(self) -> dict[str, Any]:
        """The part of map.json that was read off the release."""
        queries = [self._query(query) for query in self._workload.queries]
        first = self._all[0].design
        return {
            "workload": {
                "name": self._workload.name,
                "queries": len(queries),
                "tables": sum(len(strategy.tables) for strategy in first.blocks.values()),
                "numbers": first.numbers,
                "ratio": first.ratio,
                "ratio_bound": first.ratio_bound,
            },
            "attributes": {
                name: {
                    "column": each.column,
                    "levels": _levels(each),
                    "months": isinstance(each, Months),
                }
                for name, each in self._workload.attributes.items()
            },
            "people": self._people(self._all).to_dict(),
            "compared": {"numbers": self._compared, "level": self._level},
            "queries": queries,
        }

    def series(self) -> dict[str, Any]:
        """The noised counts by month as they came, by agency, or of the sum where nothing else is known."""
        own = {name: [reading] for name, reading in self._own.items()} or {"together": self._all}
        found = []
        for query in self._workload.queries:
            months = [name for name in query.by if isinstance(self._workload.attributes[name], Months)]
            if query.among is not None or len(months) != 1 or len(query.by) > 2:
                continue
            found += [
                self._series(query, months[0], name, readings)
                for name, readings in own.items()
                if any(query in reading.design.workload.queries for reading in readings)
            ]
        return {"schema": 1, "series": found}

    def _series(self, query: Query, month: str, agency: str, readings: Sequence[Reading]) -> dict[str, Any]:
        areas = [name for name in query.by if name != month]
        labels = [_levels(self._workload.attributes[name]) for name in (*areas, month)]
        shape = [len(_levels(self._workload.attributes[name])) for name in query.by]
        grids = [values.reshape(shape) for values in noised(query, readings)]
        if areas and query.by[0] == month:
            grids = [grid.T for grid in grids]
        counts, sd = (np.atleast_2d(grid).tolist() for grid in grids)
        names = labels[0] if areas else ["everywhere"]
        if areas and _has_other(self._workload.attributes[areas[0]]):  # no area, and mostly nobody
            names, counts, sd = names[:-1], counts[:-1], sd[:-1]
        return {
            "name": f"{agency}: {query.name}",
            "agency": agency,
            "query": query.name,
            "areas": names,
            "months": labels[-1],
            "counts": counts,
            "sd": sd,
        }

    def _query(self, query: Query) -> dict[str, Any]:
        promise = self._promises.get(query.name)
        told: dict[str, Any] = {
            "planned_sd": None,
            "least": None,
            "epsilon_for_minimum": None,
            "at_one": None,
        }
        if promise is not None:
            told |= {
                "planned_sd": promise.together,
                "least": promise.least,
                "epsilon_for_minimum": promise.needs,
            }
            told["at_one"] = (
                None
                if promise.one is None
                else {
                    "planned_sd": promise.one,
                    "least": promise.least_one,
                    "epsilon_for_minimum": promise.needs_one,
                }
            )
        return {
            "name": query.name,
            "kind": query.kind,
            "counts": query.counts,
            "by": list(query.by),
            "where": {name: list(levels) for name, levels in query.where.items()},
            "among": None
            if query.among is None
            else {name: list(levels) for name, levels in query.among.items()},
            **told,
            "together": None
            if promise is None
            else {"agencies": list(promise.agencies), "cells": self._cells(query, self._all)},
            "agencies": {
                name: self._cells(query, [reading])
                for name, reading in self._own.items()
                if query in reading.design.workload.queries
            },
        }

    def _cells(self, query: Query, readings: Sequence[Reading]) -> list[dict[str, Any]]:
        cells = answer(query, readings, disclosure=self._rule)
        if not self._is_compared(query):
            return [_told(cell) for cell in cells]
        wide = answer(query, readings, disclosure=self._rule, level=self._level)
        return [_told(cell) | {"wide": _wide(cell, other)} for cell, other in zip(cells, wide, strict=True)]

    def _is_compared(self, query: Query) -> bool:
        """Whether its numbers are held against each other; months are read as series."""
        return not any(isinstance(self._workload.attributes[name], Months) for name in query.by)

    def _sizes(self, query: Query) -> int:
        """How many numbers of it there are, of all together and of each agency."""
        cells = math.prod(len(_levels(self._workload.attributes[name])) for name in query.by)
        own = sum(query in reading.design.workload.queries for reading in self._own.values())
        return cells * ((query.name in self._promises) + own)

    @property
    def _level(self) -> float:
        """Of each `wide` interval, so that all of them hold together at `LEVEL` (Bonferroni)."""
        return 1 - (1 - LEVEL) / max(self._compared, 1)

    def _people(self, readings: Sequence[Reading]) -> Estimate:
        return everybody(readings, disclosure=self._rule) if readings else NOTHING


def _told(cell: Cell) -> dict[str, Any]:
    return {"levels": list(cell.levels), **cell.estimate.to_dict(), "sd": cell.sd}


def _wide(cell: Cell, wide: Cell) -> dict[str, float | None] | None:
    """The ends that hold for all compared numbers together; None where one may not be shown."""
    if not (cell.estimate.publishable and wide.estimate.publishable):
        return None
    return {"low": wide.estimate.low, "high": wide.estimate.high}


def _levels(attribute: Attribute) -> list[str]:
    return [level for level in attribute.level_names if level != OUTSIDE]


def _has_other(attribute: Attribute) -> bool:
    """Whether its last level is of values that are missing or not declared."""
    return (
        isinstance(attribute, Group)
        and "other" not in {level.name for level in attribute.levels}
        and attribute.other
    )


def _header(experiment: Experiment, plan: MapPlan, facts: RunFacts) -> dict[str, Any]:
    contract = experiment.data_contract
    return {
        **asked_header(contract, plan, facts),
        "kind": "map",
        "disclosure": experiment.settings.evaluation.rule.to_dict(),
        "level": LEVEL,
    }


def _agency(
    participant: Participant, status: Mapping[str, Mapping[str, Any]], spent: Sequence[Event], plan: MapPlan
) -> dict[str, Any]:
    return {
        "kind": participant.kind,
        "public_size": participant.public_size,
        **status[participant.name],
        "epsilon": finite(epsilon(spent, plan.delta)),
        "releases": [event.to_dict() for event in spent],
    }


def _privacy(
    experiment: Experiment, plan: MapPlan, facts: RunFacts, spent: Sequence[Sequence[Event]]
) -> dict[str, Any]:
    """The guarantee with its unit, adjacency, δ and accountant next to it, alone and with the training planned.

    `epsilon`, also at several agencies, is to the coordinator with the plan's colluders; `epsilon_to` is to each viewer.
    """
    unit = experiment.data_contract.unit
    several = {m: epsilon_at_several(spent, plan.delta, m) for m in (1, 2, 3) if m <= len(spent)}
    return {
        "mechanism": plan.mechanism,
        "unit": f"{unit.kind} at one agency",
        "adjacency": "add-or-remove",
        "accountant": "RDP (dp-accounting)",
        "delta": plan.delta,
        "noise_multiplier": plan.noise_multiplier,
        "rows": unit.rows,
        "ledger": "this run alone" if facts.simulation else "lifetime",
        "epsilon": finite(epsilon(plan.releases(), plan.delta)),
        "epsilon_to": {v: finite(epsilon(plan.releases(), plan.delta, viewer=v)) for v in VIEWERS},
        "epsilon_at_several_agencies": {str(m): finite(value) for m, value in several.items()},
        "epsilon_with_training": _with_training(experiment, plan),
    }


def finite(value: float) -> float | None:
    """None for an infinite ε, that of a release without noise."""
    return value if math.isfinite(value) else None


def _with_training(experiment: Experiment, plan: MapPlan) -> float | None:
    """ε of the map and one run of these settings together; None where either has no privacy."""
    if plan.mechanism == "none":
        return None
    run = experiment.plan(plan.run_id, simulation=False)
    return finite(epsilon([*plan.releases(), *run.releases()], plan.delta))
