"""What leaves a panel's folder: an approval for the nodes, a promotion in MLflow, and what anyone can check of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from federation.decision import DecisionError, Panel
from federation.durable import write_whole
from federation.panel.binding import (
    approval_of,
    decision_on,
    differences,
    false_entries,
    false_run,
    is_about,
    missing,
    other_registration,
    permission,
)
from federation.panel.decisions import Decided, all_decided, day, find_decision
from federation.panel.files import PanelError
from federation.panel.history import Entry, check_head, read
from federation.panel.runs import APPROVAL, MODEL, read_run
from federation.panel.signing import false_registrations
from federation.panel.words import VERDICTS, state_of

if TYPE_CHECKING:
    from federation.server.registry import Promoted


def deliver(entries: Sequence[Entry], named: str, folder: Path, panel: Panel, now: datetime) -> str:
    """Write model/approval.json of the decision that begins with `named`; what it allows, in words."""
    run, decided = read_run(folder), find_decision(entries, named)
    subject = decided.decision.subject
    if not is_about(run, subject):
        raise PanelError(
            f"{folder} is not the run of decision {decided.sha256[:12]}: name the folder of its run"
        )
    if decided.suspension is None:  # a suspension must reach the agencies, whatever became of the folder
        found = [*differences(run, decided), *other_registration(run, decided)]
        if found:
            first = f"{folder} is not the run of decision {decided.sha256[:12]}, or was changed: nothing was delivered"
            raise PanelError("\n".join([first, *found]))
        if decided.newer:
            raise PanelError(
                f"the panel decided on this run anew after {decided.sha256[:12]}: deliver that decision if it is an approval; "
                f"to take this one back, suspend it and deliver it: fedrisk-panel suspend {decided.sha256[:12]}"
            )
    approval = approval_of(entries, decided)
    path = folder / MODEL / APPROVAL
    path.parent.mkdir(exist_ok=True)
    write_whole(path, approval.canonical.encode(), mode=0o644)
    try:
        allowed = permission(approval, run, panel, now)
    except (DecisionError, PanelError) as error:
        return f"wrote   {path}\nnodes   score nobody with it: {error}"
    return f"wrote   {path}\nnodes   may score with it until {day(allowed.until)}"


def promote(folder: Path, place: Path, panel: Panel, uri: str, name: str, now: datetime) -> "Promoted":
    """Move MLflow's alias to the run's model; `PanelError` lists all that is missing, and then nothing was moved."""
    from federation.server import registry

    entries = read(folder)
    run = read_run(place)
    problems = [*false_entries(entries, panel), *missing(entries, run, panel, now)]
    if problems:
        raise PanelError("\n".join([*problems, "not promoted: nothing in MLflow was changed"]))
    decided = decision_on(entries, run)
    card, expires = run.card, decided.decision.expires
    tags = {
        "panel.decision_sha256": decided.sha256,
        "panel.verdict": decided.decision.verdict,
        "panel.expires": "" if expires is None else expires.isoformat(),
        "panel.registration_sha256": decided.decision.subject.registration_sha256,
        "fedrisk.weights_sha256": card.weights_sha256,
        "fedrisk.run_id": card.run_id,
    }
    features = int(run.result["model"]["features"])
    return registry.promote(
        uri, name, place / MODEL, card.model, features, card.run_id, card.experiment, tags
    )


def mirror(folder: Path, place: Path, panel: Panel, uri: str, now: datetime) -> dict[str, str]:
    """Say in MLflow, as tags of the run in `place`, what the panel decided on it last, and how that stands; the tags."""
    from federation.server import registry

    entries = read(folder)
    if problems := false_entries(entries, panel):
        raise PanelError("\n".join([*problems, "nothing in MLflow was changed"]))
    decided = decision_on(entries, read_run(place))
    state, until = state_of(decided, now)
    tags = {
        "panel.decision_sha256": decided.sha256,
        "panel.verdict": decided.decision.verdict,
        "panel.state": state,
        "panel.until": "" if until is None else until.isoformat(),
    }
    registry.mirror(uri, decided.decision.subject.run_id, tags)
    return tags


def listed(entries: Sequence[Entry], now: datetime) -> list[dict[str, Any]]:
    """Each decision with how it stands, the newest last."""
    rows = []
    for each in all_decided(entries):
        state, until = state_of(each, now)
        rows.append(
            {
                "short": each.sha256[:12],
                "decision_sha256": each.sha256,
                "run_id": each.decision.subject.run_id,
                "verdict": each.decision.verdict,
                "said": VERDICTS[each.decision.verdict],
                "state": state,
                "until": None if until is None else until.isoformat(),
                "day": "" if until is None else day(until),
                "owner": each.decision.owner,
            }
        )
    return rows


@dataclass(frozen=True)
class Verified:
    """What `verify` found; `problems` is empty where all holds."""

    entries: Sequence[Entry]
    matching: Sequence[tuple[Path, Decided]]
    problems: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "ok": not self.problems,
            "entries": len(self.entries),
            "head": self.entries[-1].head if self.entries else None,
            "matching": {str(place): decided.sha256 for place, decided in self.matching},
            "problems": list(self.problems),
        }


def verified(folder: Path, panel: Panel, runs: Sequence[Path], head: str | None) -> Verified:
    """Check the chain, the head, every quorum, and each file that a decision binds."""
    problems, matching = [], []
    try:
        entries = read(folder)
        if head is not None:
            check_head(entries, head)
    except PanelError as error:
        return Verified((), (), str(error).splitlines())
    problems += [*false_entries(entries, panel), *false_registrations(folder, entries)]
    for place in runs:
        decided, found = false_run(entries, read_run(place), panel)
        problems += found
        if decided is not None and not found:
            matching.append((place, decided))
    return Verified(entries, matching, problems)
