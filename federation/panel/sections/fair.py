"""Section 3, is it fair: each group, declared intersections, the worst group, and gaps beside what was asked."""

from collections.abc import Mapping
from typing import Any

from federation.panel.registered import asked_of
from federation.panel.sections.numbers import (
    HIDDEN,
    MEASURES,
    Cell,
    Json,
    Unit,
    cell,
    is_noise,
    reading,
    say,
    shown,
    table,
    tables,
)
from federation.panel.sections.works import dots
from federation.server.gates import Gates

BY_GROUP = ("base_rate", "selection_rate", "tpr", "fnr", "fpr", "ppv", "observed_expected", "ece")
ON_CHART = ("selection_rate", "tpr", "fpr", "ppv")
DRAWN = 40  # groups of several attributes at most, before those that may not be shown leave the picture
AT_CAPACITY = ("selection_rate", "tpr", "fnr", "fpr", "ppv")
# gap in result.json -> (what differs, the rate that differs)
GAPS = {
    "demographic_parity": ("Flagged", "selection_rate"),
    "equal_opportunity": ("Found", "tpr"),
    "predictive_parity": ("Right if flagged", "ppv"),
    "equalized_odds": ("Found or wrongly flagged, whichever differs more", None),
}
# rate -> (how it reads, whether the largest is worst); those of `Gates.worst_group` first
WORST = {
    "tpr": ("Found least often", False),
    "ppv": ("Least often right if flagged", False),
    "fpr": ("Wrongly flagged most often", True),
    "selection_rate": ("Flagged most often", True),
}


def groups(metrics: Json, result: Json) -> dict[str, Any]:
    """Every attribute with its table, picture and gaps, and who is worst off of all."""
    overall, asked = metrics.get("overall") or {}, asked_of(result)
    found = {name: tables(levels) for name, levels in tables(metrics.get("groups")).items()}
    gaps, capacity = tables(metrics.get("gaps")), (metrics.get("capacity") or {}).get("groups")
    at_capacity = tables(capacity)
    return {
        "attributes": [
            {
                "name": name,
                "table": table(levels, BY_GROUP),
                "chart": dots(f"group-{at}", f"By {name}", levels, overall, ON_CHART),
                "gaps": _gaps(gaps.get(name) or {}, levels, asked),
                "hidden": _hidden(levels),
                "capacity": table(tables(at_capacity.get(name)), AT_CAPACITY, "thousand"),
            }
            for at, (name, levels) in enumerate(found.items())
        ],
        "worst": _worst(metrics.get("worst_gap") or {}),
        "worst_off": _worst_off(found, overall, asked),
        "intersections": _intersections(metrics, overall),
    }


def ask(asked: Gates | None, bound: float | None, unit: Unit, side: str = "most") -> str:
    """What was registered of a number, in words."""
    if asked is None:
        return "not registered"
    return "nothing" if bound is None else f"at {side} {say(bound, unit)}"


def _hidden(levels: Mapping[str, Json]) -> list[str]:
    return [level for level, rates in levels.items() if all(shown(rates.get(m)) is None for m in ON_CHART)]


def _worst(gap: Json) -> dict[str, Any] | None:
    mark = shown(gap)
    if mark is None:
        return None
    return {
        "attribute": gap.get("attribute") or "the groups",
        "cell": cell(gap, "points"),
        "noise": is_noise(mark),
    }


def _worst_off(
    found: Mapping[str, Mapping[str, Json]], overall: Json, asked: Gates | None
) -> list[tuple[str, str, Cell, Cell, str]]:
    """For each rate the group that is worst off: (how, who, how much, everyone, asked)."""
    rows = []
    for rate, (words, largest) in WORST.items():
        seen = {
            f"{attribute}: {level}": (mark.value, rates[rate])
            for attribute, levels in found.items()
            for level, rates in levels.items()
            if (mark := shown(rates.get(rate))) is not None
        }
        unit = MEASURES[rate][2]
        pick = max if largest else min
        who = pick(seen, key=lambda name: seen[name][0]) if seen else "nobody of whom it may be shown"
        bound = None if asked is None else getattr(asked.worst_group, rate, None)
        asks = ask(asked, bound, unit, "most" if largest else "least")
        much = cell(seen[who][1], unit) if seen else Cell(HIDDEN, hidden=True)
        rows.append((words, who, much, cell(overall.get(rate), unit), asks))
    return rows


def _gaps(gaps: Json, levels: Mapping[str, Json], asked: Gates | None) -> list[dict[str, Any]]:
    rows = []
    for name, (words, measure) in GAPS.items():
        mark, ceiling = shown(gaps.get(name)), None if asked is None else getattr(asked.gaps, name)
        rows.append(
            {
                "name": words,
                "cell": cell(gaps.get(name), "points"),
                "asked": ask(asked, ceiling, "points"),
                "between": _between(levels, measure) if mark is not None and measure else "",
                "verdict": reading(mark),
            }
        )
    return rows


def _between(levels: Mapping[str, Json], measure: str) -> str:
    seen = {
        level: mark.value
        for level, rates in levels.items()
        if (mark := shown(rates.get(measure))) is not None
    }
    if len(seen) < 2:
        return ""
    return f"{max(seen, key=lambda k: seen[k])} most, {min(seen, key=lambda k: seen[k])} least"


# ---- people who are in several groups at once ----


def _intersections(metrics: Json, overall: Json) -> dict[str, Any] | None:
    """Groups of two attributes or more; None where none were measured."""
    found = {_short(name): levels for name, levels in tables(metrics.get("intersections")).items()}
    if not found:
        return None
    hidden = _hidden(found)
    drawn = found if len(found) <= DRAWN else {name: found[name] for name in found if name not in hidden}
    return {
        "table": table(found, BY_GROUP),
        "chart": dots(
            "intersections-chart", "People in several groups at once", drawn, overall, ON_CHART[:3], wide=True
        )
        if drawn
        else None,
        "hidden": hidden,
    }


def _short(name: str) -> str:
    """ "sex=female & race=black" as "female, black", where it can be read like that."""
    parts = [part.split("=") for part in name.split(" & ")]
    return ", ".join(part[1] for part in parts) if all(len(part) == 2 for part in parts) else name
