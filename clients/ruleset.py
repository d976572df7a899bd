"""The rules of a policy, each a pure function of the policy, a plan and the situation: `clients.rules` asks them.

None reads a record or the ledger, so no answer that is given here can depend on data.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple

from clients.policy import Policy
from federation.cohort import CohortPlan, columns_of
from federation.decision import DecisionError, Panel, read_registered
from federation.experiment import unlike_registered
from federation.plan import Reason, Refused, TrainPlan
from federation.privacy import epsilon
from federation.protocol import MapPlan, Masked, Plan
from federation.release import VIEWERS, Event, Viewer
from federation.stats import StatsPlan
from models.contract import Contract
from models.overlap import noise_variance

Standing = Literal["approved", "withdrawn"]
WHO: Mapping[Viewer, str] = {
    "public": "whoever sees the results",
    "coordinator": "the coordinator",
    "everybody": "all the others together",
}


@dataclass(frozen=True)
class Situation:
    """What a review needs besides the plan: the time, the node's own contract, and what people decided on plans.

    `standing` is by plan SHA-256 (`clients.approvals`). `panel` is the ethics panel that node.toml pins, if it does,
    and `name` this agency there.
    """

    now: datetime
    contract: Contract
    standing: Mapping[str, Standing] = field(default_factory=dict)
    panel: Panel | None = None
    name: str = ""


class Verdict(NamedTuple):
    """What one rule says to a plan. `rule` is its key in policy.toml; `reason` None: it permits."""

    rule: str
    reason: Reason | None
    sentence: str

    @property
    def permits(self) -> bool:
        """Whether the plan passes this rule."""
        return self.reason is None


Rule = Callable[[Policy, Any, Situation], Verdict]


def _verdict(rule: str, permits: bool, reason: Reason, yes: str, no: str) -> Verdict:
    return Verdict(rule, None, yes) if permits else Verdict(rule, reason, no)


def _listed(policy: Policy, names: Sequence[str] | None, name: str) -> bool:
    """Whether `name` is in a list that permits anything in a simulation, and nothing elsewhere, where it is left out."""
    return policy.simulation if names is None else name in names


def _ceiling(rule: str, most: float | None, found: float, reason: Reason, what: str) -> Verdict:
    if most is None:
        return Verdict(rule, None, f"{what}: no ceiling")
    says = f"{what}: the plan has {found:g}, the most is {most:g}"
    return _verdict(rule, found <= most, reason, says, says)


# --- every plan ---------------------------------------------------------------------------------------


def _withdrawn(policy: Policy, plan: Plan, at: Situation) -> Verdict:
    return _verdict(
        "withdraw",
        at.standing.get(plan.sha256) != "withdrawn",
        Reason.WITHDRAWN,
        "nobody has withdrawn from this plan",
        f"a person has withdrawn from plan {plan.sha256}",
    )


def _purposes(policy: Policy, plan: Plan, at: Situation) -> Verdict:
    name = f"the plan's purpose {plan.purpose!r}"
    purpose = policy.purposes.get(plan.purpose)
    if purpose is None:
        return Verdict("purposes", Reason.PURPOSE, f"{name} is not listed")
    until = purpose.expires
    return _verdict(
        "purposes",
        until is None or policy.today(at.now) <= until,
        Reason.PURPOSE,
        f"{name} is listed" + ("" if until is None else f" up to {until}"),
        f"{name} expired: its last day was {until}",
    )


def _contracts(policy: Policy, plan: Plan, at: Situation) -> Verdict:
    shown = f"the plan's contract {plan.contract_sha256[:16]}..."
    return _verdict(
        "contracts",
        _listed(policy, policy.contracts, plan.contract_sha256),
        Reason.CONTRACT,
        f"{shown} is listed" if policy.contracts else "any contract: the records are simulated",
        f"{shown} is not listed",
    )


def _never_columns(policy: Policy, plan: Plan, at: Situation) -> Verdict:
    never = {name.casefold() for name in policy.never_columns}
    found = sorted(name for name in _columns(plan, at.contract) if name.casefold() in never)
    return _verdict(
        "never_columns",
        not found,
        Reason.CONTRACT,
        "none of the columns that are never to be used is needed" if never else "no column is excluded",
        f"the plan needs {', '.join(map(repr, found))}, never to be used here",
    )


def _columns(plan: Plan, contract: Contract) -> set[str]:
    """Every column of the contract, whichever agencies hold it, and those of a statistic or a cohort."""
    roles = {contract.unit.column, contract.unit.order_by, contract.label.column, contract.split}
    asked = {plan.column} if isinstance(plan, StatsPlan) else set()
    asked |= set(_counted(plan, contract, None)) if isinstance(plan, MapPlan) else set()
    asked |= set(columns_of(contract, plan.by)) if isinstance(plan, CohortPlan) else set()
    known = {column.name for column in contract.columns} | {group.column for group in contract.groups}
    known |= set(contract.user_columns)
    return known | asked | {name for name in roles if name is not None}


def _counted(plan: MapPlan, contract: Contract, agency: str | None) -> tuple[str, ...]:
    """The columns by which a map counts people of `agency`, of anybody (None); none where it does not fit the contract."""
    try:
        return (plan.asked(contract) if agency is None else plan.asked_of(contract, agency)).columns
    except Refused:
        return ()  # the node says so once it has seen that the contract is its own


def _min_agencies(policy: Policy, plan: Plan, at: Situation) -> Verdict:
    return _verdict(
        "min_agencies",
        len(plan.participants) >= policy.min_agencies,
        Reason.CONTRACT,
        f"the plan lists at least {policy.min_agencies} agencies",
        f"the plan lists fewer than {policy.min_agencies} agencies",
    )


def _no_seed(policy: Policy, plan: Plan, at: Situation) -> Verdict:
    return _verdict(
        "simulation",
        plan.seed is None or policy.simulation,
        Reason.PRIVACY,
        "nobody else can know the noise" if plan.seed is None else "a seed is permitted in a simulation",
        "a plan with a seed would make the noise known to others",
    )


def _releases(policy: Policy, plan: Plan, at: Situation) -> Verdict:
    kinds = tuple(dict.fromkeys(event.kind for event in _of_one_order(plan)))
    absent = [kind for kind in kinds if not _listed(policy, policy.releases, kind)]
    return _verdict(
        "releases",
        not absent,
        Reason.MODEL,
        f"the plan takes {' and '.join(kinds)}, as permitted",
        f"the plan takes {' and '.join(map(repr, absent))}, which is not listed",
    )


def _masks_required(policy: Policy, plan: Plan, at: Situation) -> Verdict:
    masked = isinstance(plan, Masked) and plan.circle is not None
    return _verdict(
        "masks_required",
        masked or not policy.masks_required,
        Reason.PRIVACY,
        "what leaves is behind masks" if masked else "masks are not required",
        "what the plan takes would leave without masks",
    )


# --- how little may be seen, and how much in all ------------------------------------------------------


def _sigma(plan: Plan) -> float:
    """The least noise on a cell of a table, std, in people; of a map, that of one table that would cost as much."""
    if isinstance(plan, CohortPlan):
        return math.sqrt(noise_variance(plan.epsilon))
    if isinstance(plan, TrainPlan):
        return min(plan.privacy.tune_sigma, plan.privacy.test_sigma)
    return plan.sigma if isinstance(plan, StatsPlan) else plan.noise_multiplier


def _min_table_sigma(policy: Policy, plan: Plan, at: Situation) -> Verdict:
    least = policy.min_table_sigma
    return _verdict(
        "min_table_sigma",
        policy.simulation or _sigma(plan) >= least,
        Reason.PRIVACY,
        _not_asked(policy, f"the noise on tables is at least {least}"),
        f"the plan has less than {least}",
    )


def _max_delta(policy: Policy, plan: TrainPlan | StatsPlan, at: Situation) -> Verdict:
    delta = plan.privacy.delta if isinstance(plan, TrainPlan) else plan.delta
    return _verdict(
        "max_delta",
        policy.simulation or delta <= policy.max_delta,
        Reason.PRIVACY,
        _not_asked(policy, f"delta is at most {policy.max_delta}"),
        f"the plan has more than {policy.max_delta}",
    )


def _budget(policy: Policy, plan: Plan, at: Situation) -> Verdict:
    return _verdict(
        "budget",
        policy.simulation or policy.budget is not None,
        Reason.BUDGET,
        _not_asked(policy, "the policy states one; the ledger says what is left of it"),
        "the policy states none, so nothing can be spent",
    )


def _budget_order(policy: Policy, plan: Plan, at: Situation) -> Verdict:
    budget = policy.budget
    if budget is None or budget.order is None:
        return Verdict("budget.order", None, "no ceiling for one order")
    for viewer in VIEWERS:
        most, found = budget.order.to(viewer), _order_epsilon(_of_one_order(plan), budget.delta, viewer)
        if found > most:
            says = f"one order would cost ε = {found:.3g} to {WHO[viewer]}, the most is {most:g}"
            return Verdict("budget.order", Reason.BUDGET, says)
    return Verdict("budget.order", None, "one order costs no more than permitted, whoever looks")


def _of_one_order(plan: Plan) -> tuple[Event, ...]:
    """The most that one order takes: its training and tables are of different people, so the costliest counts."""
    return plan.each_release() if isinstance(plan, TrainPlan) else (plan.release(),)


@functools.lru_cache(maxsize=64)
def _order_epsilon(releases: tuple[Event, ...], delta: float, viewer: Viewer) -> float:
    return epsilon(releases, delta, viewer=viewer)


def _not_asked(policy: Policy, sentence: str) -> str:
    return "not asked of a simulation" if policy.simulation else sentence


# --- training -----------------------------------------------------------------------------------------


def _models(policy: Policy, plan: TrainPlan, at: Situation) -> Verdict:
    name = f"the plan's model {plan.model.name!r}"
    listed = plan.model.name in policy.models
    return _verdict("models", listed, Reason.MODEL, f"{name} is listed", f"{name} is not listed")


def _strategies(policy: Policy, plan: TrainPlan, at: Situation) -> Verdict:
    name = f"the plan's strategy {plan.strategy!r}"
    return _verdict(
        "strategies",
        _listed(policy, policy.strategies, plan.strategy),
        Reason.MODEL,
        f"{name} is listed" if policy.strategies else "any strategy: the records are simulated",
        f"{name} is not listed",
    )


def _fairness(policy: Policy, plan: TrainPlan, at: Situation) -> Verdict:
    if plan.fairness is None:
        return Verdict(
            "fairness", None, "people and agencies count as they do without a method of fairer training"
        )
    name = f"the plan's fairer training {plan.fairness.method!r}"
    return _verdict(
        "fairness",
        _listed(policy, policy.fairness, plan.fairness.method),
        Reason.MODEL,
        f"{name} is listed" if policy.fairness else "any fairer training: the records are simulated",
        f"{name} is not listed",
    )


def _registration(policy: Policy, plan: TrainPlan, at: Situation) -> Verdict:
    """What does not check is refused even where no registration is asked for: the plan says what is not so."""
    rule, given = "registration_required", plan.registration
    if given is None:
        no = "no ethics panel registered the plan: a panel signs what will be trained, and for what, before it begins"
        yes = "no panel need have registered the plan"
        return _verdict(rule, not policy.registration_required, Reason.REGISTRATION, yes, no)
    try:
        registration = read_registered(given, at.panel)
    except DecisionError as error:
        return Verdict(rule, Reason.REGISTRATION, str(error))
    unlike = unlike_registered(plan, registration, at.contract)
    if unlike:
        no = f"the plan is another than was registered, {', '.join(unlike)} differ: an edit after the registration voids it"
        return Verdict(rule, Reason.REGISTRATION, no)
    if at.panel is None:
        no = "node.toml pins no panel, so nobody here can tell whether a panel registered the plan: add [panel]"
        yes = f"the plan says that registration {given.digest[:16]}... is of it; node.toml pins no panel to check it by"
        return _verdict(rule, not policy.registration_required, Reason.REGISTRATION, yes, no)
    return Verdict(rule, None, f"{at.panel.name} signed the registration {given.digest[:16]}...")


def _max_rounds(policy: Policy, plan: TrainPlan, at: Situation) -> Verdict:
    return _ceiling("max_rounds", policy.max_rounds, plan.rounds, Reason.MODEL, "rounds")


def _max_steps(policy: Policy, plan: TrainPlan, at: Situation) -> Verdict:
    return _ceiling("max_steps", policy.max_steps, plan.local.steps, Reason.MODEL, "steps of an order")


def _max_grad_norm(policy: Policy, plan: TrainPlan, at: Situation) -> Verdict:
    found = plan.privacy.max_grad_norm
    return _ceiling("max_grad_norm", policy.max_grad_norm, found, Reason.PRIVACY, "clipping norm")


def _max_sample_rate(policy: Policy, plan: TrainPlan, at: Situation) -> Verdict:
    found = plan.privacy.sample_rate
    return _ceiling(
        "max_sample_rate", policy.max_sample_rate, found, Reason.PRIVACY, "share of people in a step"
    )


def _min_colluders(policy: Policy, plan: Masked, at: Situation) -> Verdict:
    shared, least = plan.circle, policy.min_colluders
    if shared is None or policy.simulation:
        return Verdict("min_colluders", None, _not_asked(policy, "the noise is this agency's own"))
    says = f"the plan withstands {shared.colluders}, the least is {least}"
    return _verdict("min_colluders", shared.colluders >= least, Reason.PRIVACY, says, says)


def _max_honest(policy: Policy, plan: Masked, at: Situation) -> Verdict:
    shared, most = plan.circle, policy.max_honest
    if shared is None or policy.simulation:
        return Verdict("max_honest", None, _not_asked(policy, "the noise is this agency's own"))
    says = f"the plan rests on {shared.honest} honest agencies, the most is {most}"
    return _verdict("max_honest", shared.honest <= most, Reason.PRIVACY, says, says)


def _no_plan_without_privacy(policy: Policy, plan: Masked, at: Situation) -> Verdict:
    mechanism = plan.privacy.mechanism if isinstance(plan, TrainPlan) else plan.mechanism
    return _verdict(
        "simulation",
        policy.simulation or mechanism != "none",
        Reason.PRIVACY,
        _not_asked(policy, "the plan has noise"),
        "a plan without privacy runs on simulated data only",
    )


def _min_noise_multiplier(policy: Policy, plan: TrainPlan, at: Situation) -> Verdict:
    least = policy.min_noise_multiplier
    return _verdict(
        "min_noise_multiplier",
        policy.simulation or plan.privacy.noise_multiplier >= least,
        Reason.PRIVACY,
        _not_asked(policy, f"the noise on training is at least {least}"),
        f"the plan has less than {least}",
    )


# --- one statistic ------------------------------------------------------------------------------------


def _stats_columns(policy: Policy, plan: StatsPlan, at: Situation) -> Verdict:
    name = f"the plan's column {plan.column!r}"
    listed = plan.column in policy.stats_columns
    return _verdict("stats_columns", listed, Reason.CONTRACT, f"{name} is listed", f"{name} is not listed")


# --- a map and a cohort ---------------------------------------------------------------------------------


def _map_columns(policy: Policy, plan: MapPlan | CohortPlan, at: Situation) -> Verdict:
    """The columns by which this agency itself is asked to count must each be listed."""
    if isinstance(plan, MapPlan):
        counted = _counted(plan, at.contract, at.name)
    else:
        counted = tuple(columns_of(at.contract, plan.by))
    absent = sorted(name for name in counted if name not in policy.map_columns)
    return _verdict(
        "map_columns",
        not absent,
        Reason.CONTRACT,
        "every column that people are counted by is listed",
        f"the plan counts people by {', '.join(map(repr, absent))}, which is not listed",
    )


def _cohort_peers(policy: Policy, plan: CohortPlan, at: Situation) -> Verdict:
    absent = [name for name in plan.of if name not in (*policy.cohort_peers, at.name)]
    return _verdict(
        "cohort_peers",
        not absent,
        Reason.CONTRACT,
        "people may be counted together with every agency of the plan",
        f"the plan counts people together with {', '.join(absent)}, which is not listed",
    )


# --- what changes with time ---------------------------------------------------------------------------


def _ask(policy: Policy, plan: Plan, at: Situation) -> Verdict:
    if not policy.asks(plan.purpose):
        return Verdict("ask", None, "no person need approve the plan")
    return _verdict(
        "ask",
        at.standing.get(plan.sha256) == "approved",
        Reason.NOT_YET,
        "a person has approved the plan",
        f"a person must approve plan {plan.sha256} first: fedrisk-node approve",
    )


def _hours(policy: Policy, plan: Plan, at: Situation) -> Verdict:
    hours = policy.hours
    if hours is None:
        return Verdict("hours", None, "orders are answered at any time")
    window = f"{hours.opens:%H:%M} to {hours.closes:%H:%M} {hours.timezone}, {', '.join(hours.days)}"
    says = f"orders are answered {window}"
    return _verdict("hours", hours.include(at.now), Reason.CLOSED, says, says)


TERMS: tuple[Rule, ...] = (
    *(_withdrawn, _purposes, _contracts, _never_columns, _min_agencies, _no_seed, _releases, _masks_required),
)
TRAINING: tuple[Rule, ...] = (
    *(
        _registration,
        _models,
        _strategies,
        _fairness,
        _max_rounds,
        _max_steps,
        _min_colluders,
        _max_honest,
        _no_plan_without_privacy,
    ),
    *(_max_grad_norm, _max_sample_rate, _min_noise_multiplier, _min_table_sigma, _max_delta),
    *(_budget, _budget_order),
)
MAP: tuple[Rule, ...] = (
    *(_map_columns, _min_colluders, _max_honest, _no_plan_without_privacy),
    *(_min_table_sigma, _max_delta, _budget, _budget_order),
)
STATISTIC: tuple[Rule, ...] = (_stats_columns, _min_table_sigma, _max_delta, _budget, _budget_order)
COHORT: tuple[Rule, ...] = (_map_columns, _cohort_peers, _min_table_sigma, _budget, _budget_order)
NOW: tuple[Rule, ...] = (_ask, _hours)
