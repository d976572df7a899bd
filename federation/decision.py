"""What an ethics panel signed, and how anyone verifies it offline.

Members hold Ed25519 keys (RFC 8032), whoever relies on a panel pins their public keys and the quorum (`Panel`), and a
statement counts when so many of them signed its SHA-256. There are four: a `Registration` before training says
what will be trained and by what it will be judged; a `Decision` binds one report, model, result and registration by
their hashes; `ConditionMet` says that a condition of it holds now; a `Status`, at most a week old, says that a decision is
still in force, so that a suspension cannot be withheld. `Approval` is all that a node needs of them, and
`permitted` what it may then do. Nothing here asks a network, a clock or a file.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import AfterValidator, AwareDatetime, BaseModel, Field, ValidationError, model_validator

from federation.plan import Agreed, Registered, Sha256, Slug, sentences
from federation.scorecard import Measure, ScoreCard

FORMAT = 1
STATUS_DAYS = 7  # that a status holds at most: so long can a suspension be withheld
CLOCKS_DIFFER = timedelta(minutes=5)  # between the panel's machine and the one that verifies

Verdict = Literal["approve", "approve_with_conditions", "more_information", "reject", "suspend"]
APPROVALS: tuple[Verdict, ...] = ("approve", "approve_with_conditions")
IN_WORDS: Mapping[Verdict, str] = {
    "approve": "approved it",
    "approve_with_conditions": "approved it with conditions",
    "more_information": "asked for more information",
    "reject": "rejected it",
    "suspend": "suspended it",
}
Finite = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1, max_length=20_000)]
Answer = Annotated[str, Field(min_length=1, max_length=4000)] | None


class DecisionError(ValueError):
    """A statement that does not count here: what, which rule, what to do."""


def _public_key(text: str) -> str:
    """Written in one way alone, so that no key can be pinned under two names."""
    try:
        content = base64.b64decode(text, validate=True)
        Ed25519PublicKey.from_public_bytes(content)
    except ValueError:
        content = b""
    if not content or base64.b64encode(content).decode() != text:
        raise ValueError("must be an Ed25519 public key, 32 bytes in base64")
    return text


def _of_our_time(at: datetime) -> datetime:
    if not 2000 <= at.year <= 2200:
        raise ValueError("must be a time between the years 2000 and 2200")
    return at


PublicKey = Annotated[str, AfterValidator(_public_key)]
Moment = Annotated[AwareDatetime, AfterValidator(_of_our_time)]


class Panel(Agreed):
    """A panel as it is pinned: at least `quorum` of `members` (name -> public key) decide.

    `status_quorum` of them say each week that a decision is in force. A decision lasts `longest_days` at most.
    """

    name: Annotated[str, Field(min_length=1, max_length=200)]
    quorum: Annotated[int, Field(ge=1)]
    status_quorum: Annotated[int, Field(ge=1)] = 1
    longest_days: Annotated[int, Field(ge=1, le=3650)] = 90
    members: dict[Slug, PublicKey]

    @model_validator(mode="after")
    def can_decide(self) -> Self:
        if max(self.quorum, self.status_quorum) > len(self.members):
            raise ValueError(
                f"quorum and status_quorum must be at most the {len(self.members)} members, got "
                f"{self.quorum} and {self.status_quorum}"
            )
        if len(set(self.members.values())) < len(self.members):
            raise ValueError("two members have the same key: nobody counts twice")
        return self

    @property
    def fingerprint(self) -> str:
        """The first 128 bits of the SHA-256 of all that is pinned, in eight groups to read out on the telephone."""
        return " ".join(self.sha256[at : at + 4] for at in range(0, 32, 4))

    def signers(self, kind: str, sha256: str, signatures: Mapping[str, str]) -> set[str]:
        """The members whose signature on that statement is right. Anybody else's does not count."""
        return {
            name
            for name, signature in signatures.items()
            if name in self.members and _is_signed(self.members[name], signature, kind, sha256)
        }


class Statement(Agreed):
    """Something that a panel says. `panel` is its name: a member of two panels speaks for one."""

    kind: ClassVar[str]

    format: Literal[1] = 1
    panel: str


