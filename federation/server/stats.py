"""A statistic over the agencies: one message there, one noised table of a column's values back, added up.

The result is `stats.json` (schema 1), JSON-clean: quantiles with intervals, a suggestion for the contract, ε per
agency, and the noised table itself, from which other quantiles cost nothing more (`models.quantiles.ValueTable`).
"""

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from federation import wire
from federation.experiment import Experiment
from federation.plan import Reason
from federation.privacy import Event, epsilon, epsilon_at_several
from federation.protocol import Head, Refusal, StatsOrder, StatsPlan, StatsReply
from federation.server.exchange import NOT_A_REPLY, RunError, ask_until_ready, await_nodes, read, status_of
from federation.server.result import RunFacts, asked_header
from federation.server.rounds import Heads
from federation.stats import StatsRequest, holds
from models import quantiles
from models.quantiles import ValueTable

Status = dict[str, dict[str, Any]]
# whoever is late, unavailable or rejected may have charged all the same
NOT_SPENT = ("not held", "refused", "withdrawn", "not yet", "closed", "busy")


@dataclass(frozen=True)
class StatsJob:
    """One statistic to take: of which agencies, what, and the folder where it is kept."""

    experiment: Experiment
    facts: RunFacts
    folder: Path
    request: StatsRequest


def run_stats(grid: Grid, job: StatsJob) -> dict[str, Any]:
    """Ask for the job's plan on `grid` and read its quantiles; returns what stats.json holds.

    A deployed coordinator keeps the ledgers' heads beside the job's folder, over all its runs. `RunError` where
    fewer agencies than `min_agencies` sent a table: who did not, and why as far as they say.
    """
    experiment, facts, plan = job.experiment, job.facts, job.request.plan
    heads = Heads(job.folder if facts.simulation else job.folder.parent)
    known = heads.read()
    status: Status = {p.name: _before(experiment, plan, p.name) for p in plan.participants}
    tables: dict[str, ValueTable] = {}
    for message in _ask(grid, experiment, plan, known):
        _take(message, plan, status, tables, known)
    heads.keep(known)
    if len(tables) < experiment.settings.min_agencies:
        raise RunError(_too_few(experiment, plan, status))
    table = functools.reduce(operator.add, (tables[name] for name in sorted(tables)))
    return asked_header(experiment.data_contract, plan, facts) | {
        "column": plan.column,
        "agencies": {name: _agency(plan, name, found) for name, found in status.items()},
        "privacy": _privacy(experiment, plan, facts, status),
        **described(table, job.request.shares),
    }


def described(table: ValueTable, shares: Sequence[float]) -> dict[str, Any]:
    """What is read off the sum of the tables: no reading costs any privacy. Values are in the column's own unit.

    `suggestion` is for the contract's `min` and `max` (null: too few people, or too much noise, for any), from
    the outermost of `shares`, 0.01 and 0.99; `clipped` and `clipped_at_most` are the share of people outside of it.
    """
    bounds = quantiles.bounds(table, min(*shares, 0.01), max(*shares, 0.99))
    return {
        "people": quantiles.people(table).to_dict(),
        "missing": quantiles.missing(table).to_dict(),
        "quantiles": [
            {"share": share, **quantiles.quantile(table, share).to_dict()} for share in sorted(set(shares))
        ],
        "suggestion": None
        if bounds is None
        else {
            "min": bounds.min,
            "max": bounds.max,
            "clipped": bounds.clipped,
            "clipped_at_most": bounds.clipped_at_most,
        },
        "table": {"sums": table.sums.tolist(), "variance": table.variance},
    }


# --- asking -------------------------------------------------------------------------------------------


def _ask(grid: Grid, experiment: Experiment, plan: StatsPlan, heads: Mapping[str, Head]) -> list[Message]:
    settings = experiment.settings
    poll = settings.engine.poll_seconds
    nodes = await_nodes(grid, len(plan.participants), settings.join_timeout, poll)
    order = StatsOrder(plan, dict(heads))
    found = ask_until_ready(grid, experiment, lambda node: wire.pack_stats_order(order, node), nodes)
    return list(found.values())


