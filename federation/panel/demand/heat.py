"""Coloured tables and bars of a map: the number, its interval and its colour in one cell, so that the picture is its own table."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

from federation.panel.demand.pictures import bar
from federation.panel.demand.said import STEPS, Told, ends, round_top, told
from federation.panel.svg import Mark

Levels = tuple[str, ...]
Absent = Literal["absent"]
ABSENT: Absent = "absent"  # nobody asked this agency


@final
@dataclass(frozen=True)
class Heat:
    """A table of cells. rows: (name, a cell for each column); legend: (step, the numbers that have its colour)."""

    caption: str
    corner: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Told | Absent | None]]]
    legend: Sequence[tuple[int, str]]
    any: bool  # whether a number of it can be told
    kept: bool  # whether one cannot
    rough: bool


@final
@dataclass(frozen=True)
class Bars:
    """A row for each level: (name, its bar as SVG, its number)."""

    caption: str
    corner: str
    rows: Sequence[tuple[str, str, Told | None]]
    full: str  # what the whole width is
    any: bool
    kept: bool


def heat(
    caption: str,
    corner: str,
    columns: Sequence[str],
    rows: Iterable[tuple[str, Sequence[Mark | Absent | None]]],
    share: bool,
    plain: Sequence[str] = (),
) -> Heat:
    """The table, with five colours from 0 to a round number above its largest. plain: rows that take no colour (sums)."""
    known = list(rows)
    values = [mark.value for _, cells in known for mark in cells if isinstance(mark, Mark)]
    coloured = [m.value for name, cells in known if name not in plain for m in cells if isinstance(m, Mark)]
    top = round_top(max(coloured, default=0.0))
    made = [
        (name, [m if m == ABSENT else told(m, share, 0.0 if name in plain else top) for m in cells])
        for name, cells in known
    ]
    cells = [cell for _, row in made for cell in row]
    legend = _legend(top, share) if coloured else ()
    kept, rough = None in cells, any(isinstance(cell, Told) and cell.rough for cell in cells)
    return Heat(caption, corner, columns, made, legend, bool(values), kept, rough)


def turned(table: Heat, corner: str) -> Heat:
    """The same table with its columns as rows: a page is longer than it is wide."""
    rows = [(name, [cells[at] for _, cells in table.rows]) for at, name in enumerate(table.columns)]
    return replace(table, corner=corner, columns=[name for name, _ in table.rows], rows=rows)


def _legend(top: float, share: bool) -> list[tuple[int, str]]:
    """What each colour says."""
    scale, sign = (100, "%") if share else (1, "")
    edges = [f"{scale * top * step / STEPS:,.10g}" for step in range(STEPS + 1)]
    return [(step, f"{edges[step - 1]} to {edges[step]}{sign}") for step in range(1, STEPS + 1)]


def bars(caption: str, corner: str, rows: Iterable[tuple[str, Mark | None]], share: bool) -> Bars:
    """The rows as bars from 0 to a round number above the highest end of an interval."""
    known = list(rows)
    top = round_top(max((ends(mark)[1] for _, mark in known if mark is not None), default=0.0))
    top = min(top, 1.0) if share else top
    made = [(name, bar(mark, top), told(mark, share)) for name, mark in known]
    full = f"0 to {100 * top:,.10g}%" if share else f"0 to {top:,.10g}"
    cells = [mark for _, mark in known]
    return Bars(caption, corner, made, full, any(cells), None in cells)


def crossed(
    caption: str,
    names: Sequence[str],
    levels: Sequence[Sequence[str]],
    found: Mapping[Levels, Mark | None],
    share: bool,
) -> list[Heat]:
    """A cross-tab of two attributes or more: the last two as rows and columns, a table for each combination of the others.

    Of the last two, the one with more levels stands in the rows, since a page is longer than it is wide.
    """
    if len(names) > 2:
        return [
            each
            for level in levels[0]
            for each in crossed(
                f"{caption}, {names[0]} {level}",
                names[1:],
                levels[1:],
                {key[1:]: mark for key, mark in found.items() if key[0] == level},
                share,
            )
        ]
    turned = len(levels[1]) > len(levels[0])
    (row, column), (of_rows, of_columns) = (names[::-1], levels[::-1]) if turned else (names, levels)
    key: Callable[[str, str], Levels] = (lambda r, c: (c, r)) if turned else (lambda r, c: (r, c))
    rows = ((r, [found.get(key(r, c)) for c in of_columns]) for r in of_rows)
    return [heat(caption, f"{row} by {column}", of_columns, rows, share)]
