"""What each page shows, read from the disk each time it is asked for. Nothing here writes anything."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from federation.decision import APPROVALS, Decision, Panel, Registration, Signed, Status
from federation.panel.binding import false_run, is_about, missing, sound_history
from federation.panel.decisions import Decided, all_decided, day, find_decision, quorum_of
from federation.panel.delivery import verified
from federation.panel.files import PanelError, read_panel
from federation.panel.history import Entry
from federation.panel.refusals import REFUSALS, sentences_of
from federation.panel.registered import GATES, gates, registered
from federation.panel.runs import FILES, REPORT, RESULT, Run, check_run, judged, read_run
from federation.panel.sections.numbers import epsilon
from federation.panel.signing import drafts
from federation.panel.site.comparing import compare
from federation.panel.words import VERDICTS, in_a_line, lines_of, state_of
from federation.server.gates import at_of

PAPERS = ("result.json", "evidence.json", "model-card.json", "atrs.json")  # of a run, beside its report
SOON = timedelta(days=2)  # before the weekly word ends
ROLES = {
    "registration": "Registration",
    "decision": "Decision",
    "condition_met": "Condition met",
    "status": "Status",
}
SAID: Mapping[str, str] = {  # the form's words for each verdict
    "approve": "Approve: it may be used",
    "approve_with_conditions": "Approve with conditions: it may be used once each of them is signed as met",
    "more_information": "More information is needed before anything is decided",
    "reject": "Reject: it may not be used",
    "suspend": "Suspend: it may no longer be used",
}


class NotThere(PanelError):
    """A page about something that this panel does not have."""


@dataclass(frozen=True)
class Desk:
    """The panel's folder, the folder that has the runs' folders in it, and the clock."""

    folder: Path
    runs: Path
    now: Callable[[], datetime]

    def places(self) -> dict[str, Path]:
        """Name -> folder of each run: directly in `runs`, with a result.json. A link is none, so nothing leads elsewhere."""
        if not self.runs.is_dir():
            raise PanelError(f"{self.runs} is no folder: name the folder of the runs with --runs")
        found = sorted(self.runs.iterdir(), key=lambda path: path.name)
        return {
            path.name: path
            for path in found
            if path.is_dir() and not path.is_symlink() and (path / RESULT).is_file()
        }

    def place(self, name: str) -> Path:
        """The folder of a run."""
        found = self.places().get(name)
        if found is None:
            raise NotThere(f"there is no run {name!r} with a {RESULT} in {self.runs}")
        return found

    def command(self, *words: object) -> str:
        """What a member types, with the folder of the panel."""
        return shlex.join(["fedrisk-panel", *(str(word) for word in words), "--folder", str(self.folder)])


# --- home -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A run as home lists it. `problems`: why it cannot be read, or is not what was decided on."""

    name: str
    about: str = ""
    created: str = ""
    gates: str = ""
    state: str = ""
    problems: Sequence[str] = ()


def home(desk: Desk) -> dict[str, Any]:
    """What stands and until when, what waits for signatures, the runs, and what `verify` has to say."""
    panel, now = read_panel(desk.folder), desk.now()
    checked = verified(desk.folder, panel, [], None)
    entries = () if checked.problems else checked.entries  # nothing is built on a history that does not hold
    waiting, passed_over = drafts(desk.folder)
    try:
        places, no_runs = desk.places(), []
    except REFUSALS as error:
        places, no_runs = {}, sentences_of(error)
    rows = [_row(place, entries, panel, now) for place in places.values()]
    return {
        "panel": panel,
        "problems": [*checked.problems, *no_runs, *(line for row in rows for line in row.problems)],
        "passed_over": passed_over,
        "entries": len(checked.entries),
        "head": checked.entries[-1].head if checked.entries else None,
        "standing": [
            (each, VERDICTS[each.decision.verdict], *_stands(each, now))
            for each in reversed(all_decided(entries))
            if not each.newer
        ],
        "waiting": [(signed, _title(signed), *_signed(signed, panel)) for _, signed in waiting],
        "due": [(each, sentence) for each in all_decided(entries) for sentence in _due(each, now)],
        "rows": rows,
        "runs": desk.runs,
    }


