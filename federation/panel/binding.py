"""Whether a run's folder is what a panel decided on, and what still stands between it and a promotion."""

import contextlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

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
from federation.panel.decisions import (
    Decided,
    all_decided,
    check_follows,
    day,
    find_decision,
    living,
    quorum_of,
    registration_of,
)
from federation.panel.files import UNREADABLE, PanelError, read_panel
from federation.panel.history import Entry, read
from federation.panel.runs import (
    APPROVAL,
    FILES,
    GATES,
    MODEL,
    RESULT,
    Run,
    check_run,
    judged,
    other_code,
    read_json,
    subject_of,
)
from federation.server.gates import Gate, GateReport


def decision_on(entries: Sequence[Entry], run: Run) -> Decided:
    """The newest decision on the run in a folder, by any of its files: one that was changed does not hide it."""
    found = [each for each in all_decided(entries) if is_about(run, each.decision.subject)]
    if not found:
        raise PanelError(f"the panel decided nothing on the run in {run.folder}: fedrisk-panel decide")
    return found[-1]


def is_about(run: Run, subject: Subject) -> bool:
    """Whether a decision is on the run in a folder, by any of its files or by its name."""
    ids = {run.folder.resolve().name}
    with contextlib.suppress(PanelError):
        ids.add(run.card.run_id)
    with contextlib.suppress(PanelError):
        ids.add(str(run.result.get("run_id")))
    same = (
        getattr(subject, field) == digest for field, digest in run.hashes.items() if field != "gates_sha256"
    )
    return subject.run_id in ids or any(same)


def check_draft(
    run: Run, signed: Signed, entries: Sequence[Entry], panel: Panel, audit: dict[str, Any] | None
) -> GateReport:
    """What the registered gates say of `run`; `PanelError` where the drafted decision is not what `decide` would draft.

    All is found out again: whoever drafted it may have written anything into it.
    """
    decision = signed.read(Decision)
    found = draft_differences(run, signed.digest, decision)
    if found:
        raise PanelError("\n".join(found))
    registration = check_run(run, entries, panel)
    report = judged(registration, run.result, audit)
    subject, drafted = subject_of(run, registration, report), decision.subject
    for field in ("run_id", "purpose", "registration_sha256"):
        is_now, said = getattr(subject, field), getattr(drafted, field)
        if is_now != said:
            found.append(
                f"the {field} of the run is {is_now}, and the draft says {said}: it is about another run"
            )
    if report.sha256 != drafted.gates_sha256:
        found.append(
            f"the registered gates, judged again, do not say what {GATES} says: it was changed, or the run was judged with "
            "an audit; name that with --audit"
        )
    if report.passed != decision.gates_passed:
        found += [f"gate {gate.name}: {gate.sentence}" for gate in report.gates if not gate.passed]
        found.append(f"the draft says that the gates are {_word(decision.gates_passed)}, and they are not so")
    if found:
        raise PanelError("\n".join(found))
    return report


def _word(passed: bool) -> str:
    return "all passed" if passed else "not all passed"


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
    except UNREADABLE:  # PanelError is one
        digest = "none"
    bound = decided.decision.subject.registration_sha256
    if digest == bound:
        return []
    return [f"the registration in {run.folder / RESULT} is {digest[:12]}, and {bound[:12]} was decided on"]


def approval_of(entries: Sequence[Entry], decided: Decided) -> Approval:
    """All that a node needs; `PanelError` where nobody has said yet that the decision is in force."""
    if decided.status is None and not decided.decision.approves:
        raise PanelError(_never_delivered(entries, decided))
    if decided.status is None:
        raise PanelError(
            f"nobody has said yet that decision {decided.sha256[:12]} is in force: fedrisk-panel status {decided.sha256[:12]}"
        )
    return Approval(
        registration=registration_of(entries, decided.decision.subject.registration_sha256).entry,
        decision=decided.signed,
        met=decided.met,
        status=decided.status,
    )


def _never_delivered(entries: Sequence[Entry], decided: Decided) -> str:
    """What to do instead of delivering a decision that approves nothing."""
    old = living(entries, decided.decision.subject.run_id)
    first = f"decision {decided.sha256[:12]} approves nothing, so no node needs it"
    if not old:
        return f"{first}: without an approval no node uses the model, and nothing is to be delivered"
    return "\n".join(f"{first}: {line}" for line in withdrawals(old, "RUN_FOLDER"))


def withdrawals(old: Sequence[Decided], folder: object) -> list[str]:
    """How an approval that agencies may have is taken back from them, a line for each."""
    return [
        f"suspend {each.sha256[:12]}, which agencies may still have, then deliver {each.sha256[:12]}: "
        f"fedrisk-panel suspend {each.sha256[:12]} --reason TEXT --key NAME=FILE; "
        f"fedrisk-panel deliver {each.sha256[:12]} {folder}"
        for each in old
    ]


def permission(approval: Approval, run: Run, panel: Panel, now: datetime) -> Permission:
    """What `panel` allows with the model of `run`, as a node would find."""
    card = run.card  # which is missed before its hash is
    return permitted(approval, panel, card, run.hashes["card_sha256"], now=now)


