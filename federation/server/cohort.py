"""A cohort over two or three agencies: three messages there and back, and how many people each two of them share.

The coordinator carries greetings and boxes, of which it can open none, and asks for one noised histogram of each agency.
The result is `cohort.json` (schema 1), JSON-clean, every number of people as the run's disclosure rule lets it out.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from federation import wire
from federation.cohort import CohortPlan, CohortRequest, levels_of
from federation.experiment import Experiment
from federation.privacy import pure_epsilon, pure_epsilon_at_several
from federation.protocol import (
    Boxes,
    CohortOrder,
    CohortReply,
    Greeted,
    GreetOrder,
    Head,
    Refusal,
    Reply,
    SealOrder,
)
from federation.release import LaplaceRelease
from federation.server.exchange import (
    NOT_A_REPLY,
    RunError,
    ask_until_ready,
    await_nodes,
    exchange,
    read,
    status_of,
)
from federation.server.result import RunFacts, asked_header
from federation.server.rounds import Heads
from federation.server.tracking import Tracker
from models import cohort
from models.disclosure import Disclosure
from models.matchkey import MISSED, WORDS
from models.overlap import noise_variance
from models.scores import LEVEL, NOTHING, Estimate

MOST_PEOPLE = 100.0  # the most that an honest agency counts, for each person that it declares
ATTEMPTS = 3  # to agree a secret when an agency fails half way
IntArray = np.ndarray


@dataclass(frozen=True)
class CohortJob:
    """One cohort to count: under which settings, what, and the folder where it is kept."""

    experiment: Experiment
    facts: RunFacts
    folder: Path
    request: CohortRequest
    tracker: Tracker


def run_cohort(grid: Grid, job: CohortJob) -> dict[str, Any]:
    """Count the job's cohort on `grid`; returns what cohort.json holds.

    A deployed coordinator keeps the ledgers' heads beside the job's folder, over all its runs. `RunError` where
    fewer than two agencies sent a histogram: who did not, and why as far as they say.
    """
    heads = Heads(job.folder if job.facts.simulation else job.folder.parent)
    asking = _Asking(grid, job.experiment, job.request.plan, heads.read())
    counts = asking.histograms()
    heads.keep(asking.heads)
    if len(counts) < 2:
        raise RunError(
            "a cohort needs the histograms of two agencies, "
            f"{len(counts)} came; not in: {asking.absent()}. Each agency's own log says why"
        )
    return described(job.experiment, job.request.plan, job.facts, asking.status, asking.charged, counts)


# --- asking -------------------------------------------------------------------------------------------


@final
@dataclass
class _Asking:
    """What the agencies of a cohort have said. `charged`: who was asked for a histogram and may have charged it."""

    grid: Grid
    experiment: Experiment
    plan: CohortPlan
    heads: dict[str, Head]
    status: dict[str, dict[str, Any]] = field(default_factory=dict)
    charged: set[str] = field(default_factory=set)
    _nodes: dict[str, int] = field(default_factory=dict)

    def histograms(self) -> dict[str, IntArray]:
        """By agency, in name order, of those that took part to the end."""
        self.status = {name: {"status": "late", "reason": "did not answer"} for name in self.plan.of}
        boxes = self._agree()
        orders = {
            name: CohortOrder(
                self.plan, {other: sealed[name] for other, sealed in boxes.items() if other != name}
            )
            for name in boxes
        }
        found = {}
        for name, reply in self._ask(orders, wire.pack_cohort_order).items():
            problem = _problem(reply, self.plan)
            if problem is not None or not isinstance(reply, CohortReply):
                self.status[name] = {"status": "rejected", "reason": problem}
                continue
            found[name] = reply.counts.astype(np.int64)
            self.status[name] = {"status": "counted", "reason": None}
            if reply.head is not None and reply.head.seq > self.heads.get(name, Head(0, "")).seq:
                self.heads[name] = reply.head
        may_have_charged = ("counted", "rejected", "late", "unavailable")
        self.charged = {name for name in orders if self.status[name]["status"] in may_have_charged}
        return found

    def absent(self) -> str:
        """Who is not in it, and why."""
        return ", ".join(
            f"{name} ({facts['status']}: {facts['reason']})"
            for name, facts in self.status.items()
            if facts["status"] != "counted"
        )

    def _agree(self) -> dict[str, Mapping[str, bytes]]:
        """By giver and receiver, what those who take part sealed to each other; without two of them nothing."""
        for attempt in range(ATTEMPTS):
            greeted = self._greet() if attempt == 0 else self._greet_again(attempt)
            if len(greeted) < 2:
                break
            everybody = tuple(greeted[name].greeting for name in sorted(greeted))
            orders = {name: SealOrder(self.plan, everybody) for name in sorted(greeted)}
            sealed = {
                name: reply.boxes
                for name, reply in self._ask(orders, wire.pack_seal_order).items()
                if isinstance(reply, Boxes) and set(reply.boxes) == set(greeted) - {name}
            }
            if set(sealed) == set(greeted):
                return sealed
            for name in set(greeted) - set(sealed):  # the others go on without
                self._nodes.pop(name, None)
                if self.status[name]["status"] == "ready":
                    self.status[name] = {"status": "rejected", "reason": NOT_A_REPLY}
        return {}

    def _greet(self) -> dict[str, Greeted]:
        """Ask every node: nobody knows yet which agency is where."""
        settings = self.experiment.settings
        poll, expected = settings.engine.poll_seconds, len(self.plan.of)
        nodes = await_nodes(self.grid, expected, settings.join_timeout, poll)
        order = GreetOrder(self.plan, 0, dict(self.heads))
        messages = ask_until_ready(
            self.grid, self.experiment, lambda node: wire.pack_greet_order(order, node), nodes
        )
        found = {}
        for message in messages.values():
            reply = read(message)
            name = getattr(reply, "agency", "")
            if name not in self.plan.of or name in self._nodes:
                continue  # not of this cohort, or somebody speaks twice
            if isinstance(reply, Refusal):
                self._refused(name, reply)
            elif isinstance(reply, Greeted) and reply.greeting.agency == name:
                found[name] = reply
                self._nodes[name] = message.metadata.src_node_id
                self.status[name] = {"status": "ready", "reason": None}
        return found

    def _greet_again(self, attempt: int) -> dict[str, Greeted]:
        """A new set-up among those that are left."""
        order = GreetOrder(self.plan, attempt, dict(self.heads))
        replies = self._ask(dict.fromkeys(self._nodes, order), wire.pack_greet_order)
        return {name: reply for name, reply in replies.items() if isinstance(reply, Greeted)}

    def _ask(self, orders: Mapping[str, Any], pack: Callable[[Any, int], Message]) -> dict[str, Reply | None]:
        """What the agencies say to their orders, in name order; whoever refuses or is late is noted and left out."""
        settings = self.experiment.settings
        messages = {name: pack(order, self._nodes[name]) for name, order in orders.items()}
        patience = dict.fromkeys(messages, float(settings.patience))
        timeout, poll = settings.round_timeout, settings.engine.poll_seconds
        found = exchange(self.grid, messages, timeout, poll, patience) if messages else {}
        replies: dict[str, Reply | None] = {}
        for name in sorted(orders):
            reply = read(found[name]) if name in found else None
            if name not in found:
                self.status[name] = {"status": "late", "reason": "did not answer"}
            elif isinstance(reply, Refusal):
                self._refused(name, reply)
            elif getattr(reply, "agency", None) != name:
                self.status[name] = {"status": "rejected", "reason": NOT_A_REPLY}
                replies[name] = None
            else:
                replies[name] = reply
        return replies

    def _refused(self, name: str, refusal: Refusal) -> None:
        self.status[name] = {"status": status_of(refusal.reason), "reason": refusal.reason.value}


def _problem(reply: object, plan: CohortPlan) -> str | None:
    """Why a reply is rejected, or None. It names the rule, and no value of the reply."""
    if not isinstance(reply, CohortReply):
        return NOT_A_REPLY
    if reply.releases != (plan.release(),):
        return "the reply was charged as something else than was ordered"
    if reply.counts.shape != plan.shape or reply.counts.dtype != plan.dtype:
        return f"counts must have shape {plan.shape} and type {plan.dtype}"
    noise = math.sqrt(reply.counts.size * noise_variance(plan.epsilon))
    most = MOST_PEOPLE * plan.participant(reply.agency).public_size + 10 * noise
    if abs(int(reply.counts.sum(dtype=np.int64))) > most:
        return f"counts has more people than {MOST_PEOPLE:g} x its declared size"
    return None


# --- what it says -------------------------------------------------------------------------------------


def described(
    experiment: Experiment,
    plan: CohortPlan,
    facts: RunFacts,
    status: Mapping[str, Mapping[str, Any]],
    charged: set[str],
    counts: Mapping[str, IntArray],
) -> dict[str, Any]:
    """What cohort.json holds; no reading of the histograms costs any privacy."""
    rule, contract = experiment.settings.evaluation.rule, experiment.data_contract
    people = {name: cohort.published(cohort.size(own, plan.epsilon), rule) for name, own in counts.items()}
    pairs = [
        _pair(plan, contract_levels(experiment, plan), two, counts, people, rule) for two in _twos(counts)
    ]
    match = contract.match
    for pair in pairs:
        pair["with_missed"] = (
            None if match is None else _with_missed(pair["shared"], MISSED[match.rule], rule)
        )
    found: dict[str, Any] = {
        **asked_header(contract, plan, facts),
        "kind": "cohort",
        "disclosure": rule.to_dict(),
        "level": LEVEL,
        "privacy": _privacy(experiment, plan, facts, charged),
        "agencies": {
            name: _agency(plan, name, status[name], name in charged, people.get(name, NOTHING))
            for name in plan.of
        },
        "match": None if match is None else {"rule": WORDS[match.rule], "columns": list(match.columns)},
        "by": plan.by,
        "buckets": plan.buckets,
        "pairs": pairs,
        "core": _core(counts, rule),
        "least": min(pair["least"] for pair in pairs),
    }
    return found | {"conclusion": " ".join(conclusions(found)), "files": {}}


def contract_levels(experiment: Experiment, plan: CohortPlan) -> tuple[str, ...]:
    """The names of the histogram's rows."""
    return levels_of(experiment.data_contract, plan.by)


