"""What a panel says, in words that somebody who signs it, or reads the minutes, can check line by line."""

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from federation import rereferral
from federation.decision import (
    IN_WORDS,
    ConditionMet,
    Decision,
    Limits,
    Panel,
    Registration,
    Signed,
    Statement,
    Status,
    Verdict,
)
from federation.panel.decisions import Decided, day, statement_of
from federation.panel.files import PanelError
from federation.panel.history import Entry
from federation.panel.registered import ABOUT, NEXT
from federation.panel.runs import FILES
from federation.server.gates import GatesError, read_gates

NOT_GIVEN = "NOT GIVEN"
VERDICTS: Mapping[Verdict, str] = {
    "approve": "approved",
    "approve_with_conditions": "approved with conditions",
    "more_information": "more information needed",
    "reject": "rejected",
    "suspend": "suspended",
}
NOT_ASKED = "NOT ASKED: "
SWITCHED_OFF: Mapping[
    str, tuple[str, str]
] = {  # a gate that is on by default -> its value where it is off, what is lost
    "net_benefit_gain": ("null", "that the model is better than flagging everybody or nobody"),
    "registered": ("false", "that the run was registered before it began"),
    "agencies_as_registered": ("false", "that only registered agencies trained"),
    "simulation_allowed": ("true", "that the agencies were real: a simulation passes"),
}
Lines = Iterator[tuple[str, str]]  # what it is about, and what is said of it


def lines_of(signed: Signed, now: datetime | None = None) -> list[tuple[str, str]]:
    """All that is signed, line by line; the SHA-256 last. now: to say how old a registration is."""
    said = statement_of(signed)
    lines = [("panel", said.panel), *_lines(said, now), ("SHA-256 of this text", signed.digest)]
    return [(visible(about), visible(text)) for about, text in lines]