class Answers(Agreed):
    """What only people can say of a use. What is None is shown as "not given"; nothing is filled in for them."""

    intended_use: Answer = None
    not_for: Answer = None
    who_acts: Answer = None
    outcome_is_a_proxy: Answer = None
    benefit: Answer = None
    current_practice: Answer = None
    date_windows: Answer = None
    legal_basis: Answer = None
    dpia: Answer = None
    equality_impact: Answer = None
    missing_attributes: Answer = None
    drift_owner: Answer = None
    contest: Answer = None
    stop_plan: Answer = None
    retest: Answer = None


class Audited(BaseModel):
    """What an audit of the privacy claim found, of which `sha256` is the file: an attack showed an ε of `lower_bound` at least.

    `mechanisms`: whose noise was attacked. `failed`: what exceeded its claim. `what`: every setting that was tried, on whom.
    """

    model_config = Agreed.model_config  # no `Agreed`: that has a `sha256` of its own

    sha256: Sha256
    claimed_epsilon: Finite
    lower_bound: Finite
    confidence: Finite | None
    attack: Text
    what: Text
    mechanisms: tuple[str, ...]
    failed: tuple[str, ...] = ()
    ok: bool


class Replaced(Agreed):
    """The model that stands until now: `terms` as they were registered ({} where they were not), and what its own test had.

    `decision_sha256` None: no approval lies beside it. `measures`: those of everybody that may be published.
    """

    run_id: Slug
    decision_sha256: Sha256 | None
    weights_sha256: Sha256
    contract_sha256: Sha256
    terms: dict[str, Any]
    measures: dict[str, Measure]


class Evidence(Agreed):
    """What was known before the run: an audit of its privacy claim, and the model that it may replace."""

    audit: Audited | None = None
    replaces: Replaced | None = None


class Registration(Statement):
    """Before training: what will be trained, on whom, for what, and by what it will be judged.

    `terms` are the settings that decide the result (`Settings.terms`), `gates` what a model must pass
    (`federation.server.gates`), `groups` the attributes by which it will be audited. The text of one without `evidence`
    does not mention it.
    """

    kind: ClassVar[str] = "registration"

    registered: Moment
    experiment: Slug
    purpose: Slug
    outcome: Text
    horizon: str
    contract_sha256: Sha256
    terms: dict[str, Any]
    agencies: tuple[Slug, ...]
    groups: tuple[str, ...]
    gates: dict[str, Any]
    answers: Answers = Answers()
    evidence: Evidence = Field(default=Evidence(), exclude_if=lambda evidence: evidence == Evidence())


class Subject(Agreed):
    """What a decision is about, byte for byte: the SHA-256 of the files of one run, and of what its gates said."""

    run_id: Slug
    purpose: Slug
    registration_sha256: Sha256
    result_sha256: Sha256
    report_sha256: Sha256
    card_sha256: Sha256
    weights_sha256: Sha256
    gates_sha256: Sha256


class Condition(Agreed):
    """What must hold before the model is used: the panel signs that it does (`ConditionMet`)."""

    id: Slug
    text: Text


class Limits(Agreed):
    """What a node enforces by itself. None: no limit. `local_recalibration`: scores corrected on a node's own records.

    `capacity`: the most people that one run of `score` may list. `agencies`: who may use the model.
    """

    capacity: Annotated[int, Field(ge=1)] | None = None
    agencies: tuple[Slug, ...] | None = None
    local_recalibration: bool = False


