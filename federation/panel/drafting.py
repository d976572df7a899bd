"""Statements as they are drafted: a registration from the data scientist's file, a decision from a run and what people say."""

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import yaml

from federation import rereferral
from federation.decision import APPROVALS, Decision, Panel, Registration
from federation.durable import write_whole
from federation.panel.decisions import made
from federation.panel.files import UNREADABLE, PanelError
from federation.panel.history import Entry
from federation.panel.runs import (
    GATES,
    check_code,
    check_run,
    judged,
    other_code,
    read_json,
    read_run,
    subject_of,
)
from federation.server.gates import GateReport, GatesError, at_of, read_gates

OURS = ("panel", "registered")  # what the panel says of a registration, and its draft does not


def read_registration(path: Path, panel: Panel, now: datetime) -> Registration:
    """The registration that the draft in `path` becomes now; `PanelError` has every problem."""
    values = _read(path)
    said = [name for name in OURS if name in values]
    if said:
        raise PanelError(
            f"{path.name}: {' and '.join(said)} must not be there: the panel says that when it signs"
        )
    found = made(Registration, values | {"panel": panel.name, "registered": now})
    try:
        read_gates(found.gates)
    except GatesError as error:
        raise PanelError("\n".join(f"gates.{line}" for line in str(error).splitlines())) from None
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        found = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except OSError as error:
        raise PanelError(
            f"{path} cannot be read ({error.strerror}): name the file that `fedrisk draft` wrote"
        ) from None
    except RecursionError:
        raise PanelError(f"{path} is nested too deeply: name the file that `fedrisk draft` wrote") from None
    except (yaml.YAMLError, ValueError) as error:  # TOMLDecodeError and a date that is none are ValueErrors
        where = " ".join(str(error).split())[:200]
        raise PanelError(f"{path} is neither YAML, JSON nor TOML ({where}): correct it") from None
    if not isinstance(found, dict):
        raise PanelError(f"{path} must hold the settings of a registration, as `fedrisk draft` writes them")
    return _plain(found, path)


def _plain(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """`values` as JSON has them; `PanelError` where it has no such thing."""

    def refuse(value: object) -> object:
        if isinstance(value, date | time):
            raise PanelError(f"{path}: the date {value} must be in quotes, as text")
        raise PanelError(
            f"{path}: {type(value).__name__} is nothing that JSON has: use text, numbers and lists"
        )

    try:
        text = json.dumps(values, allow_nan=False, ensure_ascii=False, default=refuse)
        text.encode()
        found: dict[str, Any] = json.loads(text)
    except PanelError:
        raise
    except UNREADABLE as error:
        raise PanelError(
            f"{path} cannot be read as JSON ({error}): use text, finite numbers and lists, nothing that contains itself"
        ) from None
    if list(found) != list(values):
        raise PanelError(f"{path}: every name must be text")
    return found


def pairs(texts: Sequence[str], where: str) -> dict[str, str]:
    """NAME=VALUE texts as a mapping, in their order. `where`: what a person was asked for, as `--condition`."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise PanelError(f"{where} must be NAME=VALUE, got {text!r}")
        if name in found:
            raise PanelError(f"{where}: the same name is there twice ({name})")
        found[name] = value
    return found


@dataclass(frozen=True)
class Wanted:
    """What people say of a run. `days`: until it expires; None: an approval takes the panel's longest."""

    verdict: str
    rationale: str
    dissent: str
    owner: str
    conditions: Mapping[str, str]
    capacity: int | None
    agencies: Sequence[str] | None
    local_recalibration: bool
    rereferral: Sequence[str]
    days: int | None


def draft_decision(
    run: Path, entries: Sequence[Entry], panel: Panel, wanted: Wanted, audit: Path | None, now: datetime
) -> tuple[GateReport, Callable[[], Decision]]:
    """What the gates say of the run, and the decision, or `PanelError` with the gates that forbid it."""
    found = read_run(run)
    registration = check_run(found, entries, panel)
    report = judged(registration, found.result, None if audit is None else read_audit(audit))
    subject = subject_of(found, registration, report)

    def make() -> Decision:
        approves = wanted.verdict in APPROVALS
        if approves and not report.passed:
            raise PanelError(_failed(report))
        if approves:
            check_code(found)
        days = panel.longest_days if approves and wanted.days is None else wanted.days
        if days is not None and not 1 <= days <= panel.longest_days:
            raise PanelError(
                f"--expires must be from 1 to the {panel.longest_days} days of panel.toml, got {days}"
            )
        facts = {
            "panel": panel.name,
            "verdict": wanted.verdict,
            "decided": now,
            "expires": None if days is None else now + timedelta(days=days),
            "subject": subject,
            "gates_passed": report.passed,
            "rationale": wanted.rationale,
            "dissent": wanted.dissent,
            "owner": wanted.owner,
            "conditions": [{"id": name, "text": text} for name, text in wanted.conditions.items()],
            "limits": {
                "capacity": wanted.capacity,
                "agencies": wanted.agencies,
                "local_recalibration": wanted.local_recalibration,
            },
            "rereferral": list(wanted.rereferral),
        }
        return made(Decision, facts)

    return report, make


def other_releases(run: Path) -> list[str]:
    """What to read before signing, where another release made the run."""
    other = other_code(read_run(run))
    return [] if other is None else [f"take care: {other}"]


def unmeasured(run: Path, texts: Sequence[str]) -> list[str]:
    """A sentence for each of `texts` that is a threshold on a number that the run's result does not have."""
    metrics = at_of(read_run(run).result, "final", "metrics") or {}
    places = [(text, threshold) for text in texts if (threshold := rereferral.read(text)) is not None]
    return [
        f"take care: {text!r} asks for {threshold.what}, which is not in the run's result: a retest could not tell"
        for text, threshold in places
        if threshold.of(metrics) is None
    ]


def keep_gates(run: Path, report: GateReport) -> None:
    """Write what the gates said beside the decision's other files."""
    write_whole(run / GATES, report.canonical.encode(), mode=0o644)


def _failed(report: GateReport) -> str:
    failed = [f"gate {gate.name}: {gate.sentence}" for gate in report.gates if not gate.passed]
    last = "a model that failed a gate cannot be approved: change the model, or register a run with other gates first"
    return "\n".join([*failed, last])


def read_audit(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path.read_bytes())
    except (OSError, *UNREADABLE):
        found = None
    if not isinstance(found, dict):
        raise PanelError(f"{path} is not what `fedrisk audit` wrote: name its JSON file with --audit")
    return found
