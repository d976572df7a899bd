"""A plan held against the agency's policy: accepted, or refused with the class and the key that decides.

Pure functions: what they need comes as an argument, no record is read, and no plan is ever adjusted. `review` is
what the node does at each order; `explain` says the same of every rule, for `fedrisk-node policy check`.
"""

from collections.abc import Iterator, Sequence

from clients.policy import Policy
from clients.ruleset import (
    COHORT,
    MAP,
    NOW,
    STATISTIC,
    TERMS,
    TRAINING,
    Rule,
    Situation,
    Standing,
    Verdict,
)
from federation.cohort import CohortPlan
from federation.plan import Refused, TrainPlan
from federation.protocol import MapPlan, Plan


def review(policy: Policy, plan: Plan, at: Situation) -> None:
    """Return if every lasting rule permits `plan`; `Refused` with the first that does not."""
    _require(policy, plan, at, _lasting(plan))


def review_now(policy: Policy, plan: Plan, at: Situation) -> None:
    """`review` by the rules whose answer changes with time: a person's approval, and the working hours."""
    _require(policy, plan, at, NOW)


def explain(policy: Policy, plan: Plan, at: Situation) -> list[Verdict]:
    """What every rule says, in the order in which they are asked: the first that does not permit decides."""
    return list(_verdicts(policy, plan, at, (*_lasting(plan), *NOW)))


def deciding(verdicts: Sequence[Verdict]) -> Verdict | None:
    """The verdict that decides, None where all permit."""
    return next((verdict for verdict in verdicts if not verdict.permits), None)


def _lasting(plan: Plan) -> tuple[Rule, ...]:
    if isinstance(plan, MapPlan):
        return (*TERMS, *MAP)
    if isinstance(plan, CohortPlan):
        return (*TERMS, *COHORT)
    return (*TERMS, *(TRAINING if isinstance(plan, TrainPlan) else STATISTIC))


def _verdicts(policy: Policy, plan: Plan, at: Situation, rules: Sequence[Rule]) -> Iterator[Verdict]:
    return (rule(policy, plan, at) for rule in rules)


def _require(policy: Policy, plan: Plan, at: Situation, rules: Sequence[Rule]) -> None:
    for rule, reason, sentence in _verdicts(policy, plan, at, rules):
        if reason is not None:
            raise Refused(reason, f"{rule}: {sentence}")


__all__ = ["Plan", "Situation", "Standing", "Verdict", "deciding", "explain", "review", "review_now"]