class Decision(Statement):
    """What the panel decided on one model, why, who dissented, until when, and who answers for it.

    `rereferral` names what brings the model back before the panel. Approvals expire; the others do not have to.
    """

    kind: ClassVar[str] = "decision"

    verdict: Verdict
    decided: Moment
    expires: Moment | None = None
    subject: Subject
    gates_passed: bool
    rationale: Text
    dissent: Text
    owner: Text
    conditions: tuple[Condition, ...] = ()
    limits: Limits = Limits()
    rereferral: tuple[Text, ...] = ()

    @property
    def approves(self) -> bool:
        """Whether the model may be used, if everything else holds too."""
        return self.verdict in APPROVALS

    @model_validator(mode="after")
    def says_what_it_needs(self) -> Self:
        if self.approves and not self.gates_passed:
            raise ValueError(
                "a model that failed a gate cannot be approved: change the model, or register other gates"
            )
        if self.approves and (self.expires is None or self.expires <= self.decided):
            raise ValueError("an approval must expire: give expires, later than decided")
        if self.approves and not self.rereferral:
            raise ValueError("an approval must say what brings the model back: give rereferral")
        if (self.verdict == "approve_with_conditions") != bool(self.conditions):
            raise ValueError("conditions belong to approve_with_conditions, and it needs one at least")
        if len({condition.id for condition in self.conditions}) < len(self.conditions):
            raise ValueError("two conditions have the same id")
        return self


class ConditionMet(Statement):
    """A condition of a decision holds, and what shows it."""

    kind: ClassVar[str] = "condition_met"

    decision_sha256: Sha256
    condition: Slug
    met: Moment
    evidence: Text


class Status(Statement):
    """Whether a decision is in force. It says so for `STATUS_DAYS` at most, then a newer one is needed."""

    kind: ClassVar[str] = "status"

    decision_sha256: Sha256
    state: Literal["in_force", "suspended"]
    issued: Moment
    expires: Moment
    reason: Text | None = None

    @model_validator(mode="after")
    def is_short(self) -> Self:
        if not timedelta(0) < self.expires - self.issued <= timedelta(days=STATUS_DAYS):
            raise ValueError(f"expires must be after issued, by {STATUS_DAYS} days at most")
        if self.state == "suspended" and self.reason is None:
            raise ValueError("a suspension must give its reason")
        return self


Said = TypeVar("Said", bound=Statement)
STATEMENTS: Mapping[str, type[Statement]] = {
    each.kind: each for each in (Registration, Decision, ConditionMet, Status)
}


class Signed(Agreed):
    """A statement with its signatures. `statement` is the text that was signed, so nobody has to write it again."""

    kind: Literal["registration", "decision", "condition_met", "status"]
    statement: str
    signatures: dict[Slug, str] = Field(default_factory=dict)

    @classmethod
    def of(cls, statement: Statement, keys: Mapping[str, Ed25519PrivateKey] | None = None) -> Self:
        """`statement`, signed by those who hold `keys` (member -> key)."""
        found = cls.model_validate({"kind": statement.kind, "statement": statement.canonical})
        for name, key in (keys or {}).items():
            found = found.sign(name, key)
        return found

    @property
    def digest(self) -> str:
        """SHA-256 of the statement's text, hex: what is signed, and by what other statements name it."""
        return hashlib.sha256(self.statement.encode()).hexdigest()

    def sign(self, name: str, key: Ed25519PrivateKey) -> Self:
        """The same with the signature of member `name`."""
        signature = base64.b64encode(key.sign(_message(self.kind, self.digest))).decode()
        return self.but(signatures=dict(sorted({**self.signatures, name: signature}.items())))

    def read(self, cls: type[Said]) -> Said:
        """What it says, whoever signed it; `DecisionError` where it is not a `cls`."""
        if self.kind != cls.kind:
            raise DecisionError(f"a {cls.kind.replace('_', ' ')} is needed here, this is a {self.kind}")
        try:
            found = cls.model_validate_json(self.statement)
        except ValidationError as error:
            raise DecisionError(f"the {_word(self.kind)} is not one: {sentences(error)[0]}") from None
        if found.canonical != self.statement:
            raise DecisionError(
                f"the {_word(self.kind)} is not in its canonical form: get it from the panel again"
            )
        return found

    def verify(self, cls: type[Said], panel: Panel, quorum: int | None = None) -> Said:
        """What the panel says; `DecisionError` where too few of its members signed exactly this."""
        found = self.read(cls)
        if found.panel != panel.name:
            raise DecisionError(
                f"the {_word(self.kind)} is of the panel {found.panel!r}, and {panel.name!r} is pinned here"
            )
        needed = panel.quorum if quorum is None else quorum
        signers = panel.signers(self.kind, self.digest, self.signatures)
        if len(signers) < needed:
            who = ", ".join(sorted(signers)) or "nobody"
            raise DecisionError(
                f"the {_word(self.kind)} needs the signatures of {needed} members of the panel, and {who} of those pinned "
                "signed exactly this: it was changed, or not everybody has signed, or the pinned keys are not the panel's"
            )
        return found

    @property
    def registered(self) -> Registered:
        """What rides in a plan of a signed registration."""
        return Registered(statement=self.statement, signatures=dict(self.signatures))


