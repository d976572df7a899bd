"""Decisions in a panel's history: what was said about each since, and what may follow what.

Nothing here signs, and nothing asks a network or a clock.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, final

from pydantic import ValidationError

from federation.decision import (
    STATEMENTS,
    STATUS_DAYS,
    Condition,
    ConditionMet,
    Decision,
    Panel,
    Registration,
    Signed,
    Statement,
    Status,
    in_force,
)
from federation.panel.files import PanelError
from federation.panel.history import Entry
from federation.plan import sentences

DRAFT_DAYS = 7  # within which a quorum signs a registration after it was dated
SHORTEST = 8  # digits by which people may name a statement
Said = TypeVar("Said", bound=Statement)


def made(cls: type[Said], values: Mapping[str, Any]) -> Said:
    """The statement that `values` are; `PanelError` has every problem."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise PanelError("\n".join(sentences(error))) from None


def statement_of(signed: Signed) -> Statement:
    """What it says, whoever signed it."""
    return signed.read(STATEMENTS[signed.kind])


def quorum_of(panel: Panel, signed: Signed) -> int:
    """How many members must sign it."""
    return panel.status_quorum if signed.kind == Status.kind else panel.quorum


# --- decisions in a history -------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Decided:
    """A decision, and what was said about it since. `newer`: whether the same run was decided on again later."""

    signed: Signed
    decision: Decision
    met: tuple[Signed, ...]
    statuses: tuple[Signed, ...]
    newer: bool

    @property
    def sha256(self) -> str:
        return self.signed.digest

    @property
    def suspension(self) -> Signed | None:
        """The first suspension: nothing that was said after it brings the decision back."""
        return next((each for each in self.statuses if each.read(Status).state == "suspended"), None)

    @property
    def status(self) -> Signed | None:
        """The word on it that counts."""
        return self.suspension or (self.statuses[-1] if self.statuses else None)

    @property
    def open(self) -> tuple[Condition, ...]:
        """The conditions that are not met."""
        met = {each.read(ConditionMet).condition for each in self.met}
        return tuple(condition for condition in self.decision.conditions if condition.id not in met)


def all_decided(entries: Sequence[Entry]) -> list[Decided]:
    """Every decision, oldest first."""
    signed = [entry.entry for entry in entries]
    decisions = [(each, each.read(Decision)) for each in signed if each.kind == Decision.kind]
    newest = {decision.subject.run_id: each.digest for each, decision in decisions}

    def about(kind: type[ConditionMet] | type[Status], digest: str) -> tuple[Signed, ...]:
        found = (each for each in signed if each.kind == kind.kind)
        return tuple(each for each in found if each.read(kind).decision_sha256 == digest)

    return [
        Decided(
            signed=each,
            decision=decision,
            met=about(ConditionMet, each.digest),
            statuses=about(Status, each.digest),
            newer=newest[decision.subject.run_id] != each.digest,
        )
        for each, decision in decisions
    ]


def find_decision(entries: Sequence[Entry], begins: str) -> Decided:
    """The decision whose SHA-256 begins so."""
    every = all_decided(entries)
    found = [each for each in every if len(begins) >= SHORTEST and each.sha256.startswith(begins.lower())]
    if len(found) != 1:
        known = ", ".join(each.sha256[:12] for each in every) or "none yet"
        raise PanelError(
            f"{begins!r} names {len(found)} decisions: give the first {SHORTEST} digits or more of its SHA-256; known: {known}"
        )
    return found[0]


def living(entries: Sequence[Entry], run_id: str) -> list[Decided]:
    """The approvals of a run that nobody has suspended: what was delivered of them still counts at the nodes."""
    return [
        each
        for each in all_decided(entries)
        if each.decision.subject.run_id == run_id and each.decision.approves and each.suspension is None
    ]


def registration_of(entries: Sequence[Entry], digest: str) -> Entry:
    """Where the history has the registration of that SHA-256; `PanelError` where this panel has none."""
    for entry in entries:
        if entry.entry.kind == Registration.kind and entry.entry.digest == digest:
            return entry
    raise PanelError(
        f"the registration {digest[:12]} is not in this panel's history: the run was registered by another panel, or the "
        "history is not whole"
    )


def check_follows(
    entries: Sequence[Entry], signed: Signed, panel: Panel, now: datetime, *, signing: bool = False
) -> None:
    """`PanelError` where `signed` cannot be the next that `panel` says, whoever signed it.

    signing: it is being signed now, and not read in the history.
    """
    said = statement_of(signed)
    if said.panel != panel.name:
        raise PanelError(f"it is a statement of the panel {said.panel!r}, and this is {panel.name!r}")
    if any(entry.entry.digest == signed.digest for entry in entries):
        raise PanelError(
            "the panel has said exactly this before: it is in the history, and nothing is to be done"
        )
    if isinstance(said, Registration):
        if signing and abs(now - said.registered) > timedelta(days=DRAFT_DAYS):
            raise PanelError(
                f"the registration says that it is of {day(said.registered)}, more than {DRAFT_DAYS} days from now: a "
                "registration is dated when it is drafted; draft it again with fedrisk-panel register"
            )
    elif isinstance(said, Decision):
        registration_of(entries, said.subject.registration_sha256)
    elif isinstance(said, ConditionMet):
        _check_met(find_decision(entries, said.decision_sha256), said)
    elif isinstance(said, Status):
        _check_status(find_decision(entries, said.decision_sha256), said, panel, now)


def _check_met(decided: Decided, said: ConditionMet) -> None:
    asked = [condition.id for condition in decided.decision.conditions]
    if said.condition not in asked:
        known = ", ".join(asked) or "none"
        raise PanelError(
            f"the decision {decided.sha256[:12]} has no condition {said.condition!r}; it has: {known}"
        )
    if said.condition not in {condition.id for condition in decided.open}:
        raise PanelError(f"the panel has said before that {said.condition!r} is met")


def _check_status(decided: Decided, said: Status, panel: Panel, now: datetime) -> None:
    if said.state == "suspended":
        return
    if decided.suspension is not None:
        raise PanelError(
            f"the decision {decided.sha256[:12]} was suspended ({decided.suspension.read(Status).reason}): no status brings it "
            "back, a new decision is needed"
        )
    if decided.newer:
        raise PanelError(
            f"the decision {decided.sha256[:12]} is not the newest on its run: give that one's status"
        )
    if now >= said.expires:
        raise PanelError(f"this status ended on {day(said.expires)} before it was signed: make a new one")
    in_force(decided.decision, panel, now=now)


def status_until(now: datetime) -> datetime:
    """When a status that is made now ends."""
    return now + timedelta(days=STATUS_DAYS)


def day(at: datetime) -> str:
    """A time as people write it, UTC."""
    with contextlib.suppress(OverflowError):  # at the ends of the calendar
        at = at.astimezone(UTC)
    return f"{at.day} {at:%B %Y %H:%M} UTC"