def _take(
    message: Message, plan: StatsPlan, status: Status, tables: dict[str, ValueTable], heads: dict[str, Head]
) -> None:
    """Note what one agency said; a reply that is not as agreed is rejected and named."""
    reply = read(message)
    name = getattr(reply, "agency", None)
    if name not in status or status[name]["status"] not in ("late", "not held"):
        return  # not of this run, or somebody speaks twice
    if isinstance(reply, Refusal):
        if status[name]["status"] == "late" or reply.reason is not Reason.CONTRACT:
            status[name] = {"status": status_of(reply.reason), "reason": reply.reason.value}
        return
    problem = _problem(reply, plan)
    if problem is not None or not isinstance(reply, StatsReply):
        status[name] = {"status": "rejected", "reason": problem or NOT_A_REPLY}
        return
    status[name] = {"status": "counted", "reason": None}
    tables[name] = ValueTable(reply.sums, quantiles.variance_of(plan.sigma))
    if reply.head is not None and reply.head.seq > heads.get(name, Head(0, "")).seq:
        heads[name] = reply.head


def _problem(reply: object, plan: StatsPlan) -> str | None:
    """Why a reply is rejected, or None. It names the rule, and no value of the reply."""
    if not isinstance(reply, StatsReply):
        return NOT_A_REPLY
    if reply.releases != (plan.release(),):
        return "the reply was charged as something else than was ordered"
    if reply.sums.shape != (quantiles.CELLS,) or reply.sums.dtype != np.float64:
        return f"sums must have shape ({quantiles.CELLS},) and type float64"
    return None if np.isfinite(reply.sums).all() else "sums has NaN or infinite values"


def _before(experiment: Experiment, plan: StatsPlan, name: str) -> dict[str, Any]:
    """What is known of an agency that has said nothing."""
    if not holds(experiment.data_contract, plan.participant(name).kind, plan.column):
        return {"status": "not held", "reason": "its kind of agency does not hold the column"}
    return {"status": "late", "reason": "did not answer"}


def _too_few(experiment: Experiment, plan: StatsPlan, status: Status) -> str:
    absent = [f"{n} ({f['status']}: {f['reason']})" for n, f in status.items() if f["status"] != "counted"]
    return (
        f"fewer agencies sent a table of {plan.column!r} than the {experiment.settings.min_agencies} that "
        f"min_agencies asks for; not in: {', '.join(absent)}. Each agency's own log says why"
    )


# --- what it says -------------------------------------------------------------------------------------


def _agency(plan: StatsPlan, name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    spent = _spent(plan, found)
    return {
        "kind": plan.participant(name).kind,
        "public_size": plan.participant(name).public_size,
        **found,
        "epsilon": epsilon(spent, plan.delta),
        "releases": [event.to_dict() for event in spent],
    }


def _spent(plan: StatsPlan, found: Mapping[str, Any]) -> list[Event]:
    return [] if found["status"] in NOT_SPENT else [plan.release()]


def _privacy(
    experiment: Experiment, plan: StatsPlan, facts: RunFacts, status: Mapping[str, Any]
) -> dict[str, Any]:
    """The guarantee with its unit, adjacency, δ and accountant next to it, alone and with the training planned."""
    spent = [events for found in status.values() if (events := _spent(plan, found))]
    several = {m: epsilon_at_several(spent, plan.delta, m) for m in (1, 2, 3) if m <= len(spent)}
    return {
        "mechanism": "local",
        "unit": f"{experiment.data_contract.unit.kind} at one agency",
        "adjacency": "add-or-remove",
        "accountant": "RDP (dp-accounting)",
        "delta": plan.delta,
        "sigma": plan.sigma,
        "ledger": "this run alone" if facts.simulation else "lifetime",
        "epsilon": epsilon([plan.release()], plan.delta),
        "epsilon_at_several_agencies": {str(m): value for m, value in several.items()},
        "epsilon_with_training": _with_training(experiment, plan),
    }


def _with_training(experiment: Experiment, plan: StatsPlan) -> float | None:
    """ε of the statistic and one run of these settings together; None where the run has no privacy."""
    if experiment.settings.privacy.mechanism == "none":
        return None
    run = experiment.plan(plan.run_id, simulation=False)
    return epsilon([plan.release(), *run.releases()], plan.delta)
