"""Numbers and questions of a map as the words that a service manager reads. Nothing is computed but ways of saying a number.

Ends of intervals are rounded outwards, so that what is read is never narrower than what was found.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from federation.panel.sections.numbers import join, shown
from federation.panel.svg import Mark

Json = Mapping[str, Any]
TOGETHER = "together"
MANY = {"person": "people", "row": "records"}  # what a query counts -> several of them
STEPS = 5  # of a heat map's colours
SENSIBLE = 10.0  # the largest epsilon that a page proposes
TINY = 1e-9  # a float's error, relative, is no reason to round


@final
@dataclass(frozen=True)
class Told:
    """A number that may be read, and its interval. step: how dark its cell is, 0 to `STEPS`; rough: the interval is wider than the number."""

    value: str
    low: str
    high: str
    step: int = 0
    rough: bool = False

    @property
    def between(self) -> str:
        """The interval as text, where there was noise."""
        return "no noise" if self.low == self.value == self.high else f"{self.low.rstrip('%')} to {self.high}"


def told(mark: Mark | None, share: bool, top: float = 0.0) -> Told | None:
    """`mark` as text; None stays None. share: as a percentage, else people. top: the number of the darkest colour.

    A rough number has no colour: the eye is to find what is known.
    """
    if mark is None:
        return None
    low, high = ends(mark)
    value, lowest, highest = _texts(
        mark, 100 if share else 1, decimals(low, high) if share else 0, "%" if share else ""
    )
    rough = is_rough(mark)
    step = 0
    if mark.value > 0 and top > 0 and not rough:
        step = min(max(math.ceil(STEPS * mark.value / top - TINY), 1), STEPS)
    return Told(value, lowest, highest, step, rough)


def is_rough(mark: Mark) -> bool:
    """Whether the interval is wider than the number."""
    low, high = ends(mark)
    return high - low > mark.value


def hundred(mark: Mark) -> Told:
    """A share as so many of every 100."""
    return Told(*_texts(mark, 100, decimals(*ends(mark)), ""))


def _texts(mark: Mark, scale: int, places: int, sign: str) -> tuple[str, str, str]:
    """The number and the ends of its interval; the same three times where there was no noise."""
    low, high = ends(mark)
    value = f"{scale * mark.value:,.{places}f}{sign}"
    if low == high:
        return value, value, value
    return (
        value,
        f"{down(scale * low, places):,.{places}f}{sign}",
        f"{up(scale * high, places):,.{places}f}{sign}",
    )


def ends(mark: Mark) -> tuple[float, float]:
    """The interval; a number without one (no noise was added) is its own."""
    return (
        mark.value if mark.low is None else mark.low,
        mark.value if mark.high is None else mark.high,
    )


def decimals(low: float, high: float) -> int:
    """Of a percentage: one where the interval is narrower than four points."""
    return 0 if high - low >= 0.04 else 1


def down(value: float, places: int) -> float:
    """Rounded towards minus infinity."""
    scale = 10.0**places
    return math.floor(value * scale + TINY * max(1.0, abs(value * scale))) / scale


def up(value: float, places: int) -> float:
    """Rounded towards infinity."""
    scale = 10.0**places
    return math.ceil(value * scale - TINY * max(1.0, abs(value * scale))) / scale


def round_top(most: float) -> float:
    """The end of an axis from 0: a round number, at least `most`."""
    if most <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(most))
    return next(
        each * power for each in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 15) if each * power >= most * (1 - TINY)
    )


def words(name: str) -> str:
    """A name of the workload as words."""
    return name.replace("_", " ")


def marks(cells: Sequence[Json]) -> dict[tuple[str, ...], Mark | None]:
    """Levels -> what may be shown of them."""
    return {tuple(map(str, cell["levels"])): shown(cell) for cell in cells}


def compared(cells: Sequence[Json]) -> dict[tuple[str, ...], Mark | None]:
    """As `marks`, with the wider intervals that hold for all compared numbers of the map together."""
    return {tuple(map(str, cell["levels"])): _compared(cell) for cell in cells}


def _compared(cell: Json) -> Mark | None:
    mark, wide = shown(cell), cell.get("wide")
    return None if mark is None or wide is None else Mark(mark.value, wide["low"], wide["high"])


def parts(query: Json) -> Iterator[tuple[str, Sequence[Json]]]:
    """(agency or TOGETHER, cells); the sum comes first, and not where it is the only agency's own."""
    together, agencies = query["together"], query["agencies"]
    if together is not None and len(agencies) != 1:
        yield TOGETHER, together["cells"]
    yield from agencies.items()


def asked(found: Json) -> list[Json]:
    """The queries of a map; where its unit is a record, all of them count records."""
    as_rows = {"counts": "row"} if found["unit"] == "row" else {}
    return [{**query, **as_rows} for query in found["queries"]]


def is_share(query: Json) -> bool:
    """Whether its numbers are shares, not counts."""
    return bool(query["kind"] == "rate")


def condition(where: Mapping[str, Sequence[str]], attributes: Json) -> str:
    """Those who are meant, in words; "" is everybody."""
    return join(
        _one(name, list(map(str, levels)), attributes[name]["levels"]) for name, levels in where.items()
    )


def _one(name: str, levels: Sequence[str], all_levels: Sequence[str]) -> str:
    if sorted(map(str, all_levels)) == ["no", "yes"] and len(levels) == 1:
        return words(name) if levels[0] == "yes" else f"no {words(name)}"
    others = [level for level in map(str, all_levels) if level not in levels]
    if 0 < len(others) < 3 < len(levels):
        return f"any {words(name)} but {' and '.join(f'“{level}”' for level in others)}"
    return f"{words(name)} {' or '.join(f'“{level}”' for level in levels)}"


def question(query: Json, attributes: Json) -> str:
    """What a query asks, as a sentence."""
    many, who = MANY[query["counts"]], condition(query["where"], attributes)
    by = f", by {join(words(name) for name in query['by'])}" if query["by"] else ""
    if is_share(query):
        among = condition(query["among"] or {}, attributes)
        return f"Of the {many}{f' with {among}' if among else ''}, the share with {who}{by}."
    return f"How many {many}{f' have: {who}' if who else ' there are'}{by}."


def cannot(query: Json, minimum: float, names: Collection[str] = (TOGETHER,)) -> str:
    """Why a number of `query` at one of `names` (agencies or TOGETHER) is not told, and what it would take."""
    one, facts = query.get("at_one"), {}
    if one is None or TOGETHER in names:
        facts["together"] = _takes(query, query, minimum)
    if one is not None and any(name != TOGETHER for name in names):
        facts["at one agency"] = _takes(one, query, minimum)
    if len(set(facts.values())) == 1:
        text = next(iter(facts.values()))
    else:
        text = "; ".join(f"{where} {takes}" for where, takes in facts.items())
    return f"cannot be told at this budget: it would take {text}"


def _takes(facts: Json, query: Json, minimum: float) -> str:
    least, needed = facts["least"], facts["epsilon_for_minimum"]
    if least is None:
        return "an agency that holds what is asked"
    enough = f"about {up(max(least, minimum), 0):,.0f} {MANY[query['counts']]}"
    if needed is None:
        return enough
    if needed > SENSIBLE:
        return f"{enough} (more of them or a longer period: no sensible ε would do)"
    return f"{enough}, or ε\u00a0=\u00a0{up(needed, 2):.2f}"
