"""What a person sees of `fedrisk-panel`: short, aligned, in plain words."""

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from federation.decision import ConditionMet, Decision, Panel, Signed, Statement, Status
from federation.panel.decisions import Decided, statement_of
from federation.panel.files import DRAFTS, PANEL, node_section
from federation.panel.history import Entry
from federation.panel.signing import Progress
from federation.panel.words import NOT_ASKED, NOT_GIVEN, lines_of, visible
from federation.server.gates import GateReport


def show_json(value: object) -> None:
    """One JSON object, or one list, and nothing else."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def show_panel(folder: Path, panel: Panel) -> None:
    """What `init` made, and what others need of it."""
    print(f"made  {folder / PANEL}: {panel.quorum} of {len(panel.members)} members decide\n")
    print("For the node.toml of each agency (from the members, not through the coordinator):\n")
    print(node_section(panel))
    print("Read to each agency over the telephone, so that both know that it is this panel:")
    print(f"  {panel.fingerprint}")


def show_signing(signed: Signed, now: datetime) -> None:
    """All that is about to be signed."""
    screen, table = _console(), Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")
    for about, text in lines_of(signed, now):
        said = f"[red]{NOT_GIVEN}[/]" if text == NOT_GIVEN else escape(text)
        if text.startswith(NOT_ASKED):
            said = f"[red]{said}[/]"
        table.add_row(f"[dim]{escape(about)}[/]", said)
    screen.print("[bold]What is being signed[/]\n")
    screen.print(table)
    screen.print()


def show_gates(report: GateReport) -> None:
    """What each gate says."""
    screen, table = _console(), Table.grid(padding=(0, 2))
    for gate in report.gates:
        mark = "[green]✓[/]" if gate.passed else "[red]✗[/]"
        table.add_row(mark, escape(visible(gate.name)), escape(visible(gate.sentence)))
    screen.print("[bold]The registered gates[/]\n")
    screen.print(table)
    screen.print()


def show_progress(found: Progress) -> None:
    """Who has signed, and what comes next. A whole registration's next step is the run: the caller says with which file."""
    print(
        f"signed  {found.signed.kind.replace('_', ' ')} {found.signed.digest[:12]} by {', '.join(found.signers)}"
    )
    if found.entry is None:
        compared = " --run RUN_FOLDER" if found.signed.kind == "decision" else ""
        print(
            f"draft   {found.file}: {len(found.signers)} of {found.needed} have signed\n"
            f"next    another member: fedrisk-panel sign {found.signed.digest[:12]} --key NAME=FILE{compared}"
        )
        return
    show_head(found.entry)
    for line in _next(statement_of(found.signed), found.signed.digest[:12]):
        print(f"next    {line}")


def _next(said: Statement, digest: str) -> Iterator[str]:
    """What brings a whole statement to the agencies."""
    match said:
        case Decision() if said.approves:
            for condition in said.conditions:
                yield f"once it holds: fedrisk-panel met {digest} {condition.id} --evidence TEXT --key NAME=FILE ..."
            yield f"each week: fedrisk-panel status {digest} --key NAME=FILE, then deliver it"
        case ConditionMet() | Status():
            yield f"fedrisk-panel deliver {said.decision_sha256[:12]} RUN_FOLDER, and send approval.json to the agencies"


def show_head(entry: Entry) -> None:
    """What must be kept elsewhere, so that a cut-off history is noticed."""
    print(f"head    {entry.head} (write it into the minutes)")


def show_list(rows: Sequence[dict[str, Any]], waiting: Sequence[Path]) -> None:
    """Each decision, and what waits for signatures."""
    if not rows:
        print("The panel has decided nothing yet.")
    else:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in ("decision", "run", "verdict", "state", "until", "owner"):
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(
                *(
                    escape(visible(str(row[name])))
                    for name in ("short", "run_id", "said", "state", "day", "owner")
                )
            )
        _console().print(table)
    for path in waiting:
        print(f"waits for signatures: {DRAFTS}/{path.name}")


def show_history(rows: Sequence[tuple[Entry, str]]) -> None:
    """Every entry, oldest first."""
    screen, table = _console(), Table.grid(padding=(0, 2))
    for entry, text in rows:
        table.add_row(str(entry.seq), f"[dim]{entry.at[:16].replace('T', ' ')}[/]", escape(text))
    screen.print(table)
    if rows:
        print()
        show_head(rows[-1][0])


def show_matches(folder: Path, decided: Decided) -> None:
    """That a run's folder is what was decided on."""
    print(f"ok  {folder}: every file is what decision {decided.sha256[:12]} is about")


def _console() -> Console:
    """Made for each command: a test, or a pipe, has its own stdout."""
    return Console(highlight=False, soft_wrap=False)
