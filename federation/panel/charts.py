"""Pictures of a report: small SVG texts, written by hand, that need no script, font or file from elsewhere.

Colours are the page's own CSS classes. Every picture has a title and a description for those who hear it, and
the report puts a table behind each. A value that may not be shown (`None`) is a hatched field, never a gap that
could be read as zero. Names are escaped here: a picture goes into the page as it is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from federation.panel.svg import (
    WIDTH,
    Ends,
    Mark,
    apart,
    band,
    clip,
    hatch,
    line,
    number,
    percent,
    picture,
    scale,
    short,
    text,
    ticks,
    upright,
)

TOP = 30.0  # where the rows of dots begin, below the titles


@dataclass(frozen=True)
class Panel:
    """One column of dots: a mark or None for each row, on an axis from `ends[0]` to `ends[1]`."""

    title: str
    marks: Sequence[Mark | None]
    ends: Ends = (0.0, 1.0)
    percent: bool = False
    reference: float | None = None  # a dashed line: everyone's value


@dataclass(frozen=True)
class Point:
    """A mark at `x`, with what stands below it on the axis."""

    x: float
    mark: Mark | None
    label: str = ""


@dataclass(frozen=True)
class Strip:
    """Points over time on an axis from `ends[0]` to `ends[1]`, and the level that they were to stay below."""

    points: Sequence[Point]
    ends: Ends = (0.0, 1.0)
    level: float | None = None


def frequency_bar(key: str, title: str, parts: Sequence[tuple[str, int, str]]) -> str:
    """People as one bar. parts: (what they are, how many, CSS class), in order; empty parts are left out."""
    shown = [part for part in parts if part[1] > 0]
    total = sum(count for _, count, _ in shown) or 1
    out, left = [], 0.0
    for at, (name, count, style) in enumerate(shown):
        width, x, y = WIDTH * count / total, (at % 2) * WIDTH / 2, 74 + 24 * (at // 2)
        out.append(
            f'<rect class="{style}" x="{left:.1f}" y="0" width="{max(width - 2, 1):.1f}" height="46"/>'
        )
        if width > 44:
            out.append(text(left + 10, 28, f"{count:,}", f"on-{style}"))
        out.append(f'<rect class="{style}" x="{x:.0f}" y="{y - 12}" width="14" height="14"/>')
        out.append(text(x + 22, y, f"{count:,} {name}"))
        left += width
    described = "; ".join(f"{count:,} {name}" for name, count, _ in shown)
    return picture(key, title, described, 60 + 24 * math.ceil(len(shown) / 2), out)


def dots(key: str, title: str, rows: Sequence[str], panels: Sequence[Panel], longest: int = 24) -> str:
    """Rows of dots with whiskers, one panel beside the other, all rows in line. longest: letters of a name."""
    labels = min(max((7.0 * len(name) for name in rows), default=0.0) + 14, 7.2 * longest)
    gap, height = 18.0, 28.0 * len(rows)
    width = (WIDTH - 1 - labels + gap) / max(len(panels), 1) - gap
    out = [text(0, TOP + 18 + 28 * at, short(name, longest)) for at, name in enumerate(rows)]
    for at, panel in enumerate(panels):
        out += _panel(panel, labels + at * (width + gap), width, height)
    described = f"{', '.join(panel.title for panel in panels)} for {', '.join(rows)}, each with its interval."
    return picture(key, title, described, TOP + height + 24, out)


def comparable(panels: Sequence[Panel], within: Ends = (0.0, 1.0)) -> list[Panel]:
    """The panels with axes of one length, so that the same distance is the same difference in each."""
    ends = [spread([*panel.marks, *_at(panel.reference)], within, 0.2) for panel in panels]
    seen = [high - low for (low, high), panel in zip(ends, panels, strict=True) if any(panel.marks)]
    length = min(max(seen, default=1.0), within[1] - within[0])
    lows = [min(low, within[1] - length) for low, _ in ends]
    return [replace(panel, ends=(low, low + length)) for panel, low in zip(panels, lows, strict=True)]


def _at(value: float | None) -> list[Mark]:
    return [] if value is None else [Mark(value)]


def calibration(key: str, title: str, points: Sequence[Point]) -> str:
    """What happened against what the model said, both 0 to 1; on the diagonal the model says what happens."""
    size, left, top = 300.0, 62.0, 14.0
    across, up = scale((0, 1), (left, left + size)), scale((0, 1), (top + size, top))
    out = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        out += [
            line(across(tick), top, across(tick), top + size, "grid"),
            line(left, up(tick), left + size, up(tick), "grid"),
        ]
        out += [
            text(across(tick), top + size + 20, percent(tick), "mid"),
            text(left - 8, up(tick) + 4, percent(tick), "end"),
        ]
    out.append(line(across(0), up(0), across(1), up(1), "reference"))
    for point in points:
        if point.mark is not None:
            out += upright(across(point.x), point.mark, up, (0, 1))
    out.append(text(left + size / 2, top + size + 42, "what the model said", "mid soft"))
    turn = f'transform="rotate(-90 14 {top + size / 2:.0f})"'
    out.append(text(14, top + size / 2, "what happened", "mid soft", turn))
    out += [
        text(390, 40, "Each dot is a band of scores."),
        text(390, 62, "On the dashed line, the model says"),
    ]
    out += [text(390, 80, "exactly what then happens."), text(390, 108, "Above it: it said too little.")]
    out.append(text(390, 126, "Below it: it said too much."))
    hidden = sum(point.mark is None for point in points)
    if hidden:
        out.append(text(390, 154, f"{hidden} of {len(points)} bands are not shown: too few people", "soft"))
        out.append(text(390, 172, "or too much noise.", "soft"))
    return picture(
        key, title, "Observed share against predicted share, by band of scores.", top + size + 56, out
    )


def over_time(key: str, title: str, series: Sequence[tuple[str, Sequence[Point], Ends, bool]]) -> str:
    """One strip per series (name, points, ends, in percent?) over the same x, with bands for the intervals."""
    strip, out = 132.0, []
    xs = sorted({point.x for _, points, _, _ in series for point in points})
    across = scale((xs[0], xs[-1]) if len(xs) > 1 else (0, xs[0] * 2), (80, WIDTH - 40))
    for at, (name, points, ends, share) in enumerate(series):
        top = 30 + at * (strip + 40)
        up = scale(ends, (top + strip, top))
        out.append(text(0, top - 12, name, "strong"))
        for tick in ticks(ends):
            out += [
                line(60, up(tick), WIDTH - 20, up(tick), "grid"),
                text(52, up(tick) + 4, number(tick, share), "end"),
            ]
        known = [(across(point.x), point.mark) for point in points if point.mark is not None]
        out += band(known, up, ends)
        out += [line(x, up(a.value), x2, up(b.value), "line") for (x, a), (x2, b) in pairwise(known)]
        out += [part for x, mark in known for part in upright(x, mark, up, ends)]
        out += [hatch(across(p.x) - 14, top, 28, strip) for p in points if p.mark is None]
    bottom = 30 + len(series) * (strip + 40) - 18
    for point in series[0][1]:
        for row, words in enumerate(point.label.split("\n")):
            out.append(text(across(point.x), bottom + 18 * row, words, "mid soft" if row else "mid"))
    described = f"{' and '.join(name for name, *_ in series)} at {len(xs)} points of the training."
    return picture(key, title, described, bottom + 34, out)


def grid(
    key: str, title: str, rows: Sequence[str], columns: Sequence[str], strips: Sequence[Sequence[Strip]]
) -> str:
    """Shares over time, a row of strips for each of `rows`, all over the same x; a level is a red dashed line."""
    left, gap, height = 48.0, 16.0, 96.0
    width = (WIDTH - left + gap) / max(len(columns), 1) - gap
    out = [text(left + at * (width + gap), 14, name, "strong") for at, name in enumerate(columns)]
    for row, (name, cells) in enumerate(zip(rows, strips, strict=True)):
        top = 50 + row * (height + 62)
        out.append(text(0, top - 12, name, "strong"))
        for at, strip in enumerate(cells):
            out += _strip(strip, left + at * (width + gap), top, width, height, labelled=at == 0)
    described = f"{', '.join(columns)} for {', '.join(rows)}, at each checkpoint, with what was asked."
    return picture(key, title, described, 50 + len(rows) * (height + 62) - 36, out)


def _strip(strip: Strip, left: float, top: float, width: float, height: float, labelled: bool) -> list[str]:
    xs = [point.x for point in strip.points]
    around = (min(xs), max(xs)) if len(set(xs)) > 1 else (xs[0] - 1, xs[0] + 1)
    across, up = scale(around, (left + 12, left + width - 12)), scale(strip.ends, (top + height, top))
    out = []
    for tick in ticks(strip.ends):
        out.append(line(left, up(tick), left + width, up(tick), "grid"))
        if labelled:
            out.append(text(left - 6, up(tick) + 4, percent(tick), "end"))
    known = [(across(point.x), point.mark) for point in strip.points if point.mark is not None]
    out += band(known, up, strip.ends)
    if strip.level is not None and strip.ends[0] <= strip.level <= strip.ends[1]:
        out.append(line(left, up(strip.level), left + width, up(strip.level), "limit"))
    out += [line(x, up(a.value), x2, up(b.value), "line") for (x, a), (x2, b) in pairwise(known)]
    out += [part for x, mark in known for part in upright(x, mark, up, strip.ends)]
    out += [hatch(across(p.x) - 9, top, 18, height) for p in strip.points if p.mark is None]
    ends = (strip.points[0], strip.points[-1])
    for point, anchor in zip(ends[: len(set(xs))], ("soft", "end"), strict=False):
        x = left if anchor == "soft" else left + width
        out.append(text(x, top + height + 18, point.label, anchor))
    return out


def cost_curve(
    key: str, title: str, points: Sequence[Point], levels: Sequence[tuple[str, float]], ends: Ends
) -> str:
    """A measure against ε on a logarithmic axis, with named horizontal levels to hold it against."""
    left, right, top, bottom = 60.0, WIDTH - 190.0, 14.0, 274.0
    logs = [math.log10(point.x) for point in points]
    across = scale((min(logs) - 0.15, max(logs) + 0.15), (left, right))
    up = scale(ends, (bottom, top))
    out = []
    for tick in ticks(ends):
        out += [
            line(left, up(tick), right, up(tick), "grid"),
            text(left - 8, up(tick) + 4, number(tick, False), "end"),
        ]
    placed = apart(
        [(up(level) + 4, name, level) for name, level in levels if ends[0] <= level <= ends[1]], 16
    )
    for y, name, level in placed:
        out += [
            line(left, up(level), right, up(level), "reference"),
            text(right + 10, y, short(name, 26), "soft"),
        ]
    known = [(across(math.log10(point.x)), point.mark) for point in points if point.mark is not None]
    out += [line(x, up(a.value), x2, up(b.value), "line") for (x, a), (x2, b) in pairwise(known)]
    out += [part for x, mark in known for part in upright(x, mark, up, ends)]
    out += [text(across(math.log10(point.x)), bottom + 22, point.label, "mid") for point in points]
    out.append(
        text((left + right) / 2, bottom + 44, "privacy cost ε: further left is more private", "mid soft")
    )
    return picture(
        key, title, "A measure of how well the model works, at several privacy costs.", bottom + 58, out
    )


def spread(marks: Sequence[Mark | None], within: Ends | None = None, least: float = 0.1) -> Ends:
    """Round ends of an axis that holds every mark and its interval, at least `least` long."""
    seen = [
        v
        for m in marks
        if m is not None
        for v in (m.value, m.low, m.high)
        if v is not None and math.isfinite(v)
    ]
    low, high = (min(seen), max(seen)) if seen else (0.0, 1.0)
    step = 10 ** math.floor(math.log10(max(high - low, least)))
    step = step / 2 if (high - low) < 4 * step else step
    low, high = math.floor(low / step - 1e-9) * step, math.ceil(high / step + 1e-9) * step
    low, high = (low, high) if high - low >= least else (low - least / 2, high + least / 2)
    return (max(low, within[0]), min(high, within[1])) if within else (low, high)


def _panel(panel: Panel, left: float, width: float, height: float) -> list[str]:
    across, bottom = scale(panel.ends, (left, left + width)), TOP + height + 2
    out = [text(left, 14, panel.title, "strong")]
    middle = sum(panel.ends) / 2
    for tick, anchor in ((panel.ends[0], "soft"), (middle, "mid soft"), (panel.ends[1], "end")):
        out.append(line(across(tick), TOP - 4, across(tick), bottom, "grid"))
        if tick != middle or abs(100 * tick - round(100 * tick)) < 1e-6:
            out.append(text(across(tick), bottom + 16, number(tick, panel.percent), anchor))
    if panel.reference is not None and panel.ends[0] <= panel.reference <= panel.ends[1]:
        out.append(line(across(panel.reference), TOP - 4, across(panel.reference), bottom, "reference"))
    for at, mark in enumerate(panel.marks):
        y = TOP + 13 + 28 * at
        if mark is None:
            out.append(hatch(left, y - 9, width, 18))
            continue
        low, high = (clip(mark.value if end is None else end, panel.ends) for end in (mark.low, mark.high))
        out.append(line(across(low), y, across(high), y, "whisker"))
        out += [line(across(end), y - 4, across(end), y + 4, "whisker") for end in (low, high)]
        out.append(
            f'<circle class="dot" cx="{across(clip(mark.value, panel.ends)):.1f}" cy="{y:.1f}" r="4.5"/>'
        )
    return out
