"""`retest.html`: a model measured again, in plain words, as one file that needs nothing from elsewhere.

It reads `retest.json` and nothing else. A value without `publishable: true` never gets that far.
"""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from federation.durable import write_whole
from federation.panel.decisions import day
from federation.panel.report import template
from federation.panel.sections.about import STATUS
from federation.panel.sections.numbers import MEASURES, Cell, Unit, cell, of_mark
from federation.panel.svg import Mark

Json = Mapping[str, Any]
BECAME = {**STATUS, "counted": "was counted"}
VERDICTS = {
    "due": "due",
    "not due": "not due",
    "cannot be told": "cannot be told",
    "judged by people": "people judge this",
}


def write_retest(found: Json, path: Path) -> Path:
    """Write the page of `found` (schema 1 of retest.json) to `path`, whole or not at all."""
    write_whole(path, render_retest(found).encode(), mode=0o644)
    return path


def render_retest(found: Json) -> str:
    """The page as text."""
    return str(template("retest.html.j2").render(**view(found)))


def view(found: Json) -> dict[str, Any]:
    """Everything that the page shows, as texts and tables."""
    overall = found["final"]["metrics"]["overall"]
    decision = found["decision"]
    return {
        "found": found,
        "created": _at(found["created"]),
        "decision": decision
        if decision is None
        else {
            **decision,
            "decided": _at(decision["decided"]),
            "expires": "never" if decision["expires"] is None else _at(decision["expires"]),
        },
        "rows": [_row(each) for each in found["thresholds"]],
        "measures": [
            (words, says, cell(overall[name], unit))
            for name, (words, says, unit) in MEASURES.items()
            if name in overall
        ],
        "agencies": [
            (name, BECAME.get(facts["status"], facts["status"]), _epsilon(facts["epsilon"]["total"]))
            for name, facts in found["agencies"].items()
        ],
    }


def _row(threshold: Json) -> dict[str, Any]:
    place = threshold["threshold"]
    unit: Unit = "count" if place is not None and place["measure"] == "people" else "decimal"
    then = threshold["then"]
    return {
        "text": threshold["text"] + ("" if threshold["decided"] else " (asked for now, not by the decision)"),
        "sentence": threshold["sentence"],
        "due": threshold["verdict"] == "due",
        "verdict": VERDICTS[threshold["verdict"]] + (", may be noise" if threshold["may_be_noise"] else ""),
        "then": Cell("–", hidden=True)
        if then is None
        else of_mark(Mark(then["value"], then["low"], then["high"]), unit),
        "now": Cell("–", hidden=True) if threshold["found"] is None else cell(threshold["found"], unit),
    }


def _epsilon(value: float | None) -> str:
    return "no limit" if value is None else f"{value:.2f}"


def _at(text: str) -> str:
    return day(datetime.fromisoformat(text))
