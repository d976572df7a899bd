"""`fedrisk-node policy show | check`, `approve` and `withdraw`: what a person reads, and what a person decides."""

import json
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clients import rules
from clients.approvals import Approvals, Decision, asked, read_plan
from clients.budget import PlanFacts
from clients.desk.ledger_copy import read_only
from clients.desk.plan_words import about
from clients.desk.policy_words import Line, show
from clients.folder import NodeError, NodeFile, read_contract, read_node_file
from clients.ledger import Ledger
from clients.policy import Policy, read_policy
from clients.rules import Plan, Situation, Verdict
from federation.plan import Reason, Refused
from federation.protocol import Masked
from federation.release import Event

SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Asked:
    """A plan that waits for a person, and what it asks, in words (`plan_words`)."""

    plan: Plan
    about: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "plan_sha256": self.plan.sha256,
            "about": list(self.about),
            "plan": json.loads(self.plan.canonical),
        }


@dataclass(frozen=True)
class Checked:
    """What the policy answers to a plan: every rule's verdict, and the first that does not permit, if any does not.

    about: what it asks, in words (`plan_words`).
    """

    plan: Plan
    about: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    decides: Verdict | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        said = [{"rule": v.rule, "reason": v.reason, "sentence": v.sentence} for v in self.verdicts]
        decides = None if self.decides is None else self.decides.rule
        plan = json.loads(self.plan.canonical)
        return {"plan_sha256": self.plan.sha256, "about": list(self.about), "permitted": decides is None, "decides": decides, "rules": said, "plan": plan}  # fmt: skip


def policy_lines(folder: Path) -> list[Line]:
    """The policy of the node in `folder`, in words."""
    facts, policy = _files(folder)
    return show(policy, read_contract(folder, facts.contract))


def waiting(folder: Path) -> list[Asked]:
    """The plans that wait for a person, newest first."""
    facts, _ = _files(folder)
    contract = read_contract(folder, facts.contract)
    return [Asked(plan, tuple(about(plan, contract, facts.name))) for plan in asked(folder)]


def check(folder: Path, which: str, now: datetime | None = None) -> Checked:
    """What the node would answer to the plan `which` now, before any record is read. Nothing is reserved."""
    facts, policy = _files(folder)
    plan = _plan(folder, which)
    standing = Approvals(folder).standing()
    contract = read_contract(folder, facts.contract)
    at = Situation(now or datetime.now(UTC), contract, standing, facts.panel, facts.name)
    verdicts = rules.explain(policy, plan, at)
    if policy.budget is not None:
        with read_only(folder, facts, policy) as ledger:
            verdicts = [verdict for verdict in verdicts if verdict.rule != "budget"] + [_fits(ledger, plan)]
    own = _own_facts(facts, at, plan)
    later = [verdict for verdict in verdicts if verdict.rule in ("ask", "hours")]  # as the node asks them
    found = (*(verdict for verdict in verdicts if verdict not in later), *own, *later)
    return Checked(plan, tuple(about(plan, contract, facts.name)), found, rules.deciding(found))


def decide(folder: Path, which: str, *, approve: bool, who: str, why: str) -> Decision:
    """Approve the plan `which`, or withdraw from it; the journal and approvals.jsonl have it when this returns."""
    _files(folder)
    sha256 = which if SHA256.fullmatch(which) else _plan(folder, which).sha256
    act = Approvals(folder).approve if approve else Approvals(folder).withdraw
    return act(sha256, who, why, datetime.now(UTC))


def _files(folder: Path) -> tuple[NodeFile, Policy]:
    return read_node_file(folder / "node.toml"), read_policy(folder / "policy.toml")


def _plan(folder: Path, which: str) -> Plan:
    """The plan in the file `which`, or one that was asked for whose SHA-256 begins so."""
    if Path(which).is_file():
        return read_plan(Path(which))
    found = (
        sorted((folder / "asked").glob(f"{which}*.json")) if re.fullmatch(r"[0-9a-f]{8,64}", which) else []
    )
    if len(found) != 1:
        raise NodeError(
            f"{which} is neither a plan's JSON file nor the SHA-256 (8 digits or more) of one plan that was asked for: "
            "`fedrisk-node policy asked` lists those"
        )
    return read_plan(found[0])


def _own_facts(facts: NodeFile, at: Situation, plan: Plan) -> list[Verdict]:
    """Whether the plan is about this agency as it declares itself, under its own contract."""
    same = plan.contract_sha256 == at.contract.sha256
    says = (
        "the plan's contract is the one in this folder"
        if same
        else "the plan's contract is not the one in this folder"
    )
    found = [Verdict("contract", None if same else Reason.CONTRACT, says)]
    listed = next((each for each in plan.participants if each.name == facts.name), None)
    if listed is None:
        return [*found, Verdict("name", Reason.CONTRACT, f"the plan does not list the agency {facts.name!r}")]
    fits = (listed.kind, listed.public_size) == (facts.kind, facts.public_size)
    says = "the plan's kind and public_size are" + (" as" if fits else " not as") + " node.toml declares them"
    return [*found, Verdict("public_size", None if fits else Reason.CONTRACT, says)]


def _fits(ledger: Ledger, plan: Plan) -> Verdict:
    """Whether the ledger would take the whole plan; tried on a copy. People are taken to be dealt into parts as last."""
    events: tuple[Event, ...] = plan.releases() if isinstance(plan, Masked) else (plan.release(),)
    charged = ledger.releases()
    split = charged[-1].split_id if charged else ""
    named = [replace(event, split_id=split) for event in events]
    try:
        ledger.reserve(PlanFacts(plan.sha256, plan.run_id, plan.experiment, plan.purpose), named)
    except Refused as refused:
        return Verdict("budget", refused.reason, refused.sentence.removeprefix("budget: "))
    return Verdict("budget", None, "what is left of every limit is enough for the whole plan")