def _twos(counts: Mapping[str, IntArray]) -> list[tuple[str, str]]:
    return list(itertools.combinations(sorted(counts), 2))


def _pair(
    plan: CohortPlan,
    levels: tuple[str, ...],
    two: tuple[str, str],
    counts: Mapping[str, IntArray],
    people: Mapping[str, Estimate],
    rule: Disclosure,
) -> dict[str, Any]:
    one, other = (counts[name] for name in two)
    each = [cohort.both(a, b, (plan.epsilon, plan.epsilon)) for a, b in zip(one, other, strict=True)]
    shared = cohort.published(cohort.together(each), rule)
    groups = {}
    if plan.by is not None:
        for level, found, a, b in zip(levels, each, one, other, strict=True):
            own = {
                name: cohort.published(cohort.size(row, plan.epsilon), rule)
                for name, row in zip(two, (a, b), strict=True)
            }
            groups[level] = _shared(cohort.published(found, rule), own)
    return {"agencies": list(two), **_shared(shared, people), "groups": groups, **planned(plan, two)}


def _shared(shared: Estimate, people: Mapping[str, Estimate]) -> dict[str, Any]:
    return {
        "shared": shared.to_dict(),
        "share_of": {name: cohort.share_of(shared, own).to_dict() for name, own in people.items()},
    }


