"""A policy in words, for whoever is responsible for data protection: `fedrisk-node policy show`."""

from collections.abc import Sequence
from typing import NamedTuple

from clients.policy import BudgetRules, EpsilonTo, Policy
from clients.ruleset import WHO
from federation.release import VIEWERS
from models.contract import Contract

KINDS = {
    "train": "training",
    "evaluate": "tables of scores and outcomes",
    "users": "tables of use of services, lead time and today's practice",
    "stats": "statistics of one column",
    "map": "maps (counts of people by levels of permitted columns, as tables)",
    "cohort": "cohorts (a histogram of keyed hashes of people's match keys, of which only the number of people in "
    "common is read)",
}


FAIRER = {
    "group_multipliers": "by how much people of an audit group count, within bounds",
    "qffl": "by how much an agency counts",
}


class Line(NamedTuple):
    """One key of policy.toml and what it means."""

    key: str
    says: str


def show(policy: Policy, contract: Contract) -> list[Line]:
    """Every key, in the order of the file. `contract` is the node's own: its hash can be pasted."""
    return [
        *_for_what(policy, contract),
        *_what(policy),
        *_how_little(policy),
        *_how_much(policy),
        *_when(policy),
    ]


def _for_what(policy: Policy, contract: Contract) -> list[Line]:
    lines = [Line("purposes", "Nothing may be done: no purpose is listed.")] if not policy.purposes else []
    for name, purpose in policy.purposes.items():
        basis = (
            f"Permitted because of: {purpose.legal_basis}." if purpose.legal_basis else "Simulated records."
        )
        until = f" Its last day is {purpose.expires}." if purpose.expires else " It does not expire."
        asks = " A person approves each plan." if policy.asks(name) else ""
        lines.append(Line(f"purposes.{name}", basis + until + asks))
    never = _names(policy.never_columns)
    return [
        *lines,
        Line("contracts", _contracts(policy, contract)),
        Line("never_columns", f"Never used: {never}." if never else "No column is excluded by name."),
        Line("simulation", _simulation(policy)),
    ]


def _simulation(policy: Policy) -> str:
    if policy.simulation:
        return "The records are said to be made up or public: plans without noise are permitted!"
    return "The records are real: every plan must have noise that nobody else knows."


def _contracts(policy: Policy, contract: Contract) -> str:
    own = f'This node\'s is {contract.name}, version {contract.version}: "{contract.sha256}"'
    if policy.contracts is None and policy.simulation:
        return f"The node's own contract. {own}."
    permitted = contract.sha256 in (policy.contracts or ())
    return f"{own}, which is {'permitted' if permitted else 'not permitted: no order can be answered'}."


def _what(policy: Policy) -> list[Line]:
    releases = policy.releases if policy.releases is not None or not policy.simulation else tuple(KINDS)
    kinds = [KINDS[kind] for kind in releases or ()]
    any_strategy = policy.strategies is None and policy.simulation
    return [
        Line("models", f"Models that may be trained: {_names(policy.models) or 'none'}."),
        Line(
            "strategies",
            f"How the coordinator may combine: {'as it likes' if any_strategy else _names(policy.strategies) or 'no way'}.",
        ),
        Line("fairness", _fairness(policy)),
        Line(
            "releases", f"What may leave: {_names(kinds) or 'nothing'}, always with noise unless simulated."
        ),
        Line("stats_columns", f"Columns with statistics: {_names(policy.stats_columns) or 'none'}."),
        Line("map_columns", f"Columns to count people by: {_names(policy.map_columns) or 'none'}."),
        Line(
            "cohort_peers",
            f"Agencies to count people in common with: {_names(policy.cohort_peers) or 'none'}.",
        ),
        Line(
            "registration_required",
            "The panel in node.toml must have registered a training before it began."
            if policy.registration_required
            else "No ethics panel need have registered a training.",
        ),
        Line("max_rounds", f"A plan may have {_at_most(policy.max_rounds)} rounds."),
        Line("max_steps", f"An order may take {_at_most(policy.max_steps)} steps of training."),
    ]


