"""Section 4, super-users: who is flagged already gets most, what the model adds beyond them, how early, and next to practice."""

from typing import Any

from federation.panel import charts
from federation.panel.charts import Panel
from federation.panel.sections.numbers import MEASURES, Json, Unit, cell, given, number, real, shown, tables
from federation.panel.sections.tensions import share, share_said

BY_INTENSITY = (
    ("share_of_flagged", "Of all flagged"),
    ("selection_rate", "Flagged"),
    ("tpr", "Found"),
    ("base_rate", "Had the outcome"),
)
PRACTICE = ("selection_rate", "tpr", "fpr", "ppv")
OVERLAP = {
    "agreement": ("people", "are flagged by both or by neither"),
    "found_only_by_model": ("who had the outcome", "are found by the model alone"),
    "found_only_by_practice": ("who had the outcome", "are found by today's practice alone"),
}


def users(result: Json, metrics: Json | None) -> dict[str, Any] | None:
    """What the second histogram says; None where the contract declares nothing of it."""
    found = result.get("users")
    if not found:
        return None
    declared = {
        name: found.get("declared", {}).get(name) if found.get("declared") else None for name in DECLARED
    }
    return {
        "declared": [(words, _declared(name, declared[name])) for name, words in DECLARED.items()],
        "sigma": number(found.get("sigma"), ".3g", "not known"),
        "noisy": real(found.get("sigma")) and found["sigma"] > 0,
        "noise_known": real(found.get("sigma")),
        "on": {"test": "people set aside for the test", "tune": "people set aside for tuning"}.get(
            str(found.get("part")), given(found.get("part"))
        ),
        "intensity": _intensity(found),
        "most": share_said(found.get("most_intensive_share_of_flagged")),
        "most_known": shown(found.get("most_intensive_share_of_flagged")) is not None,
        "beyond": share_said(found.get("found_beyond")),
        "lead": _lead(found),
        "practice": _practice(found.get("practice"), (metrics or {}).get("overall") or {}),
    }


DECLARED = {
    "intensity": "How intensively people use services",
    "lead_time": "How long after a flag the outcome came",
    "practice": "Who is flagged today",
}


def _declared(name: str, found: Json | None) -> str | None:
    """What the contract says of it, or None."""
    if not found:
        return None
    said = str(found.get("description") or "a description is not given").rstrip(".")
    if name == "intensity" and found.get("levels"):
        said += f" (from least to most: {', '.join(map(str, found['levels']))})"
    return f"{said} – column {given(found.get('column'))}"


def _intensity(found: Json) -> dict[str, Any] | None:
    levels = tables(found.get("by_intensity"))
    if not levels:
        return None
    declared = ((found.get("declared") or {}).get("intensity") or {}).get("levels")
    panels = [
        Panel(words, [shown(t.get(name)) for t in levels.values()], percent=True)
        for name, words in BY_INTENSITY
    ]
    return {
        "most": declared[-1] if declared else "the last level",
        "chart": charts.dots("intensity", "By use of services", list(levels), charts.comparable(panels)),
        "head": ["People counted", *(words for _, words in BY_INTENSITY)],
        "rows": [
            (name, [cell(t.get("people"), "count"), *(share(t.get(key)) for key, _ in BY_INTENSITY)])
            for name, t in levels.items()
        ],
    }


def _lead(found: Json) -> dict[str, Any] | None:
    """How long after the flag the outcome came, for those rightly flagged."""
    lead = found.get("lead")
    if not lead:
        return None
    unit = str(((found.get("declared") or {}).get("lead_time") or {}).get("unit") or "")
    bands = list(lead.get("bands") or ())
    names = [_band(band, unit) for band in bands]
    if lead.get("unknown"):
        bands, names = [*bands, {"share": lead["unknown"]}], [*names, "not known"]
    marks = [shown(band.get("share")) for band in bands]
    panel = Panel("Of those rightly flagged", marks, charts.spread([*marks], (0, 1)), percent=True)
    return {
        "median": _band(lead["median"], unit) if lead.get("median") else None,
        "chart": charts.dots("lead-chart", "Time from flag to outcome", names, [panel])
        if lead.get("bands")
        else None,
        "rows": [(name, share(band.get("share"))) for name, band in zip(names, bands, strict=True)],
    }


def _band(band: Json, unit: str) -> str:
    low, high = band.get("low"), band.get("high")
    if not real(high):
        return f"{number(low)} {unit} or more"
    return f"{number(low)} to {number(high)} {unit}" if real(low) else f"up to {number(high)} {unit}"


def _practice(found: Json | None, overall: Json) -> dict[str, Any] | None:
    """The model beside what is done today, on the same people."""
    if not found:
        return None
    benefit: tuple[str, Unit] = ("net_benefit", "benefit")
    rows = [(MEASURES[name][0], share(overall.get(name)), share(found.get(name))) for name in PRACTICE]
    worth = [cell(each.get(benefit[0]), benefit[1], "not measured") for each in (overall, found)]
    return {
        "rows": [*rows, ("Worth (rightly flagged, less the price of wrongly flagged)", worth[0], worth[1])],
        "overlap": [(of, what, share(found.get(name))) for name, (of, what) in OVERLAP.items()],
    }
