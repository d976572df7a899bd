"""The form by which a decision is drafted: what was typed, what it asks for, and where each refusal belongs.

It makes what `fedrisk-panel decide` makes, through the same functions, and nobody's signature: keys stay with members.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from federation.decision import Panel, Signed
from federation.panel.decisions import all_decided, check_follows
from federation.panel.drafting import Wanted, draft_decision, keep_gates, pairs
from federation.panel.files import PanelError
from federation.panel.history import Entry
from federation.panel.runs import GATES, read_run
from federation.panel.signing import add_signatures, unsigned
from federation.server.gates import GateReport

# what a refusal begins with, or has in it -> the field that it is about
ABOUT: Mapping[str, str] = {
    r"verdict ": "verdict",
    r"rationale ": "rationale",
    r"dissent ": "dissent",
    r"owner ": "owner",
    r"conditions?\b|two conditions": "conditions",
    r"rereferral|an approval must say what brings": "rereferral",
    r"--expires|expires|an approval must expire": "days",
    r"limits\.capacity|capacity": "capacity",
    r"limits\.agencies": "agencies",
    r"the audit ": "audit",
}


@dataclass(frozen=True)
class Typed:
    """What stands in the form. Texts of several lines have one condition, or one reason to come back, to a line."""

    verdict: str = ""
    rationale: str = ""
    dissent: str = ""
    owner: str = ""
    conditions: str = ""
    rereferral: str = ""
    days: str = ""
    capacity: str = ""
    agencies: tuple[str, ...] = ()
    local_recalibration: bool = False
    audit: str = ""

    def wanted(self) -> Wanted:
        """The same as `fedrisk-panel decide` is told it; `PanelError` where a number or a condition is none."""
        named = [tuple(part.strip() for part in line.partition("=")) for line in _lines(self.conditions)]
        return Wanted(
            verdict=self.verdict,
            rationale=self.rationale,
            dissent=self.dissent,
            owner=self.owner,
            conditions=pairs(["".join(parts) for parts in named], "conditions: each line"),
            capacity=_number(self.capacity, "capacity"),
            agencies=self.agencies or None,
            local_recalibration=self.local_recalibration,
            rereferral=_lines(self.rereferral),
            days=_number(self.days, "expires"),
        )


def typed(fields: Mapping[str, Sequence[str]]) -> Typed:
    """What a browser sent: one text for each field, with lines as this machine ends them."""

    def text(name: str) -> str:
        return "".join(fields.get(name, [])[:1]).replace("\r\n", "\n").strip()

    texts = (
        "verdict",
        "rationale",
        "dissent",
        "owner",
        "conditions",
        "rereferral",
        "days",
        "capacity",
        "audit",
    )
    return Typed(
        **{name: text(name) for name in texts},
        agencies=tuple(fields.get("agencies", ())),
        local_recalibration="local_recalibration" in fields,
    )


def leave_draft(
    folder: Path, place: Path, entries: Sequence[Entry], panel: Panel, form: Typed, now: datetime
) -> Signed:
    """Put the decision into drafts/, signed by nobody; `PanelError` where `fedrisk-panel decide` would refuse it."""
    report, make = draft_decision(place, entries, panel, form.wanted(), _audit(place, form.audit), now)
    signed = unsigned(make())
    check_follows(entries, signed, panel, now, signing=True)
    _check_gates(place, entries, report)
    keep_gates(place, report)
    return add_signatures(folder, panel, signed, {}, now).signed


def by_field(problems: Sequence[str]) -> dict[str, list[str]]:
    """Field -> the refusals that are about it; those about no field are under ""."""
    found: dict[str, list[str]] = {}
    for problem in problems:
        field = next((field for words, field in ABOUT.items() if re.match(words, problem)), "")
        found.setdefault(field, []).append(problem)
    return found


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _number(text: str, what: str) -> int | None:
    if not text:
        return None
    if re.fullmatch(r"[0-9]{1,9}", text) is None:
        raise PanelError(f"{what} must be a whole number, got {text!r}")
    return int(text)


def _audit(place: Path, name: str) -> Path | None:
    """A file directly in the run's folder: a form reaches no other."""
    if not name:
        return None
    found = {path.name: path for path in place.iterdir() if path.is_file() and not path.is_symlink()}
    if name not in found:
        raise PanelError(
            f"the audit {name!r} is not in {place}: put the file that `fedrisk audit` wrote there"
        )
    return found[name]


def _check_gates(place: Path, entries: Sequence[Entry], report: GateReport) -> None:
    """`PanelError` where the draft would put other words in the place of gates that a decision binds."""
    bound = read_run(place).hashes.get("gates_sha256")
    for each in all_decided(entries):
        if each.decision.subject.gates_sha256 == bound != report.sha256:
            raise PanelError(
                f"{place / GATES} is what decision {each.sha256[:12]} is about, and this draft would change it (it was judged "
                "with another audit): use fedrisk-panel decide, which asks first"
            )
