"""What a person sees of the node's command: short, aligned, in plain words."""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clients.budget import Line
from clients.desk import statement as words
from clients.desk.decisions import Asked, Checked
from clients.desk.doctor import Finding
from clients.desk.policy_words import Line as PolicyLine
from clients.desk.setup import WHAT, Made
from clients.desk.statement import Group, Statement
from clients.journal import Record
from clients.rules import Plan
from federation.release import VIEWERS

MARKS = {"ok": "[green]✓[/]", "warn": "[yellow]![/]", "fail": "[red]✗[/]"}
SPANS = {"life": "for good", "year": "in any 365 days", "purpose": "purpose", "experiment": "experiment"}


def console() -> Console:
    """Made for each command: a test, or a pipe, has its own stdout."""
    return Console(highlight=False, soft_wrap=False)


def show_json(value: object) -> None:
    """One JSON object, or one list, and nothing else."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def show_made(made: Made) -> None:
    """What `init` made, what others need of it, and what to do next."""
    screen, table = console(), _grid()
    screen.print(f"The node of [bold]{escape(made.name)}[/] in {escape(made.folder)}\n")
    for name, state in made.files.items():
        table.add_row("  " + ("made" if state == "made" else "[dim]there[/]"), name, f"[dim]{WHAT[name]}[/]")
    screen.print(table)
    screen.print("\nFor the coordinator, who enrols it (read the fingerprint to each other):")
    _plain(f"  {made.public_key}")
    _plain(f"  {made.fingerprint}")
    screen.print(
        "\nFor the other agencies' node.toml, under [bold]\\[peers][/] (where noise is shared behind masks):"
    )
    _plain(f"  {made.peer}")
    screen.print("\nNext:")
    for step in made.todo:
        _plain(f"  - {step}")


def show_findings(found: Sequence[Finding]) -> None:
    """A tick, or what to do, for each check."""
    screen, table = console(), _grid()
    for each in found:
        table.add_row(MARKS[each.state], each.check, escape(each.sentence))
    screen.print(table)
    failed, warned = (sum(each.state == state for each in found) for state in ("fail", "warn"))
    if failed:
        screen.print(f"\n[red]{failed} to mend[/]{f', {warned} to look at' if warned else ''}")
    else:
        screen.print(f"\nThis node is fit to work{f' ({warned} to look at)' if warned else ''}.")


def show_statement(found: Statement, *, verified: bool) -> None:
    """The ledger in words, then by experiment, purpose and kind, then what is left of each limit."""
    screen = console()
    where = ", a simulation" if found.simulation else ""
    screen.print(f"[bold]Ledger of {escape(found.people)}[/]{where}\n")
    for sentence in words.sentences(found):
        screen.print(escape(sentence))
    for title, groups in (
        ("experiment", found.experiments),
        ("purpose", found.purposes),
        ("kind", found.kinds),
    ):
        if groups:
            screen.print()
            screen.print(_groups(title, groups))
    if found.limits:
        screen.print(
            "\nWhat may be spent on one person, in ε: spent of allowed (left). Reserved counts as spent."
        )
        screen.print(_limits(found.limits))
    for each in found.open:
        screen.print(
            f"Reserved by a plan of {escape(each.experiment)} ({each.plan_sha256[:12]}): {words.in_words(each.left)}"
        )
    if verified:
        screen.print(f"\nThe hash chain holds. Newest entry: {found.head[0]} {found.head[1]}")


def _groups(title: str, groups: Sequence[Group]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in (title, "left this agency", *(f"ε to {viewer}" for viewer in VIEWERS)):
        table.add_column(column, justify="right" if column.startswith("ε") else "left")
    for group in groups:
        table.add_row(
            escape(group.name), words.in_words(group.left), *(_epsilon(group.epsilon[v]) for v in VIEWERS)
        )
    return table


def _limits(lines: Sequence[Line]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("limit", "δ", *VIEWERS):
        table.add_column(column, justify="left" if column == "limit" else "right")
    rows: dict[tuple[str, str | None], dict[str, Line]] = {}
    for line in lines:
        rows.setdefault((line.span, line.name), {})[line.viewer] = line
    for (span, name), by_viewer in rows.items():
        cells = [_spent(by_viewer[viewer]) if viewer in by_viewer else "no limit" for viewer in VIEWERS]
        delta = next(iter(by_viewer.values())).delta
        table.add_row(escape(f"{SPANS[span]} {name or ''}".strip()), f"{delta:g}", *cells)
    return table


def _spent(line: Line) -> str:
    return f"{_epsilon(line.claimed)} of {line.allowed:g} ({max(0.0, line.allowed - line.claimed):.2f})"


def _epsilon(value: float) -> str:
    return "no bound" if not math.isfinite(value) else f"{value:.2f}"


def show_policy(lines: Sequence[PolicyLine]) -> None:
    """Each key of the policy and what it means."""
    table = _grid()
    table.add_column()
    table.add_column(overflow="fold")  # a hash is to be copied whole
    for line in lines:
        table.add_row(f"[dim]{escape(line.key)}[/]", escape(line.says))
    console().print(table)


def show_asked(waiting: Sequence[Asked]) -> None:
    """The plans that wait for a person."""
    if not waiting:
        print("No plan waits for a person.")
        return
    for plan, about in ((each.plan, each.about) for each in waiting):
        _plain(f"{plan.sha256}  {plan.experiment} for {plan.purpose}, run {plan.run_id}{_retest(plan)}")
        for line in about:
            _plain(f"  {line}")


def _retest(plan: Plan) -> str:
    retest = getattr(plan, "retest", None)
    return "" if retest is None else f", a retest of {retest.of}: one table, no training"


def show_checked(found: Checked) -> None:
    """What the policy would answer, and what each rule says."""
    screen, table = console(), _grid()
    plan = found.plan
    _plain(f"Plan {plan.sha256}")
    _plain(
        f"  {plan.experiment}, for {plan.purpose}, by {len(plan.participants)} agencies, run {plan.run_id}{_retest(plan)}"
    )
    for line in found.about:
        _plain(f"  {line}")
    print()
    for verdict in found.verdicts:
        table.add_row(MARKS["ok" if verdict.permits else "fail"], verdict.rule, escape(verdict.sentence))
    screen.print(table)
    decides = found.decides
    if decides is None:
        screen.print("\nThe policy permits this plan.")
    else:
        screen.print(f"\n[red]Refused, {decides.reason}[/]: [bold]{escape(decides.rule)}[/] decides.")


def show_records(records: Iterable[Record]) -> None:
    """The journal, a line to a line."""
    screen, table = console(), _grid()
    for record in records:
        time = record.at[:19].replace("T", " ")
        table.add_row(str(record.seq), f"[dim]{time}[/]", record.kind, escape(in_words(record)))
    screen.print(table)


def in_words(record: Record) -> str:
    """What happened, for a person."""
    facts = {key: value for key, value in record.facts.items() if value not in ("", [])}
    plan = f" (plan {facts['plan_sha256'][:12]})" if "plan_sha256" in facts else ""
    run = f" of run {facts['run_id']}" if "run_id" in facts else ""
    order = f"{facts.get('order', '')}{run}{plan}"
    if record.kind == "ordered":
        number = f" {facts['round']}" if "round" in facts else ""
        purpose = f", for {facts['purpose']}" if "purpose" in facts else ""
        retest = f", a retest of {facts['retest_of']}" if "retest_of" in facts else ""
        return f"{facts['order']}{number}{run}{plan}{purpose}{retest}"
    if record.kind == "refused":
        return f"{order}: {facts['reason']}" + (f", by {facts['sentence']}" if "sentence" in facts else "")
    if record.kind == "released":
        return f"{', '.join(facts['released'])}{run}{plan}, ledger entry {facts['ledger_seq']}"
    if record.kind in ("approved", "withdrawn"):
        return f"plan {facts['plan_sha256'][:12]} by {facts['by']}"
    if record.kind == "accepted":
        return order
    return ", ".join(f"{key} {value}" for key, value in facts.items())


def csv_of(records: Iterable[Record]) -> str:
    """The journal as CSV: what identifies a line, then each fact that a kind may have."""
    from clients.journal_lines import KINDS

    facts = list(dict.fromkeys(name for kind in KINDS.values() for name in kind.model_fields))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["seq", "at", "kind", *facts, "previous", "hash"])
    for each in records:
        cells = [_cell(each.facts.get(name, "")) for name in facts]
        writer.writerow([each.seq, each.at, each.kind, *cells, each.previous, each.hash])
    return file.getvalue()


def _cell(value: Any) -> str:
    """As text that no spreadsheet takes for a formula."""
    text = " + ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def json_of(records: Iterable[Record]) -> list[dict[str, Any]]:
    """The journal as it stands in its files."""
    return [asdict(record) for record in records]


def _grid() -> Table:
    return Table.grid(padding=(0, 2))


def _plain(text: str) -> None:
    """A line that is to be copied: never wrapped."""
    print(text)