def _with_missed(shared: Mapping[str, Any], missed: float, rule: Disclosure) -> dict[str, float] | None:
    """The interval where up to `missed` of the shared people have two keys: L to H / (1 - missed); None without one."""
    if not shared["publishable"]:
        return None
    low, high = rule.outward(shared["low"], shared["high"] / (1 - missed))
    return {"low": low, "high": high, "missed": missed}


def planned(plan: CohortPlan, two: tuple[str, str]) -> dict[str, Any]:
    """What is known of a pair before anything is spent, from the declared sizes: people and epsilons.

    `least`: the smallest overlap that can be told from none. `example`: an overlap of a fifth of the smaller list and
    the standard deviation of its error. `needs`: the epsilon of each agency at which an overlap of `overlap` people
    could be told, the example's where this budget is too small for that (null: none up to 12), else half of `least`.
    """
    sizes = dict(zip(plan.of, plan.sizes, strict=True))
    people = (sizes[two[0]], sizes[two[1]])
    asked = (plan.epsilon, plan.buckets, plan.levels)
    least, fifth = cohort.least(people, *asked), min(people) / 5
    smaller = fifth if least > fifth else least / 2
    return {
        "least": least,
        "example": {"overlap": fifth, "sd": cohort.planned_sd(people, fifth, *asked)},
        "needs": {"overlap": smaller, "epsilon": cohort.epsilon_for(people, smaller, plan.levels)},
    }


