"""What a panel registered before the run, as the report shows it: the answers of people, and the gates held against the result.

An answer that nobody gave is None here and red on the page: nothing is filled in. Signatures are not verified here (a
page cannot prove itself): `fedrisk-panel verify` and each agency's node do that against the keys that they pinned.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from federation.decision import DecisionError, Registration, Signed
from federation.server.gates import Gates, GatesError, judge, read_gates

ABOUT = {
    "intended_use": "What it is for",
    "who_acts": "Who acts on a score",
    "outcome_is_a_proxy": "What the outcome stands for",
    "benefit": "What is better with it",
    "current_practice": "How it is done today",
    "date_windows": "Dates that the records cover",
    "legal_basis": "Legal basis",
    "dpia": "Data protection impact assessment",
    "equality_impact": "Equality impact assessment",
    "missing_attributes": "Protected characteristics that nobody recorded",
}
GATES = {  # as `federation.server.gates` names them; another name is shown as it is
    "auc": "Ranking",
    "accuracy": "Right either way",
    "net_benefit_gain": "Worth over simple rules",
    "observed_expected": "Observed over expected",
    "ece": "Calibration error",
    "brier": "Distance from the truth",
    "worst_group.tpr": "Found, in the worst group",
    "worst_group.ppv": "Right if flagged, in the worst group",
    "worst_group.fpr": "Wrongly flagged, in the worst group",
    "worst_group.fnr": "Missed, in the worst group",
    "gaps.demographic_parity": "Gap in who is flagged",
    "gaps.equal_opportunity": "Gap in who is found",
    "gaps.equalized_odds": "Gap in who is found or wrongly flagged",
    "gaps.predictive_parity": "Gap in how often a flag is right",
    "agency_gaps.demographic_parity": "Gap in who is flagged, within an agency",
    "agency_gaps.equal_opportunity": "Gap in who is found, within an agency",
    "agency_gaps.equalized_odds": "Gap in who is found or wrongly flagged, within an agency",
    "agency_gaps.predictive_parity": "Gap in how often a flag is right, within an agency",
    "intersections": "People in several groups at once",
    "epsilon.public": "Privacy cost, to whoever sees the results",
    "epsilon.coordinator": "Privacy cost, to the coordinator",
    "epsilon.everybody": "Privacy cost, to all others together",
    "audit": "Audit",
    "min_people": "People in each group",
    "every_group_published": "Every group shown",
    "min_agencies": "Agencies that trained",
    "registered": "Registered before the run",
    "agencies_as_registered": "Agencies as registered",
    "simulation": "Real agencies",
    "anything": "Anything",
}
NEXT = {
    "retest": "When it is measured again",
    "drift_owner": "Who watches whether it still works",
    "contest": "How a person contests a score",
    "stop_plan": "Who can stop it, and how",
}


def registered(result: Mapping[str, Any]) -> dict[str, Any]:
    """Whose registration it is, since when, and what was answered. `signed` False: the run was not registered."""
    registration = registration_of(result)
    if registration is None:
        return {"signed": False, "not_for": None, "about": _answers(ABOUT, {}), "next": _answers(NEXT, {})}
    answers = registration.answers.model_dump()
    at = registration.registered.astimezone(UTC)
    return {
        "signed": True,
        "panel": registration.panel,
        "by": sorted(result["registration"]["signed"]["signatures"]),
        "at": f"{at.day} {at:%B %Y, %H:%M} UTC",
        "before": _before(at, result.get("created")),
        "sha256": result["registration"]["sha256"],
        "outcome": registration.outcome,
        "not_for": answers["not_for"],
        "about": _answers(ABOUT, answers),
        "next": _answers(NEXT, answers),
    }


def gates(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Each registered gate with what was found; None where none was registered."""
    asked = asked_of(result)
    if asked is None:
        return None
    report = judge(asked, result)
    rows = [
        (GATES.get(gate.name, gate.name), gate.asked, gate.found, gate.passed, gate.sentence)
        for gate in report.gates
    ]
    return {"rows": rows, "passed": report.passed, "failed": sum(not gate.passed for gate in report.gates)}


def asked_of(result: Mapping[str, Any]) -> Gates | None:
    """What the registration asks of the model; None where there is none, or none that can be read."""
    registration = registration_of(result)
    if registration is None:
        return None
    try:
        return read_gates(registration.gates)
    except GatesError:
        return None


def evidence_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """What was attached to the registration: an audit, the model that this one replaces; {} where nothing was."""
    evidence = getattr(registration_of(result), "evidence", None) or {}
    return dict(evidence) if isinstance(evidence, Mapping) else dict(evidence.model_dump(mode="json"))


def registration_of(result: Mapping[str, Any]) -> Registration | None:
    """What the run's result says was registered, if it is readable."""
    try:
        return Signed.model_validate(result["registration"]["signed"]).read(Registration)
    except (DecisionError, KeyError, TypeError, ValueError):
        return None


def _answers(asked: Mapping[str, str], answers: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    return [(words, answers.get(key)) for key, words in asked.items()]


def _before(at: datetime, created: object) -> bool:
    """Whether the registration is older than the result; a result without a readable date is not."""
    try:
        return at < datetime.fromisoformat(str(created)).astimezone(UTC)
    except ValueError:
        return False