def visible(text: str) -> str:
    """`text` without anything that could move, hide or turn round what a terminal shows beside it."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "�" for letter in text)


def _lines(said: Statement, now: datetime | None) -> Lines:
    match said:
        case Registration():
            yield from _registration(said, now)
        case Decision():
            yield from _decision(said)
        case ConditionMet():
            yield from _met(said)
        case Status():
            yield from _status(said)


def _registration(said: Registration, now: datetime | None) -> Lines:
    yield "statement", "REGISTRATION: what will be trained, and by what it will be judged"
    days = 0 if now is None else (now - said.registered).days
    yield (
        "registered",
        day(said.registered) + (f", {days} {'day' if days == 1 else 'days'} ago" if days >= 1 else ""),
    )
    yield "experiment", said.experiment
    yield "purpose", said.purpose
    yield "outcome", said.outcome
    yield "horizon", said.horizon
    yield "agencies", ", ".join(said.agencies) or "none"
    yield "audited by", ", ".join(said.groups) or "nothing"
    yield "contract", said.contract_sha256
    answers = said.answers.model_dump()
    questions = {"not_for": "What it is not for", **ABOUT, **NEXT}
    for name, answer in answers.items():
        yield questions.get(name, name), answer or NOT_GIVEN
    yield from _evidence(said)
    yield from _gates(said.gates)
    yield from ((f"setting {name}", value) for name, value in flat(said.terms))


def _evidence(said: Registration) -> Lines:
    """What was known before: the privacy audit, and the model that this one may replace, with what would change."""
    audit, old = said.evidence.audit, said.evidence.replaces
    if audit is None:
        yield "privacy audit", NOT_GIVEN
    else:
        sure = "" if audit.confidence is None else f" ({audit.confidence:.1%} confidence)"
        found = f"an attack shows an ε of at least {audit.lower_bound:.2f}{sure}, {audit.claimed_epsilon:g} is claimed"
        yield "privacy audit", f"{found}: {audit.attack}; {'it holds' if audit.ok else 'IT FAILED'}"
        yield from (("audit FAILED at", each) for each in audit.failed)
        yield "what was audited", audit.what
        yield "audit's file", audit.sha256
    if old is None:
        yield "model it may replace", "none was named"
        return
    yield "model it may replace", f"that of run {old.run_id}, weights {old.weights_sha256}"
    yield "its decision", old.decision_sha256 or "NONE: no approval lies beside it"
    for name, each in old.measures.items():
        ends = "" if each.low is None or each.high is None else f" ({each.low:.3f} to {each.high:.3f})"
        yield f"it had {name}", f"{each.value:.3f}{ends}"
    if old.contract_sha256 != said.contract_sha256:
        yield "changed since", f"the contract, which was {old.contract_sha256}"
    if not old.terms:
        yield "changed since", "what was agreed for it is not known: it was not registered"
        return
    before, after = dict(flat(old.terms)), dict(flat(said.terms))
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            yield (
                f"changed since: {name}",
                f"{before.get(name, 'not there')} -> {after.get(name, 'not there')}",
            )


def _gates(values: Mapping[str, Any]) -> Lines:
    """Each gate as it will be judged, those that are on unless somebody switches them off included."""
    try:
        gates = read_gates(values)
    except GatesError as error:
        raise PanelError("\n".join(f"gates.{line}" for line in str(error).splitlines())) from None
    rest = []
    for name, value in flat(gates.model_dump(mode="json")):
        off, what = SWITCHED_OFF.get(name, ("", ""))
        if value == off:
            yield f"gate {name}", f"{NOT_ASKED}{what}"
        elif value == "null" or (value == "false" and not off):
            rest.append(name)
        else:
            yield f"gate {name}", value
    if rest:
        yield "no gate for", ", ".join(rest)


def _decision(said: Decision) -> Lines:
    yield "statement", f"DECISION: {VERDICTS[said.verdict].upper()}"
    yield "decided", day(said.decided)
    yield "expires", "never" if said.expires is None else day(said.expires)
    yield "run", f"{said.subject.run_id}, for {said.subject.purpose}"
    yield "gates", "all passed" if said.gates_passed else "NOT ALL PASSED"
    yield "rationale", said.rationale
    yield "dissent", said.dissent
    yield "owner", said.owner
    yield from ((f"condition {each.id}", each.text) for each in said.conditions)
    if said.approves:
        yield from _limits(said.limits)
    for text in said.rereferral:
        who = "people judge it" if rereferral.read(text) is None else "fedrisk retest measures it"
        yield "back before the panel", f"{text} ({who})"
    yield "registration", said.subject.registration_sha256
    yield from ((name, getattr(said.subject, field)) for field, name in FILES.items())


def _limits(limits: Limits) -> Lines:
    yield "may list at most", "no limit" if limits.capacity is None else f"{limits.capacity} people a run"
    yield (
        "may be used by",
        "every agency" if limits.agencies is None else ", ".join(limits.agencies) or "nobody",
    )
    yield "local recalibration", "allowed" if limits.local_recalibration else "not allowed"


def _met(said: ConditionMet) -> Lines:
    yield "statement", f"CONDITION MET: {said.condition}"
    yield "met", day(said.met)
    yield "evidence", said.evidence
    yield "of decision", said.decision_sha256


def _status(said: Status) -> Lines:
    yield "statement", "STATUS: IN FORCE" if said.state == "in_force" else "STATUS: SUSPENDED"
    yield "issued", day(said.issued)
    yield "until", day(said.expires)
    if said.reason is not None:
        yield "reason", said.reason
    yield "of decision", said.decision_sha256


def in_a_line(entry: Entry, panel: Panel) -> str:
    """What an entry says, shortly, and whose signatures of it are right."""
    signed = entry.entry
    signers = panel.signers(signed.kind, signed.digest, signed.signatures)
    by = f"signed by {', '.join(sorted(signers)) or 'nobody'}"
    match statement_of(signed):
        case Registration() as said:
            text = f"registered {said.experiment} for {said.purpose}, {len(said.agencies)} agencies"
        case Decision() as said:
            until = "" if said.expires is None else f", until {day(said.expires)}"
            text = f"decided on run {said.subject.run_id}: the panel {IN_WORDS[said.verdict]}{until}; owner {said.owner}"
        case ConditionMet() as said:
            text = (
                f"condition {said.condition} of decision {said.decision_sha256[:12]} is met: {said.evidence}"
            )
        case Status() as said:
            state = "is in force" if said.state == "in_force" else f"is SUSPENDED ({said.reason})"
            text = f"decision {said.decision_sha256[:12]} {state}, until {day(said.expires)}"
        case _:
            text = signed.kind
    return visible(f"{signed.kind.replace('_', ' ')} {signed.digest[:12]}: {text}; {by}")


def state_of(decided: Decided, now: datetime) -> tuple[str, datetime | None]:
    """How a decision stands, in words, and until when."""
    decision, status = decided.decision, None if decided.status is None else decided.status.read(Status)
    if decided.suspension is not None:
        return "suspended", None
    if decided.newer:
        return "decided anew since", None
    if not decision.approves or decision.expires is None:
        return "may not be used", decision.expires
    if now >= decision.expires:
        return "expired", decision.expires
    if decided.open:
        return f"waits for {', '.join(each.id for each in decided.open)}", decision.expires
    if status is None:
        return "nobody has said that it is in force", decision.expires
    until = min(status.expires, decision.expires)
    return ("in force" if now < until else "its status has ended"), until


def flat(values: Mapping[str, Any], prefix: str = "") -> Lines:
    """Settings as `privacy.epsilon` and JSON."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield (
                f"{prefix}{name}",
                value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
            )
