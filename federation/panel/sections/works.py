"""Section 2, does it work, for whom: ranking, calibration, and what happens to 1,000 people."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from federation.panel import charts
from federation.panel.charts import Panel, Point
from federation.panel.sections.numbers import (
    MEASURES,
    Cell,
    Json,
    cell,
    epsilon,
    given,
    hundred,
    number,
    of_thousand,
    real,
    shown,
    table,
    tables,
)
from federation.panel.svg import Mark

# measure -> of which 1,000 people, what happens to them
FREQUENCIES = {
    "selection_rate": ("people", "are flagged"),
    "tpr": ("who had the outcome", "are found"),
    "fnr": ("who had the outcome", "are missed"),
    "fpr": ("who did not have it", "are wrongly flagged"),
    "ppv": ("who are flagged", "had the outcome"),
    "accuracy": ("people", "are rightly flagged or rightly left"),
}
BY_AGENCY = ("auc", "selection_rate", "tpr", "fpr")


def measured(result: Json) -> tuple[Json | None, str | None]:
    """The metrics that the page is about, and on whom they were measured, in words."""
    final, records = result.get("final") or {}, list(result.get("checkpoints") or ())
    if final.get("metrics"):
        return final["metrics"], f"people set aside for the test, after round {given(final.get('round'))}"
    if records and records[-1].get("metrics"):
        at = f"people set aside for tuning, after round {given(records[-1].get('round'))}"
        return records[-1]["metrics"], f"{at}: there is no final test"
    return None, None


def works(metrics: Json, result: Json) -> dict[str, Any]:
    """How well it ranks, whether its numbers can be believed, and for which agencies."""
    overall = metrics.get("overall") or {}
    points = [Point(centre, shown(observed)) for _, _, centre, observed in _bands(metrics)]
    auc, ratio = shown(overall.get("auc")), shown(overall.get("observed_expected"))
    agencies = tables(metrics.get("agencies"))
    return {
        "pairs": None if auc is None else hundred(auc),
        "coin": auc is not None and auc.low is not None and auc.low <= 0.5,
        "expected": None if ratio is None else hundred(ratio),
        "brier": cell(overall.get("brier"), "decimal"),
        "same": cell(
            ((metrics.get("constant") or {}).get("base_rate") or {}).get("brier"),
            "decimal",
            "an amount that was not measured",
        ),
        "views": _views(metrics),
        "noise": _noise(result),
        "table": [(*MEASURES[name][:2], cell(overall.get(name), MEASURES[name][2])) for name in MEASURES],
        "bands": [
            (f"{low:.2f} to {high:.2f}", f"{centre:.2f}", cell(observed, "percent"))
            for low, high, centre, observed in _bands(metrics)
        ],
        "calibration": charts.calibration(
            "calibration-chart", "What the model said, and what happened", points
        )
        if points
        else None,
        "time": _over_time([record for record in result.get("checkpoints") or () if record.get("metrics")]),
        "agencies": table(agencies, (*BY_AGENCY, "fnr", "ppv", "observed_expected", "ece")),
        "agencies_chart": dots("agencies-chart", "By agency", agencies, overall, BY_AGENCY)
        if agencies
        else None,
    }


def dots(
    key: str, title: str, levels: Mapping[str, Json], overall: Json, names: Sequence[str], wide: bool = False
) -> str:
    """A picture with a row for each level, a column for each measure, and everyone's value as a dashed line.

    wide: room for long names.
    """
    panels = []
    for name in names:
        marks = [shown(level.get(name)) for level in levels.values()]
        whole, percent = shown(overall.get(name)), MEASURES[name][2] == "percent"
        reference = None if whole is None else whole.value
        panels.append(Panel(MEASURES[name][0], marks, percent=percent, reference=reference))
    return charts.dots(key, title, list(levels), charts.comparable(panels), longest=40 if wide else 24)


# ---- 1,000 people, at the threshold and at the capacity ----


def _views(metrics: Json) -> dict[str, Any]:
    """The threshold and the capacity side by side: a bar of 1,000 people for each, and rows of rates."""
    capacity = metrics.get("capacity") or {}
    views = [_threshold(metrics)]
    if capacity:
        views.append(_capacity(capacity))
    return {
        "all": views,
        "capacity": bool(capacity),
        "head": [view["head"] for view in views],
        "rows": [
            (of, what, [cell(view["rates"].get(name), "thousand") for view in views])
            for name, (of, what) in FREQUENCIES.items()
        ],
    }


def _threshold(metrics: Json) -> dict[str, Any]:
    cutoff = number(metrics.get("cutoff"), ".2f")
    return _view(
        "thousand", metrics.get("overall") or {}, f"from a score of {cutoff}", {"cutoff": cutoff, "share": ""}
    )


def _capacity(capacity: Json) -> dict[str, Any]:
    share = f"{100 * capacity['share']:g}" if real(capacity.get("share")) else "not given"
    said = {
        "share": share,
        "cutoff": number(capacity.get("cutoff"), ".2f"),
        "chosen_on": {"tune": "people set aside for tuning", "test": "the people of the test"}.get(
            str(capacity.get("chosen_on")), given(capacity.get("chosen_on"))
        ),
    }
    return _view("capacity-bar", capacity.get("overall") or {}, f"at most {share} in 100", said)


def _view(key: str, rates: Json, head: str, said: Mapping[str, str]) -> dict[str, Any]:
    people = of_thousand(rates)
    bar = _bar(key, people) if people else None
    few = shown(rates.get("ppv")) is None
    return {"head": head, "rates": rates, "people": people, "bar": bar, "few": few, **said}


def _bar(key: str, people: Mapping[str, int]) -> str:
    parts = [
        ("found: flagged, and had the outcome", people["found"], "part-found"),
        ("missed: not flagged, but had the outcome", people["missed"], "part-missed"),
        ("wrongly flagged: did not have the outcome", people["wrong"], "part-wrong"),
        ("rightly left: not flagged, no outcome", people["left"], "part-left"),
    ]
    return charts.frequency_bar(key, "1,000 people, by what the model and life did", parts)


def _noise(result: Json) -> str:
    """How much noise is in a count behind these numbers, in words."""
    privacy, final = result.get("privacy") or {}, result.get("final") or {}
    if privacy.get("mechanism") not in ("local", "shared"):
        return "No noise was added to the counts behind them."
    sigma = privacy.get("test_sigma" if final.get("metrics") else "tune_sigma")
    if not real(sigma):
        return "How much noise is in the counts behind them is not given."
    return (
        f"To every count behind them noise was added before it left an agency: two thirds of the time less than "
        f"{sigma:.3g} people up or down. The intervals allow for it."
    )


# ---- calibration, and the time of training ----


def _bands(metrics: Json) -> list[tuple[float, float, float, Json | None]]:
    rows = metrics.get("reliability") or ()
    return [
        (row["low"], row["high"], row["mean_score"], row.get("observed"))
        for row in rows
        if all(real(row.get(key)) for key in ("low", "high", "mean_score"))
    ]


def _over_time(records: Sequence[Json]) -> dict[str, Any] | None:
    """Ranking and worst gap at each checkpoint."""
    if not records:
        return None
    overall = [record["metrics"].get("overall") or {} for record in records]
    auc = [shown(rates.get("auc")) for rates in overall]
    gap = [shown(record["metrics"].get("worst_gap")) for record in records]
    every = math.ceil(len(records) / 8)
    labels = [
        f"round {given(record.get('round'))}\nε {epsilon(record.get('epsilon_busiest'))}"
        if at % every == 0
        else ""
        for at, record in enumerate(records)
    ]
    xs = [float(number(record.get("round"), "g", str(at))) for at, record in enumerate(records)]

    def points(marks: Sequence[Mark | None]) -> list[Point]:
        return [Point(x, mark, words) for x, mark, words in zip(xs, marks, labels, strict=True)]

    ends = charts.spread([*gap, Mark(0.0)], (0, 1))
    series = [
        ("Ranking: higher is better", points(auc), charts.spread(auc, (0, 1)), False),
        ("Worst gap between groups: lower is better", points(gap), ends, True),
    ]
    rows = [
        (
            given(record.get("round")),
            epsilon(record.get("epsilon_busiest")),
            *_checkpoint(rates, record["metrics"]),
        )
        for record, rates in zip(records, overall, strict=True)
    ]
    return {
        "chart": charts.over_time("time", "Ranking and worst gap over the training", series),
        "rows": rows,
    }


def _checkpoint(overall: Json, metrics: Json) -> tuple[Cell, Cell, Cell]:
    return (
        cell(overall.get("auc"), "decimal"),
        cell(overall.get("brier"), "decimal"),
        cell(metrics.get("worst_gap"), "points"),
    )
