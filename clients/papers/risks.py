"""The risks that a DPIA begins with: what can happen to people, what stands against it here, and what is left.

The measures follow the configuration: what is not switched on is said to be off. docs/threat-model.md has the tests.
"""

from typing import NamedTuple

from clients.papers.facts import Facts


class Risk(NamedTuple):
    """One row; `number` is its place in the paper."""

    number: int
    risk: str
    measure: str
    left: str


def risks(facts: Facts) -> list[Risk]:
    """Every row, numbered."""
    found = (_inference, _code, _wire, _misuse, _machine, _unfair, _scores, _accountability)
    return [Risk(number, *each(facts)) for number, each in enumerate(found, start=1)]


def _inference(facts: Facts) -> tuple[str, str, str]:
    policy = facts.policy
    noise = f"noise of at least {policy.min_noise_multiplier:g} x the clipping norm on training and {policy.min_table_sigma:g} people (std) on tables"
    if policy.simulation:
        noise = "none that holds: simulation = true permits plans without noise"
    budget = (
        "a lifetime limit in the ledger"
        if policy.budget is not None
        else "no budget is written, so nothing can be spent"
    )
    masks = (
        "sums over agencies alone, behind masks"
        if policy.masks_required
        else "this agency's own numbers may leave, with its noise"
    )
    people = f"with fewer than {policy.min_people} people the node answers as if it had none"
    return (
        "Somebody learns from what leaves that a certain person is in the records, or what is recorded of them",
        f"{noise}; {budget}; {masks}; {people}",
        "What is true of whole groups can be learned. A person at several agencies, or a household, is less protected",
    )


def _code(facts: Facts) -> tuple[str, str, str]:
    agreed = (
        "The installed code is compared with a signed release"
        if facts.node.release
        else "node.toml names no signed release to compare with"
    )
    return (
        "Code that the agency did not install reads records",
        f"The node fetches and runs no code of a run; it runs what IT installed. {agreed}",
        "Flower, PyTorch and the other libraries are trusted as installed, by their hashes at installation",
    )


def _wire(facts: Facts) -> tuple[str, str, str]:
    return (
        "Somebody on the network reads or forges what passes",
        f"{facts.line}. Nothing calls in",
        "Whoever runs a proxy that opens TLS, where the agency lets it",
    )


def _misuse(facts: Facts) -> tuple[str, str, str]:
    asked = [purpose.name for purpose in facts.purposes if purpose.asked]
    person = (
        f"a person approves each plan for {', '.join(asked)}" if asked else "no person is asked about a plan"
    )
    ends = [purpose.name for purpose in facts.purposes if purpose.expires is None]
    forever = f"; without a last day: {', '.join(ends)}" if ends else ""
    return (
        "The coordinator, or who submits runs, uses the node for something else than agreed",
        f"Purpose, contract, columns, model, noise and budget are held against policy.toml before a record is read; {person}{forever}; too many refusals end in BUSY",
        "A permitted plan may be repeated until its budget is spent",
    )


def _machine(facts: Facts) -> tuple[str, str, str]:
    return (
        "The machine is stolen, or its administrator or another login reads records, keys or scores",
        f"Files of the node are for its user alone; the source is {facts.source}",
        "Nothing of fedrisk stops an administrator. Disk encryption, and who has a login, are the agency's",
    )


def _unfair(facts: Facts) -> tuple[str, str, str]:
    groups = ", ".join(group.name for group in facts.contract.groups)
    proxies = sorted({column.proxy_for for column in facts.columns if column.proxy_for})
    marked = f"; columns are marked that stand for {', '.join(proxies)}" if proxies else ""
    return (
        "The model is wrong more often for some groups, or repeats old injustice in the records",
        f"Compared are: {groups}{marked}" if groups else "No group is declared, so nothing is compared",
        "Only declared groups are compared. The outcome column is taken for the truth",
    )


def _scores(facts: Facts) -> tuple[str, str, str]:
    return (
        "A score is used without thought, for something else, or by somebody who may not",
        'Scores stay here, need a purpose of policy.toml, and each consultation is written down before it is shown; until a panel approves, every page says "not approved"',
        "Who has the node's login can read what it can read. What is done after a look is the agency's",
    )


def _accountability(facts: Facts) -> tuple[str, str, str]:
    return (
        "Afterwards nobody can say what left, who agreed and who looked",
        "Ledger, log, approvals and access log are hash-chained; others keep the ledger's newest entry (docs/restore.md)",
        "Who can rewrite the whole folder can rewrite the access log; only printed heads show it",
    )
