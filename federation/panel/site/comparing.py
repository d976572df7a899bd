"""Two runs side by side: which settings differ, and which differences between what they reached are more than noise.

Every number is one of the two results'. The interval of a difference is made of the two intervals (Zou and Donner,
Statistics in Medicine 2008, "MOVER"), as if the runs had been tested on different people. Where they were tested on the
same, it is wider than it had to be: then "cannot be told from noise" is said too often, and never too seldom.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from federation.panel.registered import gates, registration_of
from federation.panel.sections.fair import GAPS
from federation.panel.sections.numbers import MEASURES, Json, Unit, cell, certainty, epsilon, of_mark, shown
from federation.panel.svg import Mark
from federation.panel.words import flat
from federation.server.gates import at_of

SETTINGS = (
    "experiment", "purpose", "seed", "engine", "simulation", "model", "strategy", "rounds_planned", "privacy", "tables",
    "disclosure", "robustness", "contract", "fedrisk_version", "code_sha256",
)  # fmt: skip
NOT_SET = (
    "privacy.epsilon",
    "contract.description",
    "robustness.least_agencies",
)  # what came out, or is said elsewhere
NOISE, MORE = "cannot be told from noise", "more than noise"


def compare(first: Json, second: Json) -> dict[str, Any]:
    """What the page shows of two results."""
    one, other = _settings(first), _settings(second)
    names = list(dict.fromkeys([*one, *other]))
    differ = [
        (name, one.get(name, "–"), other.get(name, "–")) for name in names if one.get(name) != other.get(name)
    ]
    return {
        "settings": differ,
        "same": len(names) - len(differ),
        "cautions": list(_cautions(first, second)),
        "measures": [
            (words, says, *_beside(_overall(first, name), _overall(second, name), unit))
            for name, (words, says, unit) in MEASURES.items()
            if _overall(first, name) is not None or _overall(second, name) is not None
        ],
        "gaps": list(_gaps(first, second)),
        "gates": _gates(first, second),
        "costs": _costs(first, second),
    }


def difference(first: Mark, second: Mark) -> Mark:
    """`second` less `first`, and the ends of its interval where both have theirs."""
    value = second.value - first.value
    if None in (first.low, first.high, second.low, second.high):
        return Mark(value)
    below = math.hypot(second.value - second.low, first.high - first.value)  # type: ignore[operator]
    above = math.hypot(second.high - second.value, first.value - first.low)  # type: ignore[operator]
    return Mark(value, value - below, value + above)


def verdict(first: Mark | None, second: Mark | None) -> str:
    """Whether two numbers differ by more than their noise, in words."""
    if first is None or second is None:
        return "cannot be said: one of them is not shown"
    found = difference(first, second)
    if found.low is None or found.high is None:
        return "cannot be said: there is no interval"
    return NOISE if found.low <= 0 <= found.high else MORE


def _beside(one: Json | None, other: Json | None, unit: Unit) -> tuple[Any, Any, Any, str]:
    """Both as cells, their difference as a cell, and the verdict."""
    marks = shown(one), shown(other)
    apart = None
    if marks[0] is not None and marks[1] is not None:
        found = difference(marks[0], marks[1])
        unit_apart: Unit = "points" if unit == "percent" else unit
        apart = None if unit == "count" else of_mark(found, unit_apart)
    return cell(one, unit), cell(other, unit), apart, verdict(*marks)


def _overall(result: Json, name: str) -> Json | None:
    found = at_of(result, "final", "metrics", "overall", name)
    return found if isinstance(found, Mapping) else None


def _gaps(first: Json, second: Json) -> Iterator[tuple[Any, ...]]:
    both = [at_of(result, "final", "metrics", "gaps") or {} for result in (first, second)]
    for attribute in dict.fromkeys([*both[0], *both[1]]):
        for name, (words, _) in GAPS.items():
            one, other = ((gaps.get(attribute) or {}).get(name) for gaps in both)
            if one is not None or other is not None:
                yield (f"{words}, by {attribute}", *_beside(one, other, "points"))


def _settings(result: Json) -> dict[str, str]:
    values = {name: result[name] for name in SETTINGS if result.get(name) is not None}
    trained = [
        name for name, facts in (result.get("agencies") or {}).items() if facts.get("status") == "trained"
    ]
    values["agencies that trained"] = ", ".join(sorted(trained))
    registration = registration_of(result)
    if registration is not None:
        values |= {"registered terms": registration.terms, "registered gates": registration.gates}
    return {name: text for name, text in flat(values) if not name.startswith(NOT_SET)}


def _cautions(first: Json, second: Json) -> Iterator[str]:
    """Why two numbers of one name may not be about the same thing."""
    told = {
        "data contracts: their people, outcomes or columns may not be the same": ("contract", "sha256"),
        "purposes": ("purpose",),
        "cutoffs: who is flagged was decided by another line": ("final", "metrics", "cutoff"),
    }
    for words, path in told.items():
        if at_of(first, *path) != at_of(second, *path):
            yield f"The two runs have different {words}."


def _gates(first: Json, second: Json) -> list[tuple[str, Any, Any]]:
    """Name, and of each run what was asked, what was found and whether it passed; None where that run had no such gate."""
    both = [
        {row[0]: row[1:4] for row in (gates(result) or {"rows": []})["rows"]} for result in (first, second)
    ]
    return [(name, both[0].get(name), both[1].get(name)) for name in dict.fromkeys([*both[0], *both[1]])]


def _costs(first: Json, second: Json) -> list[tuple[str, list[str]]]:
    """Whose ε it is, and of each run ε and what an even bet about a person becomes."""
    results = (first, second)

    def row(path: Sequence[str]) -> list[str]:
        spent = [at_of(result, *path) for result in results]
        return [f"{epsilon(value)} ({certainty(value)})" for value in spent]

    names = dict.fromkeys(name for result in results for name in result.get("agencies") or {})
    rows = [("the agency that gave most", row(("privacy", "epsilon_busiest")))]
    for name in names:
        there = [name in (result.get("agencies") or {}) for result in results]
        said = row(("agencies", name, "epsilon", "total"))
        rows.append(
            (name, [text if here else "not in this run" for text, here in zip(said, there, strict=True)])
        )
    return rows
