"""A finding: one sentence that a result supports, with where its parts stand. None is said where it supports none.

What is read with `supported` needs all its sources: a sentence that quotes what a result lacks is not said at all.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

from federation.panel.facts import (
    answer_source,
    answered,
    at,
    metrics_source,
    pointer,
    table,
)
from federation.panel.sections.numbers import shown
from federation.panel.svg import Mark

Json = Mapping[str, Any]


@final
@dataclass(frozen=True)
class Finding:
    """`text`: a sentence or a few. `sources`: JSON pointers into result.json, as in `facts`."""

    text: str
    sources: tuple[str, ...]


Find = Callable[[Json], Finding | None]


def supported(find: Find, result: Json) -> Finding | None:
    """The finding, unless one of its sources is not in the result, null or an empty text."""
    finding = find(result)
    if finding is None or any(at(result, source) in (None, "") for source in finding.sources):
        return None
    return finding


def answer(key: str) -> Find:
    """The finding that people answered `key` before the run."""

    def find(result: Json) -> Finding | None:
        said = answered(result, key)
        return None if said is None else Finding(f"Answered at registration: {said}", (answer_source(key),))

    return find


def metrics(result: Json) -> tuple[str, Json]:
    """Where the metrics stand that the papers speak of, and the metrics; "" and {} where there are none."""
    source = metrics_source(result)
    return ("", {}) if source is None else (source, at(result, source))


def measured(result: Json, *keys: str) -> tuple[Mark, str] | None:
    """The estimate at `keys` of the metrics, with its source, if it may be shown."""
    source, _ = metrics(result)
    number = shown(at(result, source + pointer(*keys))) if source else None
    return None if number is None else (number, source + pointer(*keys))


def per_level(result: Json, where: str, name: str) -> tuple[str, tuple[str, ...]]:
    """`female 61.2% (58.0% to 64.1%), male ...`: rate `name` of each table below `where`, those that may be shown."""
    parts, sources = [], []
    for level, entry in table(at(result, where)).items():
        number = shown(table(entry).get(name))
        if number is not None:
            parts.append(f"{level} {percent(number)}")
            sources.append(where + pointer(level, name))
    return ", ".join(parts), tuple(sources)


def decimal(number: Mark) -> str:
    """`0.737 (0.720 to 0.754)`."""
    return _with_ends(number, lambda value: f"{value:.3f}")


def percent(number: Mark) -> str:
    """`41.2% (39.0% to 43.5%)`."""
    return _with_ends(number, lambda value: f"{100 * value:.1f}%")


def points(number: Mark) -> str:
    """`9.4 points (6.1 to 12.7)`: a difference of two shares, in percentage points."""
    ends = _ends(number, lambda value: f"{100 * value:.1f}")
    return f"{100 * number.value:.1f} points{ends}"


def _with_ends(number: Mark, say: Callable[[float], str]) -> str:
    return say(number.value) + _ends(number, say)


def _ends(number: Mark, say: Callable[[float], str]) -> str:
    if number.low is None or number.high is None:
        return ""
    return f" ({say(number.low)} to {say(number.high)})"


def listed(names: Iterable[Any]) -> str:
    """`a, b and c`."""
    *most, last = [str(name) for name in names] or ["none"]
    return f"{', '.join(most)} and {last}" if most else last
