"""What a panel signed binds exactly that, and nothing else: every change and every lack is refused with its reason."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from panels import CARD_SHA256, NOW, Signatories, card

from federation.decision import (
    Condition,
    ConditionMet,
    Decision,
    DecisionError,
    Heard,
    Panel,
    Registration,
    Signed,
    Status,
    permitted,
    read_approval,
    read_registered,
    read_signed,
)

PANEL = Signatories.of("alice", "bob", "chris", quorum=2)


def allowed(approval: Any, **changes: Any) -> Any:
    values: dict[str, Any] = {"now": NOW} | changes
    return permitted(approval, values.pop("panel", PANEL.panel), card(), CARD_SHA256, **values)


def refused(approval: Any, because: str, **changes: Any) -> None:
    with pytest.raises(DecisionError, match=because):
        allowed(approval, **changes)


def test_an_approval_permits_what_it_says():
    permission = allowed(PANEL.approval(limits={"capacity": 20, "agencies": ("police",)}))
    assert permission.limits.capacity == 20
    assert permission.until == NOW + timedelta(days=6)  # the status ends before the decision


@pytest.mark.parametrize("verdict", ["reject", "more_information", "suspend"])
def test_any_other_verdict_stops(verdict: str):
    refused(PANEL.approval(verdict=verdict), "the model may not be used")


def test_an_approval_ends():
    decided = NOW - timedelta(days=60)
    refused(PANEL.approval(decided=decided, expires=NOW - timedelta(seconds=1)), "expired on")
    assert allowed(PANEL.approval(decided=decided, expires=NOW + timedelta(seconds=1)))


def test_no_approval_is_for_longer_than_the_panel_pinned_here_may_decide():
    refused(PANEL.approval(expires=NOW + timedelta(days=100)), "longer than the 90 days")


def test_a_clock_that_is_behind_is_noticed():
    refused(PANEL.approval(), "later than now: check the clock", now=NOW - timedelta(days=2))


def test_a_status_is_a_week_old_at_most_and_a_suspension_is_heard():
    refused(PANEL.approval(), "held until", now=NOW + timedelta(days=6, seconds=1))
    refused(PANEL.approval(state="suspended", reason="drift at the council"), "drift at the council")
    with pytest.raises(ValueError, match="by 7 days at most"):
        PANEL.status("0" * 64, expires=NOW + timedelta(days=8))


def test_an_older_status_is_not_believed_after_a_newer_one():
    refused(PANEL.approval(), "has seen a newer one", heard=Heard(issued=NOW))
    refused(
        PANEL.approval(),
        "no later word lifts a suspension",
        heard=Heard(issued=NOW - timedelta(days=9), suspended=True),
    )


@pytest.mark.parametrize("part", ["registration", "decision", "status"])
def test_one_changed_letter_anywhere_stops(part: str):
    approval = PANEL.approval()
    signed: Signed = getattr(approval, part)
    for at in range(0, len(signed.statement), 7):
        letter = "1" if signed.statement[at] != "1" else "2"
        changed = signed.but(statement=signed.statement[:at] + letter + signed.statement[at + 1 :])
        with pytest.raises(DecisionError):
            allowed(approval.but(**{part: changed}))


def test_too_few_signatures_stop():
    refused(PANEL.approval(signers=("alice",)), "needs the signatures of 2 members of the panel, and alice")
    refused(PANEL.approval(signers=()), "nobody of those pinned")


def test_the_same_member_counts_once():
    approval = PANEL.approval(signers=("alice",))
    twice = approval.decision.signatures | {"bob": approval.decision.signatures["alice"]}
    refused(approval.but(decision=approval.decision.but(signatures=twice)), "needs the signatures of 2")
    public = PANEL.panel.members["alice"]
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    respelt = (
        public[:42] + letters[letters.index(public[42]) ^ 1] + "="
    )  # other unused bits, the same 32 bytes
    with pytest.raises(ValueError, match="32 bytes in base64"):
        Panel(name="x", quorum=2, members={"alice": public, "twin": respelt})
    with pytest.raises(ValueError, match="nobody counts twice"):
        Panel(name="x", quorum=2, members={"alice": public, "alicia": public})


def test_another_panels_members_do_not_count():
    other = Signatories.of("alice", "bob", quorum=2)
    refused(other.approval(), "nobody of those pinned")
    refused(PANEL.approval(), "is pinned here", panel=PANEL.panel.but(name="another"))


def test_a_signature_on_one_kind_is_none_on_another():
    """A registration's signatures on a decision's hash: the kind is in what is signed."""
    approval = PANEL.approval()
    digest = approval.decision.digest
    forged = {
        name: PANEL.signature(name, f"fedrisk panel registration 1\n{digest}\n") for name in ("alice", "bob")
    }
    refused(approval.but(decision=approval.decision.but(signatures=forged)), "nobody of those pinned")


@pytest.mark.parametrize(
    "what", ["card_sha256", "weights_sha256", "registration_sha256", "run_id", "purpose"]
)
def test_a_decision_is_about_one_model_and_one_registration(what: str):
    other = "another" if what in ("run_id", "purpose") else "f" * 64
    refused(PANEL.approval(subject={what: other}), "another|is not the one that was registered")


def test_conditions_hold_only_when_the_panel_signed_that_they_do():
    conditions = (
        {"id": "training", "text": "every case worker is trained"},
        {"id": "dpia", "text": "DPIA signed"},
    )
    given = {"verdict": "approve_with_conditions", "conditions": conditions}
    refused(PANEL.approval(**given), "training: every case worker is trained; dpia: DPIA signed")
    refused(PANEL.approval(**given, met=("training",)), "are met: dpia: DPIA signed")
    assert allowed(PANEL.approval(**given, met=("training", "dpia"))).conditions[0].id == "training"


def test_a_condition_met_for_another_decision_is_not_met_for_this():
    given = {"verdict": "approve_with_conditions", "conditions": ({"id": "dpia", "text": "DPIA signed"},)}
    approval = PANEL.approval(**given)
    met = PANEL.signed(
        ConditionMet(
            panel=PANEL.panel.name, decision_sha256="0" * 64, condition="dpia", met=NOW, evidence="seen"
        )
    )
    refused(approval.but(met=(met,)), "dpia")


def test_what_no_panel_may_decide_cannot_be_written():
    for changes, because in [
        ({"gates_passed": False}, "failed a gate cannot be approved"),
        ({"expires": None}, "an approval must expire"),
        ({"rereferral": ()}, "what brings the model back"),
        ({"verdict": "approve_with_conditions"}, "it needs one at least"),
        ({"conditions": (Condition(id="a", text="b"),)}, "belong to approve_with_conditions"),
        ({"rationale": ""}, "rationale"),
    ]:
        with pytest.raises(ValueError, match=because):
            PANEL.decision(**changes)


def test_a_plan_shows_that_a_registration_was_signed():
    signed = PANEL.signed(PANEL.registration())
    assert read_registered(signed.registered, PANEL.panel) == PANEL.registration()
    assert signed.registered.digest == signed.digest
    changed = signed.statement.replace("12 months", "24 months")
    assert read_registered(signed.registered.but(statement=changed)).horizon == "24 months"
    with pytest.raises(DecisionError, match="nobody of those pinned"):
        read_registered(signed.registered.but(statement=changed), PANEL.panel)
    with pytest.raises(DecisionError, match="and bob of those pinned"):
        read_registered(PANEL.signed(PANEL.registration(), ("bob",)).registered, PANEL.panel)


def test_files_come_back_as_they_were_and_rubbish_is_a_sentence():
    approval = PANEL.approval()
    assert read_approval(approval.canonical) == approval
    assert read_signed(approval.decision.canonical).verify(Decision, PANEL.panel)
    for text in ("", "[]", "{}", '{"kind": "decision"}'):
        with pytest.raises(DecisionError, match="get it from the panel again"):
            read_approval(text)
        with pytest.raises(DecisionError, match="not a signed statement"):
            read_signed(text)
    with pytest.raises(DecisionError, match="a status is needed here, this is a decision"):
        approval.decision.read(Status)


def test_a_key_file_of_somebody_else_signs_nothing_that_counts():
    signed = Signed.of(
        PANEL.registration(), {"alice": Ed25519PrivateKey.generate(), "bob": PANEL.keys["bob"]}
    )
    with pytest.raises(DecisionError, match="and bob of those pinned"):
        signed.verify(Registration, PANEL.panel)


@pytest.mark.parametrize("year", [1, 1999, 2201, 9999])
def test_a_time_that_is_not_ours_is_no_time(year: int) -> None:
    with pytest.raises(ValueError, match="between the years 2000 and 2200"):
        PANEL.status(
            "0" * 64, issued=datetime(year, 6, 1, tzinfo=UTC), expires=datetime(year, 6, 2, tzinfo=UTC)
        )


def test_times_without_a_zone_are_no_times():
    with pytest.raises(ValueError, match="timezone"):
        PANEL.decision(decided=datetime(2030, 1, 1))
    assert NOW.tzinfo is UTC
