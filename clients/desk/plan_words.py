"""The plan of a map or a cohort in words, for the person who is asked to approve it: what would leave, counted by what, at which price.

The words are made here from what the plan asks. Names that a coordinator gave to its questions are not believed.
"""

import math

import numpy as np

from clients.rules import Plan
from federation.cohort import CohortPlan, columns_of
from federation.demand import MapPlan
from federation.plan import Refused
from federation.privacy import epsilon
from models.contract import Contract
from models.design import Design
from models.workload import Query, Where, Workload

MANY = {"person": "people", "row": "records"}


def about(plan: Plan, contract: Contract, agency: str) -> list[str]:
    """A line for what leaves, one for its price, one for the columns, and one for each question of a map.

    Of a training or a statistic nothing: their other lines say it.
    """
    if isinstance(plan, CohortPlan):
        return _of_cohort(plan, contract, agency)
    return _of_map(plan, contract, agency) if isinstance(plan, MapPlan) else []


def _of_cohort(plan: CohortPlan, contract: Contract, agency: str) -> list[str]:
    others = " and ".join(name for name in plan.of if name != agency)
    by = "" if plan.by is None else f", by {plan.by}"
    return [
        f"a cohort: how many people this agency and {others} both know{by}. A noised histogram of scrambled match keys "
        f"({math.prod(plan.shape):,} numbers) leaves once; nobody is named",
        f"costs ε = {plan.epsilon:.2f} (δ = 0) of one {contract.unit.kind} here, and as much at each of the others",
        f"counted by the columns {', '.join(sorted(columns_of(contract, plan.by)))}",
    ]


def _of_map(plan: MapPlan, contract: Contract, agency: str) -> list[str]:
    try:
        design = plan.design_of(contract, agency)
    except Refused as refused:
        return [f"a map that cannot be read: {refused.sentence}"]
    if design is None:
        return ["a map that asks for nothing that this agency holds"]
    workload = design.workload
    return [
        f"a map: {design.numbers:,} noised counts of the people here leave once, {_how(plan)}",
        _price(plan, contract),
        f"counted by the columns {', '.join(sorted(workload.columns))}",
        *(f"- {in_words(query, workload)} ({_noise(query, design, plan)})" for query in workload.queries),
    ]


def in_words(query: Query, workload: Workload) -> str:
    """One question, from its parts: "share with substance_use yes, of people, by area"."""
    many, who = MANY[query.counts], _condition(query.where, workload)
    by = f", by {' and '.join(_named(name, workload) for name in query.by)}" if query.by else ""
    if query.among is None:
        return f"number of {many}{f' with {who}' if who else ''}{by}"
    among = _condition(query.among, workload)
    return f"share with {who}, of {many}{f' with {among}' if among else ''}{by}"


def _condition(where: Where, workload: Workload) -> str:
    return " and ".join(f"{_named(name, workload)} {' or '.join(levels)}" for name, levels in where.items())


def _named(name: str, workload: Workload) -> str:
    column = workload.attributes[name].column
    return name if name == column else f"{name} (column {column})"


def _how(plan: MapPlan) -> str:
    return (
        "behind masks: only the sum of all agencies is seen"
        if plan.circle is not None
        else "as this agency's own"
    )


def _price(plan: MapPlan, contract: Contract) -> str:
    spent = epsilon(plan.releases(), plan.delta)
    worst = epsilon(plan.releases(), plan.delta, viewer="everybody")
    to_all = f", {worst:.2f} to all the others together," if plan.circle is not None else ""
    if not math.isfinite(spent):
        return "without noise: there is no bound on what it says about a person"
    return f"costs ε = {spent:.2f} (δ = {plan.delta:g}) of one {contract.unit.kind}{to_all or ','} for all of these together"


def _noise(query: Query, design: Design, plan: MapPlan) -> str:
    variance = (plan.noise_multiplier * design.sensitivity) ** 2
    margin = 1.96 * float(np.median(design.expected(query, variance)))
    return f"each count ± {margin:,.0f}"