class Approval(Agreed):
    """`approval.json`, beside a model: all that a node needs to know that its panel allows it."""

    format: Literal[1] = 1
    registration: Signed
    decision: Signed
    met: tuple[Signed, ...] = ()
    status: Signed


class Heard(Agreed):
    """The newest word of the panel on a decision that a machine has heard, and whether it ever heard a suspension."""

    issued: Moment
    suspended: bool = False


class Permission(Agreed):
    """That a panel allows a model for now, and within which limits. `until`: the earliest of what expires."""

    decision_sha256: str
    verdict: Verdict
    owner: str
    until: Moment
    status_issued: Moment
    limits: Limits
    conditions: tuple[Condition, ...]


def read_approval(text: str) -> Approval:
    """The approval in `text` (JSON); `DecisionError` says what does not fit."""
    try:
        return Approval.model_validate_json(text)
    except ValidationError as error:
        raise DecisionError(f"approval.json: {sentences(error)[0]}: get it from the panel again") from None


def read_registered(registered: Registered, panel: Panel | None = None) -> Registration:
    """The registration in a plan; `DecisionError` where it is none, or a quorum of `panel` did not sign it."""
    signed = Signed(kind="registration", statement=registered.statement, signatures=registered.signatures)
    return signed.read(Registration) if panel is None else signed.verify(Registration, panel)


def permitted(
    approval: Approval,
    panel: Panel,
    card: ScoreCard,
    card_sha256: str,
    *,
    now: datetime,
    heard: Heard | None = None,
) -> Permission:
    """What `panel` allows with the model of `card`; `DecisionError` says why it is nothing.

    card_sha256: of the bytes of card.json. heard: what this machine has heard of the decision before. An older status
    is not believed, and a suspension is for good: no later status lifts it, so one member cannot undo it.
    """
    registration = approval.registration.verify(Registration, panel)
    decision = approval.decision.verify(Decision, panel)
    _covers(decision, approval.registration.digest, registration, card, card_sha256)
    until = in_force(decision, panel, now=now)
    _conditions_hold(decision, approval, panel)
    status = _status(approval, panel, now=now, heard=heard)
    return Permission(
        decision_sha256=approval.decision.digest,
        verdict=decision.verdict,
        owner=decision.owner,
        until=min(until, status.expires),
        status_issued=status.issued,
        limits=decision.limits,
        conditions=decision.conditions,
    )


def in_force(decision: Decision, panel: Panel, *, now: datetime) -> datetime:
    """When the approval ends; `DecisionError` where it is none, has ended, or was given for too long."""
    ends = decision.expires
    if not decision.approves or ends is None:
        raise DecisionError(
            f"the panel {panel.name!r} {IN_WORDS[decision.verdict]} on {decision.decided:%d %B %Y}: "
            f"the model may not be used. Its reason: {decision.rationale}"
        )
    if ends > decision.decided + timedelta(days=panel.longest_days):
        raise DecisionError(
            f"the approval is for longer than the {panel.longest_days} days that a decision of {panel.name!r} may last"
        )
    if decision.decided > now + CLOCKS_DIFFER:
        raise DecisionError(
            f"the decision is dated {decision.decided:%d %B %Y %H:%M} UTC, which is later than now: "
            "check the clock of this machine"
        )
    if now >= ends:
        raise DecisionError(
            f"the approval expired on {ends:%d %B %Y}: the panel must decide again before the model is used"
        )
    return ends


