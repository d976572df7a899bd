"""Section 3, between agencies and within each of them, and gaps over the checkpoints beside what was asked."""

from collections.abc import Sequence
from typing import Any

from federation.panel import charts
from federation.panel.charts import Panel, Point, Strip
from federation.panel.registered import asked_of
from federation.panel.sections.fair import GAPS, ask
from federation.panel.sections.numbers import (
    MEASURES,
    Json,
    Unit,
    cell,
    given,
    number,
    reading,
    shown,
    tables,
)
from federation.panel.svg import Mark

BETWEEN = ("base_rate", "selection_rate", "tpr", "fpr", "ppv")
SHORT = {
    "demographic_parity": "Flagged",
    "equal_opportunity": "Found",
    "predictive_parity": "Right if flagged",
    "equalized_odds": "Found or wrongly",
}
POINTS: Unit = "points"


def between(metrics: Json) -> dict[str, Any]:
    """How much the same rate differs between agencies, and how much groups differ within each."""
    whole = tables(metrics.get("between_agencies"))
    return {
        "rows": [
            (MEASURES[name][0], cell(estimate, POINTS), reading(shown(estimate)))
            for name in (BETWEEN if whole else ())
            for estimate in (whole.get(name),)
        ],
        "within": [
            _within(at, name, tables(agencies))
            for at, (name, agencies) in enumerate(tables(metrics.get("agency_gaps")).items())
            if agencies
        ],
    }


def _within(at: int, attribute: str, agencies: dict[str, Json]) -> dict[str, Any]:
    panels = [
        Panel(SHORT[gap], [shown(found.get(gap)) for found in agencies.values()], percent=True)
        for gap in GAPS
    ]
    return {
        "name": attribute,
        "chart": charts.dots(
            f"within-{at}",
            f"Gaps by {attribute} within each agency",
            list(agencies),
            charts.comparable(panels),
        ),
        "head": [words for words, _ in GAPS.values()],
        "rows": [(name, [cell(found.get(gap), POINTS) for gap in GAPS]) for name, found in agencies.items()],
    }


def over_time(result: Json) -> dict[str, Any] | None:
    """Each gap at each checkpoint and at the test, beside its registered ceiling; None where none was measured."""
    records = [record for record in result.get("checkpoints") or () if record.get("metrics")]
    final = result.get("final") or {}
    if final.get("metrics"):
        records.append(final)
    gaps = [tables(record["metrics"].get("gaps")) for record in records]
    attributes = list(dict.fromkeys(name for found in gaps for name in found))
    if not attributes:
        return None
    asked = asked_of(result)
    ceilings = {gap: None if asked is None else getattr(asked.gaps, gap) for gap in GAPS}
    marks = {
        (name, gap): [shown((found.get(name) or {}).get(gap)) for found in gaps]
        for name in attributes
        for gap in GAPS
    }
    levels = [Mark(ceiling) for ceiling in ceilings.values() if ceiling is not None]
    every = [mark for found in marks.values() for mark in found]
    ends = charts.spread([*every, *levels, Mark(0.0)], (0, 1))
    labels = [_when(record) for record in records]
    strips = [
        [Strip(_points(marks[name, gap], labels), ends, ceilings[gap]) for gap in GAPS] for name in attributes
    ]
    return {
        "chart": charts.grid(
            "gaps-over-time",
            "Gaps between groups over the training",
            [f"By {name}" for name in attributes],
            list(SHORT.values()),
            strips,
        ),
        "ceilings": any(ceiling is not None for ceiling in ceilings.values()),
        "head": [_long(record) for record in records],
        "rows": [
            (
                name,
                GAPS[gap][0],
                ask(asked, ceilings[gap], POINTS),
                [cell((found.get(name) or {}).get(gap), POINTS) for found in gaps],
            )
            for name in attributes
            for gap in GAPS
        ],
    }


def _points(marks: Sequence[Mark | None], labels: Sequence[str]) -> list[Point]:
    return [Point(float(at), mark, label) for at, (mark, label) in enumerate(zip(marks, labels, strict=True))]


def _when(record: Json) -> str:
    return "test" if record.get("part") == "test" else number(record.get("round"), "g", "")


def _long(record: Json) -> str:
    return "Test" if record.get("part") == "test" else f"Round {given(record.get('round'))}"