def _fairness(policy: Policy) -> str:
    if policy.fairness is None and policy.simulation:
        return "Training may be made fairer in any way that fedrisk knows."
    named = _names([FAIRER[method] for method in policy.fairness or ()])
    return f"How training may be made fairer: {named or 'in no way'}."


def _how_little(policy: Policy) -> list[Line]:
    masks = (
        "Only sums over agencies may leave"
        if policy.masks_required
        else "This agency's own numbers may leave"
    )
    honest = f"rest on at most {policy.max_honest} other honest agencies"
    return [
        Line(
            "min_people",
            f"With fewer than {policy.min_people} people (not rows) the node answers as if it had none.",
        ),
        Line("min_agencies", f"At least {policy.min_agencies} agencies must be listed in a plan."),
        Line(
            "masks_required",
            f"{masks}{', behind masks' if policy.masks_required else ', with noise on them'}.",
        ),
        Line(
            "min_colluders", f"Shared noise must hold against {policy.min_colluders} agencies that collude."
        ),
        Line("max_honest", f"Shared noise may {honest if policy.max_honest else 'not be used'}."),
        Line("max_grad_norm", f"One person's pull on a step is clipped to {_at_most(policy.max_grad_norm)}."),
        Line("max_sample_rate", f"A step may use {_share(policy.max_sample_rate)} of the people."),
        Line(
            "min_noise_multiplier",
            f"Noise on training: at least {policy.min_noise_multiplier:g} x that pull.",
        ),
        Line(
            "min_table_sigma",
            f"Noise on a cell of a table: at least {policy.min_table_sigma:g} people (std).",
        ),
        Line("max_delta", f"The promise may fail with a chance of at most {policy.max_delta:g}."),
    ]


def _how_much(policy: Policy) -> list[Line]:
    if policy.budget is None:
        return [Line("budget", "None: nothing can be spent on anybody.")]
    return [Line(f"budget.{key}", f"{what}: {_epsilons(most)}.") for key, what, most in _spans(policy.budget)]


def _spans(budget: BudgetRules) -> list[tuple[str, str, EpsilonTo]]:
    spans = [
        ("life", "For good", budget.life),
        ("year", "In any 365 days", budget.year),
        ("experiment", "Each experiment by itself", budget.experiment),
        ("order", "One order by itself", budget.order),
        *((f"purpose.{name}", f"For {name}", most) for name, most in budget.purpose.items()),
    ]
    return [(key, what, most) for key, what, most in spans if most is not None]


def _epsilons(most: EpsilonTo) -> str:
    to = {viewer: most.to(viewer) for viewer in VIEWERS}
    if len(set(to.values())) == 1:
        return f"at most ε = {to['coordinator']:g} about one person, to anybody"
    return "at most " + ", ".join(f"ε = {value:g} to {WHO[viewer]}" for viewer, value in to.items())


def _when(policy: Policy) -> list[Line]:
    hours, probing = policy.hours, policy.probing
    window = "At any time."
    if hours is not None:
        window = f"{hours.opens:%H:%M} to {hours.closes:%H:%M} in {hours.timezone}, on {_names(hours.days)}."
    return [
        Line("hours", window),
        Line("ask", "A person approves each plan." if policy.ask else "Plans run without asking a person."),
        Line("min_reply_seconds", f"Each reply takes at least {policy.min_reply_seconds:g} seconds."),
        Line(
            "probing",
            f"After {probing.refusals} refusals ({probing.per_experiment} of one experiment) in {probing.hours:g} hours "
            "no new plan is looked at.",
        ),
    ]


def _names(names: Sequence[str] | None) -> str:
    return ", ".join(names or ())


def _at_most(most: float | None) -> str:
    return "any number" if most is None else f"at most {most:g}"


def _share(most: float | None) -> str:
    return "any share" if most is None else f"at most {most:.0%}"
