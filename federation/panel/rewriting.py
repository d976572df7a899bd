"""`fedrisk-panel report`: a run's papers, written again from its result.json."""

from collections.abc import Sequence
from pathlib import Path

from federation.panel.binding import is_about
from federation.panel.decisions import all_decided
from federation.panel.files import UNREADABLE, PanelError
from federation.panel.history import Entry
from federation.panel.papers import write_papers
from federation.panel.report import render_report
from federation.panel.runs import GATES, REPORT, RESULT, Run, read_run


def rewrite(place: Path, out: Path, entries: Sequence[Entry]) -> list[Path]:
    """Write the report of the run in `place` into the folder `out`; the files that were written.

    `PanelError` where that would change a report that a decision, or its draft, is about: it is bound byte for byte.
    """
    run = read_run(place)
    result = run.result
    try:
        text = render_report(result)
    except UNREADABLE:
        raise PanelError(f"{place / RESULT} is not as a run writes it: get the run's folder again") from None
    target = read_run(out) if out.is_dir() else None
    if target is not None and _is_bound(target, entries) and _report_of(target) != text.encode():
        raise PanelError(
            f"{out / REPORT} stays as it is: a decision is about it byte for byte, and what this release writes of {RESULT} is "
            "not the same; write it elsewhere with --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    return write_papers(result, out)


def _report_of(run: Run) -> bytes | None:
    return run.content.get("report_sha256")


def _is_bound(run: Run, entries: Sequence[Entry]) -> bool:
    """Whether somebody decided on the run in this folder, or drafted it: `decide` leaves gates.json, whoever signs later."""
    decided = any(is_about(run, each.decision.subject) for each in all_decided(entries))
    return _report_of(run) is not None and (decided or (run.folder / GATES).exists())