def _covers(
    decision: Decision,
    registration_sha256: str,
    registration: Registration,
    card: ScoreCard,
    card_sha256: str,
) -> None:
    """`DecisionError` unless the decision is about this model, and about this registration of it."""
    subject = decision.subject
    if (subject.card_sha256, subject.weights_sha256) != (card_sha256, card.weights_sha256):
        raise DecisionError(
            f"the decision is about another model (weights {subject.weights_sha256[:12]}, card {subject.card_sha256[:12]}) "
            f"than this one (weights {card.weights_sha256[:12]}, card {card_sha256[:12]}): get the model and its "
            "approval together, and change nothing in them"
        )
    if subject.registration_sha256 != registration_sha256:
        raise DecisionError(
            "the decision is about a run of another registration: get both from the panel again"
        )
    told = (card.run_id, card.purpose, card.purpose, card.contract_sha256)
    if told != (subject.run_id, subject.purpose, registration.purpose, registration.contract_sha256):
        raise DecisionError(
            "the model's run, purpose or contract is not the one that was registered and decided on: it may not be used"
        )


def _conditions_hold(decision: Decision, approval: Approval, panel: Panel) -> None:
    met = {
        said.condition
        for said in (signed.verify(ConditionMet, panel) for signed in approval.met)
        if said.decision_sha256 == approval.decision.digest
    }
    open_ = [condition for condition in decision.conditions if condition.id not in met]
    if open_:
        listed = "; ".join(f"{condition.id}: {condition.text}" for condition in open_)
        raise DecisionError(
            f"the panel has not signed that these conditions are met: {listed}. Show the panel that they are"
        )


def _status(approval: Approval, panel: Panel, *, now: datetime, heard: Heard | None) -> Status:
    status = approval.status.verify(Status, panel, quorum=panel.status_quorum)
    if status.decision_sha256 != approval.decision.digest:
        raise DecisionError(
            "the status is about another decision: get the newest approval.json from the panel"
        )
    if heard is not None and heard.suspended and status.state != "suspended":
        raise DecisionError(
            "this machine has heard that the panel suspended this decision, and no later word lifts a suspension: "
            "the panel must decide again before the model is used"
        )
    if heard is not None and status.issued < heard.issued:
        raise DecisionError(
            f"the status is of {status.issued:%d %B %Y %H:%M} UTC, and this machine has seen a newer one "
            f"({heard.issued:%d %B %Y %H:%M}): get the newest approval.json from the panel"
        )
    if status.issued > now + CLOCKS_DIFFER:
        raise DecisionError(
            f"the status is dated {status.issued:%d %B %Y %H:%M} UTC, which is later than now: check the clock of this machine"
        )
    if status.state == "suspended":
        raise DecisionError(
            f"the panel suspended the model on {status.issued:%d %B %Y}: it may not be used. Its reason: {status.reason}"
        )
    if now >= status.expires:
        raise DecisionError(
            f"the newest word of the panel that its approval stands is of {status.issued:%d %B %Y} and held until "
            f"{status.expires:%d %B %Y %H:%M} UTC: get the newest approval.json, so that a suspension cannot be missed"
        )
    return status


def _message(kind: str, sha256: str) -> bytes:
    """What is signed: no other software's message looks like it, and no statement like one of another kind."""
    return f"fedrisk panel {kind} {FORMAT}\n{sha256}\n".encode()


def _is_signed(public: str, signature: str, kind: str, sha256: str) -> bool:
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public))
    try:
        key.verify(base64.b64decode(signature, validate=True), _message(kind, sha256))
    except (InvalidSignature, ValueError):
        return False
    return True


def _word(kind: str) -> str:
    return kind.replace("_", " ")


def read_signed(text: str) -> Signed:
    """A signed statement in `text` (JSON); `DecisionError` says what does not fit."""
    try:
        return Signed.model_validate(json.loads(text))
    except ValidationError as error:
        raise DecisionError(f"this is not a signed statement of a panel: {sentences(error)[0]}") from None
    except ValueError:
        raise DecisionError("this is not a signed statement of a panel: it is not JSON") from None