def _core(counts: Mapping[str, IntArray], rule: Disclosure) -> dict[str, Any] | None:
    if len(counts) < 3:
        return None
    names = sorted(counts)
    each = [cohort.core(rows) for rows in zip(*(counts[name] for name in names), strict=True)]
    return {"agencies": names, "shared": cohort.published(cohort.together(each), rule).to_dict()}


def _agency(
    plan: CohortPlan, name: str, found: Mapping[str, Any], charged: bool, people: Estimate
) -> dict[str, Any]:
    spent = [plan.release()] if charged else []
    return {
        "kind": plan.participant(name).kind,
        "public_size": plan.participant(name).public_size,
        **found,
        "epsilon": pure_epsilon(spent),
        "releases": [event.to_dict() for event in spent],
        "people": people.to_dict(),
    }


def _privacy(experiment: Experiment, plan: CohortPlan, facts: RunFacts, charged: set[str]) -> dict[str, Any]:
    """The guarantee with its unit and adjacency next to it: pure, so it needs no accountant and no δ."""
    spent = [[plan.release()] for _ in charged]
    several = {m: pure_epsilon_at_several(spent, m) for m in (1, 2, 3) if m <= len(spent)}
    return {
        "mechanism": LaplaceRelease.mechanism,
        "unit": f"{experiment.data_contract.unit.kind} at one agency",
        "adjacency": "add-or-remove",
        "accountant": "pure differential privacy: ε of several releases add up",
        "delta": 0,
        "epsilon": plan.epsilon,
        "epsilon_at_several_agencies": {str(m): value for m, value in several.items()},
        "ledger": "this run alone" if facts.simulation else "lifetime",
    }


def conclusions(found: Mapping[str, Any]) -> list[str]:
    """Sentences for each pair, the core, and whoever is not in it."""
    said = [sentence for pair in found["pairs"] for sentence in _of_pair(pair)]
    if found["core"] is not None:
        names, shared = _listed(found["core"]["agencies"]), found["core"]["shared"]
        said.append(
            f"About {_people(shared)} people are known to {names}, all of them."
            if shared["publishable"]
            else f"How many people {names} all know cannot be told at this budget."
        )
    said += [
        f"{name} is not in it: {facts['status']} ({facts['reason']})."
        for name, facts in found["agencies"].items()
        if facts["status"] != "counted"
    ]
    return said


def _of_pair(pair: Mapping[str, Any]) -> list[str]:
    one, other = pair["agencies"]
    if not pair["shared"]["publishable"]:
        needs = pair["needs"]
        more = "" if needs["epsilon"] is None else f"ε = {needs['epsilon']:g} at each to tell one of "
        more += f"{needs['overlap']:,.0f} people, or " if more else ""
        return [
            f"How many people {one} and {other} both know cannot be told at this budget: it would take {more}an "
            f"overlap of {pair['least']:,.0f} people. If more are expected, check that both made keys by the contract's rule, "
            "and that both pin each other's right key in node.toml: under two secrets nobody is found in common."
        ]
    said = [f"About {_people(pair['shared'])} people are known to both {one} and {other}."]
    if pair["with_missed"] is not None:
        said.append(_missed(pair["with_missed"]))
    for name, of in ((one, other), (other, one)):
        share = pair["share_of"][name]
        if share["publishable"]:
            value, low, high = (round(100 * share[key]) for key in ("value", "low", "high"))
            said.append(
                f"Of every 100 people known to {name}, about {value} ({low}–{high}) are known to {of}."
            )
    return said


def _missed(wider: Mapping[str, float]) -> str:
    return (
        f"That interval is of the noise alone: if {100 * wider['missed']:.0f} of 100 shared people are written differently at "
        f"the two, as in made-up records (docs/matching.md), it is {wider['low']:,.0f}–{wider['high']:,.0f}."
    )


def _people(estimate: Mapping[str, Any]) -> str:
    return f"{estimate['value']:,.0f} ({estimate['low']:,.0f}–{estimate['high']:,.0f})"


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