def missing(entries: Sequence[Entry], run: Run, panel: Panel, now: datetime) -> list[str]:
    """All that stands between the run and its promotion, a sentence each; [] where nothing does."""
    try:
        decided = decision_on(entries, run)
    except PanelError as error:
        return str(error).splitlines()
    found = not_the_run(entries, run, decided, panel)
    found += [*_failed_gates(run, decided), *_not_approved(decided, panel, now), *_not_said(decided, now)]
    if found:
        return found
    try:
        permission(approval_of(entries, decided), run, panel, now)
    except (DecisionError, PanelError) as error:
        return str(error).splitlines()
    return []


def not_the_run(entries: Sequence[Entry], run: Run, decided: Decided, panel: Panel) -> list[str]:
    """Each way in which a folder is not what was decided on, and what could not have been decided on it."""
    found = [*differences(run, decided), *other_registration(run, decided)]
    return found or _could_not_be(entries, run, decided, panel)


def _could_not_be(entries: Sequence[Entry], run: Run, decided: Decided, panel: Panel) -> list[str]:
    """Of a folder whose every file is as it was: whether it is a registered run, and the gates, judged again."""
    try:
        report, again = run.gates, judged(check_run(run, entries, panel), run.result, None)
        same_code = other_code(run) is None
    except PanelError as error:
        return str(error).splitlines()

    def kept(gates: Sequence[Gate]) -> list[object]:
        """Without an audit that was named, which is not in the folder; of other code, whose words may differ, the verdicts."""
        rest = [gate for gate in gates if report.audit_sha256 is None or gate.name != "audit"]
        return list(rest) if same_code else [(gate.name, gate.passed) for gate in rest]

    found = []
    if kept(report.gates) != kept(again.gates) or report.asked != again.asked:
        found.append(f"{run.folder / GATES} is not what the registered gates say of {RESULT}")
    if report.passed != decided.decision.gates_passed:
        found.append(
            f"decision {decided.sha256[:12]} says that the gates are {_word(decided.decision.gates_passed)}, and they are not so"
        )
    return found


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


def sound_history(folder: Path) -> tuple[Entry, ...]:
    """The history; `PanelError` where an entry in it does not count, so that nothing is built on it."""
    entries = read(folder)
    found = false_entries(entries, read_panel(folder))
    if found:
        raise PanelError("\n".join(found))
    return entries


def false_entries(entries: Sequence[Entry], panel: Panel) -> list[str]:
    """Each entry that too few members signed, or that cannot stand where it does."""
    found = []
    for at, entry in enumerate(entries):
        signed = entry.entry
        try:
            signed.verify(STATEMENTS[signed.kind], panel, quorum_of(panel, signed))
            check_follows(entries[:at], signed, panel, entry.time)
        except (DecisionError, PanelError) as error:
            found += [f"entry {entry.seq}: {line}" for line in str(error).splitlines()]
        except UNREADABLE:
            found.append(f"entry {entry.seq}: it cannot be read as a statement of a panel")
    return found


def false_run(entries: Sequence[Entry], run: Run, panel: Panel) -> tuple[Decided | None, list[str]]:
    """The decision on the run in a folder, and each way in which the folder is not what was decided on."""
    try:
        decided = decision_on(entries, run)
    except PanelError as error:
        return None, str(error).splitlines()
    found = not_the_run(entries, run, decided, panel)
    path = run.folder / MODEL / APPROVAL
    if path.exists():
        found += _false_approval(path, entries)
    return decided, found


def _false_approval(path: Path, entries: Sequence[Entry]) -> list[str]:
    try:
        approval = read_approval(read_text(path))
    except (DecisionError, PanelError) as error:
        return [f"{path}: {error}"]
    known = {entry.entry.canonical for entry in entries}
    parts = (approval.registration, approval.decision, *approval.met, approval.status)
    unknown = [
        f"{path}: its {each.kind.replace('_', ' ')} is not in this panel's history as it stands there: deliver it again"
        for each in parts
        if each.canonical not in known
    ]
    if unknown:
        return unknown
    try:
        decided = find_decision(entries, approval.decision.digest)
        newest = approval_of(entries, decided)
    except PanelError as error:
        return [f"{path}: {line}" for line in str(error).splitlines()]
    if approval != newest:
        return [
            f"{path}: the panel has said more of decision {decided.sha256[:12]} since: deliver it again with "
            f"fedrisk-panel deliver {decided.sha256[:12]}"
        ]
    if decided.newer and decided.suspension is None:
        return [f"{path}: {line}" for line in _withdrawn(entries, decided)]
    return []


def _withdrawn(entries: Sequence[Entry], decided: Decided) -> list[str]:
    newest = next(each for each in all_decided(entries) if not each.newer and is_same_run(each, decided))
    if newest.decision.approves:
        return [f"the panel decided on this run anew: deliver decision {newest.sha256[:12]}"]
    return withdrawals([decided], "RUN_FOLDER")


def is_same_run(one: Decided, other: Decided) -> bool:
    """Whether two decisions are on one run."""
    return one.decision.subject.run_id == other.decision.subject.run_id


def read_text(path: Path) -> str:
    """A JSON file's text; `PanelError` where no JSON is in it."""
    content = path.read_bytes()
    try:
        read_json(content)
        return content.decode()
    except UNREADABLE:
        raise PanelError("it is not JSON: get it from the panel again") from None