def _due(decided: Decided, now: datetime) -> list[str]:
    """What the panel has to sign, so that an approval stands and goes on standing."""
    decision, ends = decided.decision, decided.decision.expires
    if (
        not decision.approves
        or decided.newer
        or decided.suspension is not None
        or ends is None
        or now >= ends
    ):
        return []
    found = [f"sign that the condition {each.id} is met, once it is: {each.text}" for each in decided.open]
    said = None if decided.status is None else decided.status.read(Status).expires
    if said is None:
        return [*found, "sign that it is in force: without that no agency uses it"]
    if said < ends and now + SOON >= said:
        found.append(
            f"sign again that it is in force: the last word {'ended' if now >= said else 'ends'} on {day(said)}"
        )
    return found


def _row(place: Path, entries: Sequence[Entry], panel: Panel, now: datetime) -> Row:
    try:
        run = read_run(place)
        result = run.result
        decided = _decided(entries, run)
        problems = false_run(entries, run, panel)[1] if decided else []
        return Row(
            place.name,
            about=str(result.get("experiment") or ""),
            created=_day(result.get("created")),
            gates=_gates_in_words(result),
            state=_state(run, decided, now),
            problems=problems,
        )
    except REFUSALS as error:
        return Row(place.name, problems=sentences_of(error))


def _state(run: Run, decided: Sequence[Decided], now: datetime) -> str:
    if decided:
        state, until = _stands(decided[-1], now)
        return f"{VERDICTS[decided[-1].decision.verdict]}; {state}" + (f", until {until}" if until else "")
    return "for research: not registered" if run.result.get("registration") is None else "not decided on"


def _stands(decided: Decided, now: datetime) -> tuple[str, str]:
    state, until = state_of(decided, now)
    return state, "" if until is None else day(until)


def _gates_in_words(result: Mapping[str, Any]) -> str:
    found = gates(result)
    if found is None:
        return "none registered"
    return (
        f"all {len(found['rows'])} passed"
        if found["passed"]
        else f"{found['failed']} of {len(found['rows'])} failed"
    )


def _decided(entries: Sequence[Entry], run: Run) -> list[Decided]:
    return [each for each in all_decided(entries) if is_about(run, each.decision.subject)]


def _day(text: object) -> str:
    try:
        return day(datetime.fromisoformat(str(text)).astimezone(UTC))
    except (ValueError, OverflowError):
        return "not given"


# --- a run -----------------------------------------------------------------------------------------------------


def run(desk: Desk, name: str) -> dict[str, Any]:
    """A run's facts, its gates, what was decided on it, and what still stands between it and its use."""
    place, panel, now = desk.place(name), read_panel(desk.folder), desk.now()
    found, entries = read_run(place), sound_history(desk.folder)
    result, decided = found.result, _decided(entries, found)
    try:
        check_run(found, entries, panel)
        why_not = []
    except PanelError as error:
        why_not = sentences_of(error)
    agencies = result.get("agencies") or {}
    said = registered(result)
    facts = [
        ("Run", str(result.get("run_id"))),
        ("Experiment", str(result.get("experiment"))),
        ("Purpose", str(result.get("purpose"))),
        ("Finished", _day(result.get("created"))),
        (
            "Agencies",
            f"{sum(each.get('status') == 'trained' for each in agencies.values())} of {len(agencies)} took part",
        ),
        (
            "Privacy cost",
            f"ε {epsilon(at_of(result, 'privacy', 'epsilon_busiest'))} at the agency that gave most",
        ),
        (
            "Registered",
            f"{said['at']}, by {', '.join(said['by'])}" if said["signed"] else "no: it is for research only",
        ),
        ("Made with", f"fedrisk {result.get('fedrisk_version')}"),
    ]
    return {
        "name": name,
        "facts": facts,
        "simulation": result.get("simulation") is not False,
        "gates": gates(result),
        "why_not": why_not,
        "decided": [
            (each, VERDICTS[each.decision.verdict], *_stands(each, now)) for each in reversed(decided)
        ],
        "waiting": [
            (signed, *_signed(signed, panel))
            for _, signed in _drafts_on(desk, found)
            if signed.kind == "decision"
        ],
        "missing": missing(entries, found, panel, now),
        "problems": false_run(entries, found, panel)[1] if decided else [],
        "files": [(file, found.hashes.get(field)) for field, file in FILES.items()],
        "papers": [file for file in PAPERS if (place / file).is_file()],
        "others": [other for other in desk.places() if other != name],
    }


