"""Whether a run's folder is what a panel decided on, and what still stands between it and a promotion."""

import contextlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from federation.decision import (
    STATEMENTS,
    Approval,
    Decision,
    DecisionError,
    Panel,
    Permission,
    Signed,
    Status,
    Subject,
    in_force,
    permitted,
    read_approval,
)
from federation.panel.decisions import Decided, all_decided, check_follows, day, quorum_of, registration_of
from federation.panel.files import PanelError
from federation.panel.history import Entry
from federation.panel.runs import APPROVAL, FILES, MODEL, RESULT, Run


def decision_on(entries: Sequence[Entry], run: Run) -> Decided:
    """The newest decision on the run in a folder, by any of its files: one that was changed does not hide it."""
    hashes, ids = run.hashes, {run.folder.resolve().name}
    with contextlib.suppress(PanelError):
        ids.add(run.card.run_id)
    with contextlib.suppress(PanelError):
        ids.add(str(run.result.get("run_id")))

    def about(subject: Subject) -> bool:
        same = (
            getattr(subject, field) == digest for field, digest in hashes.items() if field != "gates_sha256"
        )
        return subject.run_id in ids or any(same)

    found = [each for each in all_decided(entries) if about(each.decision.subject)]
    if not found:
        raise PanelError(f"the panel decided nothing on the run in {run.folder}: fedrisk-panel decide")
    return found[-1]


def differences(run: Run, decided: Decided) -> list[str]:
    """Each file of the run that is not the one that was decided on."""
    return draft_differences(run, decided.sha256, decided.decision)


def draft_differences(run: Run, sha256: str, decision: Decision) -> list[str]:
    """The same of a decision that is not signed yet."""
    subject, hashes = decision.subject, run.hashes
    found = []
    for field, name in FILES.items():
        bound, now = getattr(subject, field), hashes.get(field)
        if now != bound:
            is_now = "it is missing" if now is None else f"its SHA-256 is {now[:12]} now"
            found.append(
                f"{run.folder / name} is not what decision {sha256[:12]} is about: {is_now}, and {bound[:12]} was decided on"
            )
    return found


def other_registration(run: Run, decided: Decided) -> list[str]:
    """Where the registration in result.json is not the one that was decided on."""
    try:
        digest = Signed.model_validate(run.result["registration"]["signed"]).digest
    except (PanelError, KeyError, TypeError, ValidationError):
        digest = "none"
    bound = decided.decision.subject.registration_sha256
    if digest == bound:
        return []
    return [f"the registration in {run.folder / RESULT} is {digest[:12]}, and {bound[:12]} was decided on"]


def approval_of(entries: Sequence[Entry], decided: Decided) -> Approval:
    """All that a node needs; `PanelError` where nobody has said yet that the decision is in force."""
    if decided.status is None:
        raise PanelError(
            f"nobody has said yet that decision {decided.sha256[:12]} is in force: fedrisk-panel status {decided.sha256[:12]}"
        )
    return Approval(
        registration=registration_of(entries, decided.decision.subject.registration_sha256),
        decision=decided.signed,
        met=decided.met,
        status=decided.status,
    )


def permission(approval: Approval, run: Run, panel: Panel, now: datetime) -> Permission:
    """What `panel` allows with the model of `run`, as a node would find."""
    return permitted(approval, panel, run.card, run.hashes["card_sha256"], now=now)


def missing(entries: Sequence[Entry], run: Run, panel: Panel, now: datetime) -> list[str]:
    """All that stands between the run and its promotion, a sentence each; [] where nothing does."""
    try:
        decided = decision_on(entries, run)
    except PanelError as error:
        return str(error).splitlines()
    found = [*differences(run, decided), *other_registration(run, decided)]
    found += [*_failed_gates(run, decided), *_not_approved(decided, panel, now), *_not_said(decided, now)]
    if found:
        return found
    try:
        permission(approval_of(entries, decided), run, panel, now)
    except (DecisionError, PanelError) as error:
        return str(error).splitlines()
    return []


def _failed_gates(run: Run, decided: Decided) -> list[str]:
    try:
        report = run.gates
    except PanelError as error:
        return str(error).splitlines() if "gates_sha256" in run.content else []  # that it is gone was said
    failed = [f"gate {gate.name}: {gate.sentence}" for gate in report.gates if not gate.passed]
    return failed or ([] if decided.decision.gates_passed else ["the decision says that a gate failed"])


def _not_approved(decided: Decided, panel: Panel, now: datetime) -> list[str]:
    try:
        in_force(decided.decision, panel, now=now)
    except DecisionError as error:
        return [str(error)]
    return [f"condition {each.id} is not met yet: {each.text}" for each in decided.open]


def _not_said(decided: Decided, now: datetime) -> list[str]:
    if not decided.decision.approves:
        return []
    if decided.status is None:
        return [f"nobody has said yet that it is in force: fedrisk-panel status {decided.sha256[:12]}"]
    status = decided.status.read(Status)
    if status.state == "suspended":
        return [f"the panel suspended it on {day(status.issued)}: {status.reason}"]
    if now >= status.expires:
        return [
            f"the newest word that it is in force ended on {day(status.expires)}: fedrisk-panel status {decided.sha256[:12]}"
        ]
    return []


# --- verification ---------------------------------------------------------------------------------------------


def false_entries(entries: Sequence[Entry], panel: Panel) -> list[str]:
    """Each entry that too few members signed, or that cannot stand where it does."""
    found = []
    for at, entry in enumerate(entries):
        signed = entry.entry
        try:
            signed.verify(STATEMENTS[signed.kind], panel, quorum_of(panel, signed))
            check_follows(entries[:at], signed, panel, datetime.fromisoformat(entry.at))
        except (DecisionError, PanelError, ValueError) as error:
            found.append(f"entry {entry.seq}: {error}")
    return found


def false_run(entries: Sequence[Entry], run: Run) -> tuple[Decided | None, list[str]]:
    """The decision on the run in a folder, and each way in which the folder is not what was decided on."""
    try:
        decided = decision_on(entries, run)
    except PanelError as error:
        return None, str(error).splitlines()
    found = [*differences(run, decided), *other_registration(run, decided)]
    path = run.folder / MODEL / APPROVAL
    if path.exists():
        found += _false_approval(path, entries)
    return decided, found


def _false_approval(path: Path, entries: Sequence[Entry]) -> list[str]:
    try:
        approval = read_approval(path.read_text(encoding="utf-8"))
    except (DecisionError, UnicodeDecodeError) as error:
        return [f"{path}: {error}"]
    known = {entry.entry.canonical for entry in entries}
    parts = (approval.registration, approval.decision, *approval.met, approval.status)
    return [
        f"{path}: its {each.kind.replace('_', ' ')} is not in this panel's history as it stands there: deliver it again"
        for each in parts
        if each.canonical not in known
    ]
