"""Which numbers of a map are clearly apart, as sentences: between areas or groups, and between agencies.

Two are named only where the wider intervals of map.json are apart, which hold for all compared numbers together
(Bonferroni), so that of 100 maps in which no two numbers differ 95 or more have no sentence here. "Most" and "least" need
an interval above or below those of all others that can be told.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from federation.panel.demand.said import (
    MANY,
    TOGETHER,
    asked,
    compared,
    condition,
    decimals,
    down,
    ends,
    is_share,
    parts,
    up,
    words,
)
from federation.panel.svg import Mark

Json = Mapping[str, Any]
Levels = tuple[str, ...]
Said = tuple[str, str]  # what it is about, and the rest
MOST = 6  # sentences about areas and groups, and about agencies
EACH = 2  # of each agency
OTHER = "other"  # missing, unknown or unlisted: nothing to act on
PLACES = ("area", "borough", "city", "district", "neighbourhood", "place", "region", "town", "ward", "zone")


@final
@dataclass(frozen=True)
class Apart:
    """The highest and the lowest of several numbers. gap: between their intervals, by the size of the highest."""

    high: Mark
    low: Mark
    at_high: Levels
    at_low: Levels
    strict: tuple[bool, bool]  # whether the highest is above all others, and the lowest below
    gap: float
    places: int  # decimals, the same of both


def standing_out(found: Json) -> dict[str, Any]:
    """What is clear between areas and groups, between agencies, and at each agency: shares first, the clearest first."""
    attributes, together, agencies = found["attributes"], [], []
    own: dict[str, list[tuple[bool, float, Said]]] = {name: [] for name in found["agencies"]}
    queries = [query for query in asked(found) if _is_compared(query, found)]
    for query in queries:
        counts, alone = not is_share(query), len(query["agencies"]) == 1
        for name, cells in parts(query) if query["by"] else ():
            apart = _apart(compared(cells), not counts)
            if apart is None:
                continue
            at = f", at {name}" if alone and len(found["agencies"]) > 1 else ""
            said = (counts, -apart.gap, _of_levels(query, apart, attributes, at))
            if alone or name == TOGETHER:
                together.append(said)
            elif not counts or len(query["by"]) == 1:
                own[name].append(said)
        agencies += [(counts, -gap, said) for gap, said in sorted(_between(query, attributes))[-1:]]
    return {
        "together": _clearest(together, MOST),
        "agencies": _clearest(agencies, MOST),
        "own": [(name, _clearest(said, EACH)) for name, said in own.items() if said],
        "numbers": f"{found['compared']['numbers']:,}" if "compared" in found else "",
        "asked": bool(queries),
    }


def _clearest(said: Sequence[tuple[bool, float, Said]], most: int) -> list[Said]:
    return [text for *_, text in sorted(said)[:most]]


def _is_compared(query: Json, found: Json) -> bool:
    """Not by month; and of a yes and a no each says the other."""
    if any(found["attributes"][name]["months"] for name in query["by"]):
        return False
    flags = [sorted(found["attributes"][name]["levels"]) == ["no", "yes"] for name in query["by"]]
    return is_share(query) or not (any(flags) or not query["by"])


def _apart(marks: Mapping[Levels, Mark | None], share: bool) -> Apart | None:
    """The two that are farthest apart, where they are so as written."""
    known = [(levels, mark) for levels, mark in marks.items() if mark is not None and OTHER not in levels]
    if len(known) < 2:
        return None
    at_high, high = max(known, key=lambda each: ends(each[1])[0])
    at_low, low = min(known, key=lambda each: ends(each[1])[1])
    places = max(decimals(*ends(high)), decimals(*ends(low))) if share else 0
    scale, least, most = 100 if share else 1, ends(high)[0], ends(low)[1]
    if down(scale * least, places) <= up(scale * most, places):
        return None
    strict = (
        all(ends(mark)[1] < least for levels, mark in known if levels != at_high),
        all(ends(mark)[0] > most for levels, mark in known if levels != at_low),
    )
    return Apart(high, low, at_high, at_low, strict, (least - most) / least, places)


def _of_levels(query: Json, apart: Apart, attributes: Json, at: str) -> Said:
    high, low = (_where(query["by"], levels) for levels in (apart.at_high, apart.at_low))
    if len(query["by"]) == 1:
        low = low.replace(f"where {words(query['by'][0])} is", "where it is", 1)
    return _sentence(query, apart, attributes, high, low, at)


def _between(query: Json, attributes: Json) -> Iterator[tuple[float, Said]]:
    """The agencies that are clearly apart in a share, overall or in one level."""
    cells = {name: compared(part) for name, part in query["agencies"].items()} if is_share(query) else {}
    for levels in dict.fromkeys(levels for part in cells.values() for levels in part):
        apart = _apart({(name,): part.get(levels) for name, part in cells.items()}, share=True)
        if apart is not None:
            high, low = (f"at {name}" for (name,) in (apart.at_high, apart.at_low))
            at = f", {_where(query['by'], levels)}" if levels else ""
            yield apart.gap, _sentence(query, apart, attributes, high, low, at)


def _sentence(query: Json, apart: Apart, attributes: Json, high: str, low: str, at: str) -> Said:
    """What it is about, and the rest: at which ends, and between what."""
    share, many = is_share(query), MANY[query["counts"]]
    first, second = (_between_ends(mark, share, apart.places) for mark in (apart.high, apart.low))
    if share:
        among = condition(query["among"] or {}, attributes)
        about = condition(query["where"], attributes) or "any record"
        about += f" of {many} with {among}" if among else ""
        first += f" of every 100 {many}"
        most, more, least = "most common", "more common", "least"
    else:
        about, most, more, least = words(query["name"]), "the most", "more", "the fewest"
    highest, lowest = apart.strict
    if not highest:
        rest = f"{more} {high} ({first}) than {low} ({second})"
    elif lowest:
        rest = f"{most} {high} ({first}), {least} {low} ({second})"
    else:
        rest = f"{most} {high} ({first}), against {second} {low}"
    return f"{about[:1].upper()}{about[1:]}{at}", f"{rest}."


def _where(by: Sequence[str], levels: Levels) -> str:
    """in Harbour East; where sex is “female”; where sex is “female” and age band is “18 to 39”."""
    places = [level for name, level in zip(by, levels, strict=True) if _is_place(name)]
    others = [
        f"{words(name)} is “{level}”" for name, level in zip(by, levels, strict=True) if not _is_place(name)
    ]
    said = [f"in {', '.join(places)}"] * bool(places) + [f"where {' and '.join(others)}"] * bool(others)
    return " ".join(said)


def _is_place(attribute: str) -> bool:
    return any(word in PLACES for word in attribute.lower().split("_"))


def _between_ends(mark: Mark, share: bool, places: int) -> str:
    low, high = ends(mark)
    scale = 100 if share else 1
    first, second = f"{down(scale * low, places):,.{places}f}", f"{up(scale * high, places):,.{places}f}"
    return first if low == high else f"{first} to {second}"