def report(desk: Desk, name: str) -> bytes:
    """report.html of a run, as it is."""
    found = read_run(desk.place(name)).content.get("report_sha256")
    if found is None:
        raise NotThere(
            f"{desk.runs / name / REPORT} is missing: get the run's folder again, or make it with "
            f"{desk.command('report', desk.runs / name)}"
        )
    return found


def paper(desk: Desk, name: str, file: str) -> bytes:
    """Another paper of a run, as it is."""
    path = desk.place(name) / file
    if file not in PAPERS or not path.is_file():
        raise NotThere(f"the run {name!r} has no paper {file!r}")
    return path.read_bytes()


def form(desk: Desk, name: str) -> dict[str, Any]:
    """What the form shows beside what was typed; `PanelError` where the run cannot be decided on."""
    place, panel = desk.place(name), read_panel(desk.folder)
    found = read_run(place)
    signed = check_run(found, sound_history(desk.folder), panel)
    return {
        "name": name,
        "panel": panel,
        "verdicts": [(key, words, key in APPROVALS) for key, words in SAID.items()],
        "report": judged(signed, found.result, None),
        "registered": signed.read(Registration),
        "gate_words": GATES,
    }


def both(desk: Desk, first: str, second: str) -> dict[str, Any]:
    """The choice of two runs, and their comparison once both are chosen."""
    names = list(desk.places())
    chosen: dict[str, Any] = {"first": first, "second": second, "names": names, "compared": None}
    if first and second:
        results = [read_run(desk.place(name)).result for name in (first, second)]
        chosen["compared"] = compare(*results)
    return chosen


# --- what was said ------------------------------------------------------------------------------------------------


def history(desk: Desk) -> dict[str, Any]:
    """Every entry in words, oldest first."""
    panel, entries = read_panel(desk.folder), sound_history(desk.folder)
    rows = [(entry, day(entry.time), in_a_line(entry, panel)) for entry in entries]
    return {"panel": panel, "rows": rows, "head": entries[-1].head if entries else None}


def entry(desk: Desk, number: str) -> dict[str, Any]:
    """One entry, whole."""
    entries = sound_history(desk.folder)
    found = next((each for each in entries if str(each.seq) == number), None)
    if found is None:
        raise NotThere(f"the history has no entry {number!r}: it has {len(entries)}")
    panel = read_panel(desk.folder)
    return {
        "title": f"{_title(found.entry)}, entry {found.seq}",
        "lines": lines_of(found.entry),
        "signers": sorted(panel.signers(found.entry.kind, found.entry.digest, found.entry.signatures)),
        "at": day(found.time),
        "head": found.head,
    }


def decision(desk: Desk, begins: str) -> dict[str, Any]:
    """A decision, how it stands, what was said of it since, and what may be said next."""
    panel, entries, now = read_panel(desk.folder), sound_history(desk.folder), desk.now()
    try:
        found = find_decision(entries, begins)
    except PanelError as error:
        raise NotThere(str(error)) from None
    state, until = _stands(found, now)
    since = [
        (day(each.time), in_a_line(each, panel))
        for each in entries
        if each.entry in (*found.met, *found.statuses)
    ]
    return {
        "found": found,
        "title": f"Decision {found.sha256[:12]}: {VERDICTS[found.decision.verdict]}",
        "state": state,
        "until": until,
        "lines": lines_of(found.signed),
        "signers": sorted(panel.signers("decision", found.sha256, found.signed.signatures)),
        "since": since,
        "next": _next(desk, found),
        "run": _name_of(desk, found.decision),
    }


