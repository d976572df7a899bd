"""Section 2, compared with what: other ways of training on the same people, also as a page of its own."""

from collections.abc import Sequence
from typing import Any

from federation.panel import charts
from federation.panel.charts import Panel, Point
from federation.panel.sections.numbers import GONE, Json, Unit, real, say
from federation.panel.svg import Mark

KINDS = {
    "pooled": "all records in one place: a yardstick, not an option",
    "federated": "agencies together, no privacy noise",
    "private": "agencies together, with privacy noise",
    "shared": "agencies together, with privacy noise that they share",
    "alone": "one agency by itself",
    "sklearn": "a standard tool, all records in one place",
}
COLUMNS: tuple[tuple[str, str, str, Unit], ...] = (  # measure, its name, its name on a picture
    ("auc", "Ranking", "Ranking", "decimal"),
    ("brier", "Distance from the truth", "Distance", "decimal"),
    ("worst_gap", "Worst gap", "Worst gap", "points"),
)


def comparison(reference: Json | None) -> dict[str, Any] | None:
    """Rows of means with their spread over seeds, and the pictures; None where there is nothing to compare."""
    rows = list((reference or {}).get("rows") or ())
    if reference is None or not rows:
        return None
    panels = []
    for key, _, words, unit in COLUMNS:
        marks = [_spread_mark(row.get(key)) for row in rows]
        within = [*marks, Mark(0.0)] if unit == "points" else marks
        panels.append(Panel(words, marks, charts.spread(within, (0, 1), 0.04), percent=unit == "points"))
    return {
        "note": str(reference.get("note") or ""),
        "seeds": len(reference.get("seeds") or ()),
        "head": [words for _, words, _, _ in COLUMNS],
        "rows": [
            (
                row.get("name"),
                KINDS.get(str(row.get("kind")), str(row.get("kind") or "")),
                _own_epsilon(row),
                *(mean_sd(row.get(key), unit) for key, _, _, unit in COLUMNS),
            )
            for row in rows
        ],
        "chart": charts.dots(
            "comparison",
            "Each way of training, by mean and spread",
            [_row_name(row) for row in rows],
            panels,
            longest=36,
        ),
        "curve": _curve(rows),
    }


def mean_sd(value: Json | None, unit: Unit) -> str:
    """A mean with its standard deviation over seeds."""
    mark = _spread_mark(value)
    if value is None or mark is None:
        return GONE
    sd = f" ± {say(float(value['sd']), unit, bare=True).lstrip('+')}" if real(value.get("sd")) else ""
    return f"{say(mark.value, unit, bare=True)}{sd}" + (" points" if unit == "points" else "")


def _row_name(row: Json) -> str:
    own = _own_epsilon(row)
    return f"{row.get('name')}, ε {own}" if own else str(row.get("name"))


def _own_epsilon(row: Json) -> str:
    return f"{row['epsilon']:g}" if real(row.get("epsilon")) else ""


def _spread_mark(value: Json | None) -> Mark | None:
    if value is None or not real(value.get("mean")):
        return None
    mean, sd = float(value["mean"]), value.get("sd")
    return Mark(mean) if sd is None or not real(sd) else Mark(mean, mean - sd, mean + sd)


def _curve(rows: Sequence[Json]) -> str | None:
    """Ranking against ε, where there are at least two private rows."""
    private = [
        row
        for row in rows
        if real(row.get("epsilon")) and row["epsilon"] > 0 and _spread_mark(row.get("auc"))
    ]
    if len({row["epsilon"] for row in private}) < 2:
        return None
    points = [
        Point(row["epsilon"], _spread_mark(row.get("auc")), f"{row['epsilon']:g}")
        for row in sorted(private, key=lambda row: float(row["epsilon"]))
    ]
    levels = [
        (str(row.get("name")), m.value)
        for row in rows
        if row not in private and (m := _spread_mark(row.get("auc")))
    ]
    ends = charts.spread([*(p.mark for p in points), *(Mark(level) for _, level in levels)], (0, 1), 0.04)
    return charts.cost_curve("curve", "Ranking against privacy cost", points, levels, ends)
