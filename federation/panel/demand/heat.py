"""Coloured tables and bars of a map: the number, its interval and its colour in one cell, so that the picture is its own table.

A table is longer than it is wide, and what nothing can be told of is named below it and takes no place in it.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

from federation.panel.demand.pictures import bar
from federation.panel.demand.said import STEPS, Told, ends, is_rough, round_top, told
from federation.panel.sections.numbers import join
from federation.panel.svg import Mark

Levels = tuple[str, ...]
Absent = Literal["absent"]
ABSENT: Absent = "absent"  # nobody asked this agency
MOST_COLUMNS = 8  # that fit a page; of more, several tables are made
Row = tuple[str, Sequence[Told | Absent | None]]


@final
@dataclass(frozen=True)
class Heat:
    """A table of cells. blocks: (columns, rows), each as wide as a page; legend: (step, the numbers that have its colour)."""

    caption: str
    corner: str
    blocks: Sequence[tuple[Sequence[str], Sequence[Row]]]
    legend: Sequence[tuple[int, str]]
    nothing: str  # rows and columns of which nothing can be told
    any: bool  # whether a number of it can be told
    kept: bool  # whether one in its rows and columns cannot
    rough: bool


@final
@dataclass(frozen=True)
class Bars:
    """A row for each level: (name, its bar as SVG, its number)."""

    caption: str
    corner: str
    rows: Sequence[tuple[str, str, Told]]
    full: str  # what the whole width is
    nothing: str  # levels of which nothing can be told
    any: bool


def heat(
    caption: str,
    corner: tuple[str, str],
    columns: Sequence[str],
    rows: Iterable[tuple[str, Sequence[Mark | Absent | None]]],
    share: bool,
    plain: Sequence[str] = (),
) -> Heat:
    """The table, with five colours from 0 to a round number above its largest. plain: rows that take no colour (sums).

    corner: what rows and what columns are; they change places where there are more columns than rows.
    """
    known, names, nothing = _told_of(list(rows), list(columns))
    values = [(name, mark) for name, cells in known for mark in cells if isinstance(mark, Mark)]
    coloured = [mark.value for name, mark in values if name not in plain and not is_rough(mark)]
    top = round_top(max(coloured, default=0.0))
    made: list[Row] = [
        (name, [m if m == ABSENT else told(m, share, 0.0 if name in plain else top) for m in cells])
        for name, cells in known
    ]
    if len(names) > len(made):
        made, names = _turned(made, names), [name for name, _ in made]
        corner = corner[::-1]
    cells = [cell for _, row in made for cell in row]
    return Heat(
        caption,
        " by ".join(part for part in corner if part),
        list(_blocks(names, made)),
        _legend(top, share) if coloured else (),
        join(f"“{name}”" for name in nothing) if nothing else "",
        bool(values),
        None in cells,
        any(isinstance(cell, Told) and cell.rough for cell in cells),
    )


def _told_of(
    rows: list[tuple[str, Sequence[Mark | Absent | None]]], columns: list[str]
) -> tuple[list[tuple[str, list[Mark | Absent | None]]], list[str], list[str]]:
    """Rows and columns with a number, and the names of those without."""
    full = [any(isinstance(cells[at], Mark) for _, cells in rows) for at in range(len(columns))]
    kept = [
        (name, [cell for cell, has in zip(cells, full, strict=True) if has])
        for name, cells in rows
        if any(isinstance(cell, Mark) for cell in cells)
    ]
    held = {name for name, _ in kept}
    nothing = [name for name, _ in rows if name not in held]
    nothing += [name for name, has in zip(columns, full, strict=True) if not has]
    return kept, [name for name, has in zip(columns, full, strict=True) if has], nothing


def _turned(rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    return [(name, [cells[at] for _, cells in rows]) for at, name in enumerate(columns)]


def _blocks(columns: Sequence[str], rows: Sequence[Row]) -> Iterable[tuple[Sequence[str], Sequence[Row]]]:
    """The table cut into parts of about equal widths."""
    wide = math.ceil(len(columns) / max(math.ceil(len(columns) / MOST_COLUMNS), 1)) or 1
    for at in range(0, len(columns), wide):
        yield columns[at : at + wide], [(name, cells[at : at + wide]) for name, cells in rows]


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
    made = [(name, bar(mark, top), text) for name, mark in known if (text := told(mark, share)) is not None]
    full = f"0 to {100 * top:,.10g}%" if share else f"0 to {top:,.10g}"
    nothing = (
        join(f"“{name}”" for name, mark in known if mark is None) if None in dict(known).values() else ""
    )
    return Bars(caption, corner, made, full, nothing, bool(made))


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
    return [heat(caption, (row, column), of_columns, rows, share)]
