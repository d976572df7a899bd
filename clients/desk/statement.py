"""What an agency's ledger says, for somebody who answers for the people in it: what left, to whom, what is left.

Every number is computed from the ledger's releases. ε "so far" is that of `federation.privacy.epsilon` at its best order;
"spent" under a limit is at the order that the limit was given when it was first met, and decides (`clients.budget`). So
a limit may show more than the sentence above it, never less than was lost.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clients.budget import Line, PlanFacts
from clients.desk.ledger_copy import read_only
from clients.folder import read_node_file
from clients.ledger import Entry, Ledger
from clients.policy import read_policy
from federation.privacy import epsilon
from federation.release import VIEWERS, Event, Kind, SharedRelease, Viewer

DELTA = 1e-5  # where a policy has no budget
WHO: dict[Viewer, str] = {
    "public": "whoever sees the published results",
    "coordinator": "the coordinator",
    "everybody": "the coordinator and all other agencies together",
}
BEFORE = PlanFacts("", "", "(before plans were recorded)", "(before plans were recorded)")


@dataclass(frozen=True)
class Left:
    """What left: training steps, noisy tables of counts, statistics, maps and cohorts, and by how many orders."""

    steps: int
    tables: int
    statistics: int
    maps: int
    cohorts: int
    orders: int


@dataclass(frozen=True)
class Group:
    """What left for one experiment or purpose, or of one kind, and the ε of that alone, by viewer."""

    name: str
    left: Left
    epsilon: dict[Viewer, float]


@dataclass(frozen=True)
class Open:
    """What a plan may still take: it counts against the limits until it is taken or given back."""

    experiment: str
    purpose: str
    plan_sha256: str
    left: Left


@dataclass(frozen=True)
class Statement:
    """The whole answer; its fields are those of `--json`. `head`: number and hash of the ledger's newest entry."""

    people: str
    simulation: bool
    delta: float
    first: str
    last: str
    left: Left
    epsilon: dict[Viewer, float]
    experiments: tuple[Group, ...]
    purposes: tuple[Group, ...]
    kinds: tuple[Group, ...]
    limits: tuple[Line, ...]
    open: tuple[Open, ...]
    head: tuple[int, str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: an ε without bound is None."""
        found: dict[str, Any] = _finite(asdict(self))
        return found


def of_folder(folder: Path) -> Statement:
    """The statement of the node in `folder`, at work or not."""
    facts, policy = read_node_file(folder / "node.toml"), read_policy(folder / "policy.toml")
    delta = None if policy.budget is None else policy.budget.delta
    with read_only(folder, facts, policy) as ledger:
        return statement(ledger, delta)


def statement(ledger: Ledger, delta: float | None) -> Statement:
    """The statement of `ledger`, at the policy's `delta`."""
    entries = ledger.entries()
    plans = {entry.plan.sha256: entry.plan for entry in entries if entry.plan is not None}
    charges = [entry for entry in entries if entry.action == "charge"]
    at = delta or DELTA
    kept = [
        Open(plan.experiment, plan.purpose, sha256, _left(events, 0))
        for sha256, events in ledger.reservations().items()
        if events and (plan := plans.get(sha256, BEFORE))
    ]
    return Statement(
        people=ledger.people,
        simulation=ledger.scope == "this run alone",
        delta=at,
        first=charges[0].at if charges else "",
        last=charges[-1].at if charges else "",
        left=_left(_events(charges), len({entry.order_id for entry in charges})),
        epsilon=_epsilons(_events(charges), at),
        experiments=_groups(charges, lambda e: plans.get(e.plan_sha256, BEFORE).experiment, at),
        purposes=_groups(charges, lambda e: plans.get(e.plan_sha256, BEFORE).purpose, at),
        kinds=_groups(charges, lambda e: _kind(e.releases[0]), at),
        limits=tuple(ledger.spent()),
        open=tuple(kept),
        head=ledger.head,
    )


def sentences(found: Statement) -> list[str]:
    """The statement's first paragraph, in words."""
    if not found.left.orders:
        return ["So far nothing that was computed from a record has left this agency."]
    days = _days(found.first[:10], found.last[:10])
    said = [
        f"{days} this agency has released {in_words(found.left)}, for {_many(found.experiments, 'experiment')}."
    ]
    if math.inf in found.epsilon.values():
        return [*said, "Some of it had no noise, so there is no bound on what it says about a person."]
    said.append("What they can learn about any one person is bounded:")
    by_value = defaultdict(list)
    for viewer in VIEWERS:
        by_value[found.epsilon[viewer]].append(WHO[viewer])
    for value, who in by_value.items():
        everyone = "anybody, even the coordinator and all other agencies together"
        said.append(
            f"  {everyone if len(by_value) == 1 else _listed(who)}: at most ε = {_number(value)} (δ = {found.delta:g})"
        )
    worst = max(found.epsilon.values())
    said.append(
        "That is: the odds that a certain person is in these records at all shift by a factor of "
        f"{_factor(worst)} at most, but for a chance of about 1 in {round(1 / found.delta):,}."
    )
    return said


def in_words(left: Left) -> str:
    """As "12 noisy tables and 40 training steps"."""
    parts = [
        _times(left.tables, "noisy table"),
        _times(left.steps, "noisy training step"),
        _times(left.statistics, "noisy statistic"),
        _times(left.maps, "noisy map"),
        _times(left.cohorts, "noisy cohort"),
    ]
    return _listed([part for part in parts if part]) or "nothing"


def _groups(charges: Sequence[Entry], key: Any, delta: float) -> tuple[Group, ...]:
    grouped: dict[str, list[Entry]] = defaultdict(list)
    for entry in charges:
        grouped[key(entry)].append(entry)
    return tuple(
        Group(name, _left(_events(own), len({e.order_id for e in own})), _epsilons(_events(own), delta))
        for name, own in grouped.items()
    )


def _events(charges: Iterable[Entry]) -> list[Event]:
    return [event for entry in charges for event in entry.releases]


def _left(events: Iterable[Event], orders: int) -> Left:
    counts = Counter[Kind]()
    for event in events:
        counts[event.kind] += event.steps
    return Left(
        steps=counts["train"],
        tables=counts["evaluate"] + counts["users"],
        statistics=counts["stats"],
        maps=counts["map"],
        cohorts=counts["cohort"],
        orders=orders,
    )


def _kind(event: Event) -> str:
    names = {
        "train": "training",
        "users": "tables of users",
        "stats": "statistics",
        "map": "maps",
        "cohort": "cohorts",
    }
    return names.get(event.kind, f"tables of {event.part} people")


def _epsilons(events: list[Event], delta: float) -> dict[Viewer, float]:
    """With an agency's own noise the three viewers see the same."""
    if not any(isinstance(event, SharedRelease) for event in events):
        return dict.fromkeys(VIEWERS, epsilon(events, delta) if events else 0.0)
    return {viewer: epsilon(events, delta, viewer=viewer) for viewer in VIEWERS}


def _days(first: str, last: str) -> str:
    return f"So far (all on {first})" if first == last else f"So far (from {first} to {last})"


def _many(found: Sequence[object], what: str) -> str:
    return f"{len(found)} {what}{'' if len(found) == 1 else 's'}"


def _times(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}" if count else ""


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + f" and {parts[-1]}" if parts else ""


def _number(value: float) -> str:
    return f"{math.ceil(value * 1000) / 1000:.3g}" if value < 1 else f"{math.ceil(value * 100) / 100:.2f}"


def _factor(value: float) -> str:
    return (
        f"{math.exp(value):,.2g}"
        if value < 2.3
        else f"{math.exp(value):,.0f}"
        if value < 14
        else "more than a million"
    )


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