def _next(desk: Desk, found: Decided) -> list[tuple[str, str]]:
    """What a member can do about it, and the command."""
    short, key = found.sha256[:12], ("--key", "NAME=FILE")
    place = _place_of(desk, found.decision)
    if not found.decision.approves or found.newer:
        return []
    deliver = (
        "Send to the agencies what they need: writes approval.json",
        desk.command("deliver", short, place),
    )
    if found.suspension is not None:
        return [deliver]
    said = [
        (
            f"Sign that the condition {each.id} is met",
            desk.command("met", short, each.id, "--evidence", "TEXT", *key),
        )
        for each in found.open
    ]
    return [
        *said,
        ("Sign that it is in force, each week", desk.command("status", short, *key)),
        deliver,
        ("Suspend it at once; then send that too", desk.command("suspend", short, "--reason", "TEXT", *key)),
    ]


def draft(desk: Desk, begins: str) -> dict[str, Any]:
    """What waits for signatures, and the command by which each member signs it. The history's where it has it already."""
    panel, entries = read_panel(desk.folder), sound_history(desk.folder)
    found = [
        signed
        for _, signed in drafts(desk.folder)[0]
        if len(begins) >= 8 and signed.digest.startswith(begins)
    ]
    if len(found) != 1:
        complete = [each for each in entries if len(begins) >= 8 and each.entry.digest.startswith(begins)]
        if complete:
            return {"complete": complete[0]}
        raise NotThere(f"no draft {begins!r} waits for signatures: it was removed, or never made")
    signed = found[0]
    signers, needed = _signed(signed, panel)
    return {
        "complete": None,
        "title": f"{_title(signed)}, a draft",
        "lines": lines_of(signed, desk.now()),
        "signers": signers,
        "needed": needed,
        "commands": [(name, _sign(desk, signed, name)) for name in panel.members if name not in signers],
        "run": _name_of(desk, signed.read(Decision)) if signed.kind == "decision" else None,
    }


def _sign(desk: Desk, signed: Signed, name: str) -> str:
    words: list[object] = ["sign", signed.digest[:12]]
    if signed.kind == "decision":
        place = _place_of(desk, signed.read(Decision))
        words += ["--run", place]
        audited = isinstance(place, Path) and read_run(place).gates.audit_sha256 is not None
        words += ["--audit", "FILE"] if audited else []
    return desk.command(*words, "--key", f"{name}={name}.key")


def _signed(signed: Signed, panel: Panel) -> tuple[list[str], int]:
    """Whose signatures are right, and how many are needed."""
    return sorted(panel.signers(signed.kind, signed.digest, signed.signatures)), quorum_of(panel, signed)


def _title(signed: Signed) -> str:
    about = f" on {signed.read(Decision).subject.run_id}" if signed.kind == "decision" else ""
    return f"{ROLES[signed.kind]} {signed.digest[:12]}{about}"


def _drafts_on(desk: Desk, found: Run) -> list[tuple[Path, Signed]]:
    waiting, _ = drafts(desk.folder)
    decisions = [(path, signed) for path, signed in waiting if signed.kind == "decision"]
    return [(path, signed) for path, signed in decisions if is_about(found, signed.read(Decision).subject)]


def _name_of(desk: Desk, said: Decision) -> str | None:
    """The run's page, where its folder is among the runs."""
    place = _place_of(desk, said)
    return place.name if isinstance(place, Path) else None


def _place_of(desk: Desk, said: Decision) -> Path | str:
    for place in desk.places().values():
        if is_about(read_run(place), said.subject):
            return place
    return "RUN_FOLDER"
