"""A panel for tests: keys, and statements that are right unless a test changes them."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.decision import (
    Approval,
    ConditionMet,
    Decision,
    Panel,
    Registration,
    Signed,
    Statement,
    Status,
    Subject,
)
from federation.scorecard import ScoreCard
from models.spec import ModelSpec

NOW = datetime(2031, 3, 4, 12, 0, tzinfo=UTC)
CARD_SHA256, WEIGHTS_SHA256, CONTRACT_SHA256 = "c" * 64, "a" * 64, "b" * 64


def public_text(key: Ed25519PrivateKey) -> str:
    """A public key as a panel file has it."""
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


@dataclass(frozen=True)
class Signatories:
    """The panel as others pin it, and its members' private keys."""

    panel: Panel
    keys: Mapping[str, Ed25519PrivateKey]

    @classmethod
    def of(cls, *names: str, quorum: int, **values: Any) -> Self:
        keys = {name: Ed25519PrivateKey.generate() for name in names}
        members = {name: public_text(key) for name, key in keys.items()}
        return cls(Panel(name="Test panel", quorum=quorum, members=members, **values), keys)

    def signature(self, name: str, message: str) -> str:
        return base64.b64encode(self.keys[name].sign(message.encode())).decode()

    def signed(self, statement: Statement, signers: Sequence[str] | None = None) -> Signed:
        """Signed by `signers`, as many as are needed where None."""
        names = list(self.keys)[: self.panel.quorum] if signers is None else signers
        return Signed.of(statement, {name: self.keys[name] for name in names})

    def registration(self, **values: Any) -> Registration:
        given = {
            "panel": self.panel.name,
            "registered": NOW - timedelta(days=30),
            "experiment": "demo",
            "purpose": "early-warning",
            "outcome": "became a victim",
            "horizon": "12 months",
            "contract_sha256": CONTRACT_SHA256,
            "terms": {"rounds": 5},
            "agencies": ("police", "health"),
            "groups": ("sex",),
            "gates": {},
        }
        return Registration(**(given | values))

    def subject(self, registration: Signed, **values: Any) -> Subject:
        given = {
            "run_id": "demo-1",
            "purpose": "early-warning",
            "registration_sha256": registration.digest,
            "result_sha256": "1" * 64,
            "report_sha256": "2" * 64,
            "card_sha256": CARD_SHA256,
            "weights_sha256": WEIGHTS_SHA256,
            "gates_sha256": "3" * 64,
        }
        return Subject(**(given | values))

    def decision(self, subject: Subject | None = None, **values: Any) -> Decision:
        verdict = values.get("verdict", "approve")
        given = {
            "panel": self.panel.name,
            "verdict": verdict,
            "decided": NOW - timedelta(days=1),
            "expires": NOW + timedelta(days=60),
            "subject": subject or self.subject(self.signed(self.registration())),
            "gates_passed": True,
            "rationale": "it finds people early",
            "dissent": "none",
            "owner": "head of safeguarding",
            "rereferral": ("AUC below 0.70",),
        }
        return Decision(**(given | values))

    def status(self, decision_sha256: str, **values: Any) -> Status:
        given = {
            "panel": self.panel.name,
            "decision_sha256": decision_sha256,
            "state": "in_force",
            "issued": NOW - timedelta(days=1),
            "expires": NOW + timedelta(days=6),
        }
        return Status(**(given | values))

    def approval(
        self,
        *,
        signers: Sequence[str] | None = None,
        subject: Mapping[str, Any] | None = None,
        registration: Mapping[str, Any] | None = None,
        met: Sequence[str] = (),
        state: str = "in_force",
        reason: str | None = None,
        status: Mapping[str, Any] | None = None,
        **decision: Any,
    ) -> Approval:
        """`decision`, `subject` and `registration` are changes to what is right."""
        registered = self.signed(self.registration(**(registration or {})))
        decided = self.signed(self.decision(self.subject(registered, **(subject or {})), **decision), signers)
        told = self.status(decided.digest, **({"state": state, "reason": reason} | dict(status or {})))
        return Approval(
            registration=registered,
            decision=decided,
            met=tuple(self.signed(self.met(decided.digest, condition)) for condition in met),
            status=self.signed(told),
        )

    def met(self, decision_sha256: str, condition: str) -> ConditionMet:
        return ConditionMet(
            panel=self.panel.name,
            decision_sha256=decision_sha256,
            condition=condition,
            met=NOW,
            evidence="minutes",
        )


def card(**values: Any) -> ScoreCard:
    """A card that the statements above are about."""
    given: dict[str, Any] = {
        "run_id": "demo-1",
        "created": "2031-02-02T00:00:00+00:00",
        "fedrisk_version": "0.4.0",
        "experiment": "demo",
        "purpose": "early-warning",
        "simulation": True,
        "plan_sha256": "d" * 64,
        "contract_sha256": CONTRACT_SHA256,
        "contract_name": "people",
        "weights_sha256": WEIGHTS_SHA256,
        "model": ModelSpec("logistic", ()),
        "horizon": "12 months",
        "outcome": "became a victim",
        "kinds": ("police",),
        "agencies": 2,
        "tune_fraction": 0.2,
        "test_fraction": 0.2,
        "bands": (),
        "recalibration": None,
        "performance": {},
    }
    return ScoreCard(**(given | values))
