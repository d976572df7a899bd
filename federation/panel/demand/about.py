"""What a map, a cohort and early signs have in common: when, who took part, and what it cost."""

import contextlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from federation.panel.demand.said import told, words
from federation.panel.sections.about import REASONS, STATUS
from federation.panel.sections.numbers import certainty, epsilon, join, real, shown

Json = Mapping[str, Any]
BECAME = {**STATUS, "counted": "is in it", "not held": "holds none of what was asked"}


def at(text: str) -> str:
    """A time of a JSON file as a reader writes it."""
    with contextlib.suppress(ValueError):
        made = datetime.fromisoformat(text).astimezone(UTC)
        return f"{made.day} {made:%B %Y, %H:%M} UTC"
    return text


def cost(found: Json) -> dict[str, Any]:
    """ε by agency, and for a person whom several know."""
    privacy = found["privacy"]
    spent = {name: each["epsilon"] for name, each in found["agencies"].items()}
    several = privacy["epsilon_at_several_agencies"]
    return {
        "epsilon": epsilon(privacy["epsilon"]),
        "sure": certainty(privacy["epsilon"]),
        "rows": [
            ("one of " * (len(names) > 1) + join(names), epsilon(value), certainty(value))
            for value, names in _alike(spent).items()
        ],
        "several": [
            (count, epsilon(value), certainty(value)) for count, value in several.items() if count != "1"
        ],
        "both": epsilon(several["2"]) if "2" in several else None,
        "both_sure": certainty(several["2"]) if "2" in several else "",
        "unit": unit(privacy["unit"]),
    }


def _alike(spent: Mapping[str, float | None]) -> dict[float | None, list[str]]:
    """ε -> the agencies that paid it."""
    found: dict[float | None, list[str]] = {}
    for name, value in spent.items():
        found.setdefault(value, []).append(name)
    return found


def unit(text: str) -> str:
    """What is protected, in the page's words: a row of a table is a record."""
    return text.replace("row", "record", 1) if text.startswith("row") else text


def agency(name: str, each: Json) -> dict[str, Any]:
    """A row of the table of agencies."""
    reason = each["reason"]
    return {
        "name": name,
        "kind": words(each["kind"] or ""),
        "in": each["status"] == "counted",
        "status": BECAME.get(each["status"], words(each["status"])),
        "reason": REASONS.get(str(reason).upper(), str(reason)) if reason else "",
        "size": f"{each['public_size']:,}" if real(each["public_size"]) else "not given",
        "people": told(shown(each["people"]), share=False),
    }
