"""Pictures of a report: small SVG texts, written by hand, that need no script, font or file from elsewhere.

Colours are the page's own CSS classes. Every picture has a title and a description for those who hear it, and
the report puts a table behind each. A value that may not be shown (`None`) is a hatched field, never a gap that
could be read as zero. Names are escaped here: a picture goes into the page as it is.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise

WIDTH = 720
TOP = 30.0  # where the rows of dots begin, below the titles
Ends = tuple[float, float]


@dataclass(frozen=True)
class Mark:
    """A value, and the ends of its interval where it has one."""

    value: float
    low: float | None = None
    high: float | None = None


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
            out.append(_text(left + 10, 28, f"{count:,}", f"on-{style}"))
        out.append(f'<rect class="{style}" x="{x:.0f}" y="{y - 12}" width="14" height="14"/>')
        out.append(_text(x + 22, y, f"{count:,} {name}"))
        left += width
    described = "; ".join(f"{count:,} {name}" for name, count, _ in shown)
    return _svg(key, title, described, 60 + 24 * math.ceil(len(shown) / 2), out)


def dots(key: str, title: str, rows: Sequence[str], panels: Sequence[Panel]) -> str:
    """Rows of dots with whiskers, one panel beside the other, all rows in line."""
    labels = min(max((7.0 * len(name) for name in rows), default=0.0) + 14, 200.0)
    gap, height = 22.0, 28.0 * len(rows)
    width = (WIDTH - 1 - labels + gap) / max(len(panels), 1) - gap
    out = [_text(0, TOP + 18 + 28 * at, _short(name, 28)) for at, name in enumerate(rows)]
    for at, panel in enumerate(panels):
        out += _panel(panel, labels + at * (width + gap), width, height)
    described = f"{', '.join(panel.title for panel in panels)} for {', '.join(rows)}, each with its interval."
    return _svg(key, title, described, TOP + height + 24, out)


def comparable(panels: Sequence[Panel], within: Ends = (0.0, 1.0)) -> list[Panel]:
    """The panels with axes of one length, so that the same distance is the same difference in each."""
    ends = [spread([*panel.marks, *_at(panel.reference)], within, 0.2) for panel in panels]
    length = min(max((high - low for low, high in ends), default=1.0), within[1] - within[0])
    lows = [min(low, within[1] - length) for low, _ in ends]
    return [replace(panel, ends=(low, low + length)) for panel, low in zip(panels, lows, strict=True)]


def _at(value: float | None) -> list[Mark]:
    return [] if value is None else [Mark(value)]


def calibration(key: str, title: str, points: Sequence[Point]) -> str:
    """What happened against what the model said, both 0 to 1; on the diagonal the model says what happens."""
    size, left, top = 300.0, 62.0, 14.0
    across, up = _scale((0, 1), (left, left + size)), _scale((0, 1), (top + size, top))
    out = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        out += [
            _line(across(tick), top, across(tick), top + size, "grid"),
            _line(left, up(tick), left + size, up(tick), "grid"),
        ]
        out += [
            _text(across(tick), top + size + 20, _percent(tick), "mid"),
            _text(left - 8, up(tick) + 4, _percent(tick), "end"),
        ]
    out.append(_line(across(0), up(0), across(1), up(1), "reference"))
    for point in points:
        if point.mark is not None:
            out += _upright(across(point.x), point.mark, up, (0, 1))
    out.append(_text(left + size / 2, top + size + 42, "what the model said", "mid soft"))
    turn = f'transform="rotate(-90 14 {top + size / 2:.0f})"'
    out.append(_text(14, top + size / 2, "what happened", "mid soft", turn))
    out += [
        _text(390, 40, "Each dot is a band of scores."),
        _text(390, 62, "On the dashed line, the model says"),
    ]
    out += [_text(390, 80, "exactly what then happens."), _text(390, 108, "Above it: it said too little.")]
    out.append(_text(390, 126, "Below it: it said too much."))
    hidden = sum(point.mark is None for point in points)
    if hidden:
        out.append(_text(390, 154, f"{hidden} of {len(points)} bands are not shown: too few people", "soft"))
        out.append(_text(390, 172, "or too much noise.", "soft"))
    return _svg(
        key, title, "Observed share against predicted share, by band of scores.", top + size + 56, out
    )


def over_time(key: str, title: str, series: Sequence[tuple[str, Sequence[Point], Ends, bool]]) -> str:
    """One strip per series (name, points, ends, in percent?) over the same x, with bands for the intervals."""
    strip, out = 132.0, []
    xs = sorted({point.x for _, points, _, _ in series for point in points})
    across = _scale((xs[0], xs[-1]) if len(xs) > 1 else (0, xs[0] * 2), (80, WIDTH - 40))
    for at, (name, points, ends, percent) in enumerate(series):
        top = 30 + at * (strip + 40)
        up = _scale(ends, (top + strip, top))
        out.append(_text(0, top - 12, name, "strong"))
        for tick in _ticks(ends):
            out += [
                _line(60, up(tick), WIDTH - 20, up(tick), "grid"),
                _text(52, up(tick) + 4, _number(tick, percent), "end"),
            ]
        known = [(across(point.x), point.mark) for point in points if point.mark is not None]
        out += _band(known, up, ends)
        out += [_line(x, up(a.value), x2, up(b.value), "line") for (x, a), (x2, b) in pairwise(known)]
        out += [part for x, mark in known for part in _upright(x, mark, up, ends)]
        out += [_hatch(across(p.x) - 14, top, 28, strip) for p in points if p.mark is None]
    bottom = 30 + len(series) * (strip + 40) - 18
    for point in series[0][1]:
        for line, words in enumerate(point.label.split("\n")):
            out.append(_text(across(point.x), bottom + 18 * line, words, "mid soft" if line else "mid"))
    described = f"{' and '.join(name for name, *_ in series)} at {len(xs)} points of the training."
    return _svg(key, title, described, bottom + 34, out)


def cost_curve(
    key: str, title: str, points: Sequence[Point], levels: Sequence[tuple[str, float]], ends: Ends
) -> str:
    """A measure against ε on a logarithmic axis, with named horizontal levels to hold it against."""
    left, right, top, bottom = 60.0, WIDTH - 190.0, 14.0, 274.0
    logs = [math.log10(point.x) for point in points]
    across = _scale((min(logs) - 0.15, max(logs) + 0.15), (left, right))
    up = _scale(ends, (bottom, top))
    out = []
    for tick in _ticks(ends):
        out += [
            _line(left, up(tick), right, up(tick), "grid"),
            _text(left - 8, up(tick) + 4, _number(tick, False), "end"),
        ]
    placed = _apart(
        [(up(level) + 4, name, level) for name, level in levels if ends[0] <= level <= ends[1]], 16
    )
    for y, name, level in placed:
        out += [
            _line(left, up(level), right, up(level), "reference"),
            _text(right + 10, y, _short(name, 26), "soft"),
        ]
    known = [(across(math.log10(point.x)), point.mark) for point in points if point.mark is not None]
    out += [_line(x, up(a.value), x2, up(b.value), "line") for (x, a), (x2, b) in pairwise(known)]
    out += [part for x, mark in known for part in _upright(x, mark, up, ends)]
    out += [_text(across(math.log10(point.x)), bottom + 22, point.label, "mid") for point in points]
    out.append(
        _text((left + right) / 2, bottom + 44, "privacy cost ε: further left is more private", "mid soft")
    )
    return _svg(
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


# ---- parts ----


def _panel(panel: Panel, left: float, width: float, height: float) -> list[str]:
    across, bottom = _scale(panel.ends, (left, left + width)), TOP + height + 2
    out = [_text(left, 14, panel.title, "strong")]
    middle = sum(panel.ends) / 2
    for tick, anchor in ((panel.ends[0], "soft"), (middle, "mid soft"), (panel.ends[1], "end")):
        out.append(_line(across(tick), TOP - 4, across(tick), bottom, "grid"))
        if tick != middle or abs(100 * tick - round(100 * tick)) < 1e-6:
            out.append(_text(across(tick), bottom + 16, _number(tick, panel.percent), anchor))
    if panel.reference is not None and panel.ends[0] <= panel.reference <= panel.ends[1]:
        out.append(_line(across(panel.reference), TOP - 4, across(panel.reference), bottom, "reference"))
    for at, mark in enumerate(panel.marks):
        y = TOP + 13 + 28 * at
        if mark is None:
            out.append(_hatch(left, y - 9, width, 18))
            continue
        low, high = (_clip(mark.value if end is None else end, panel.ends) for end in (mark.low, mark.high))
        out.append(_line(across(low), y, across(high), y, "whisker"))
        out += [_line(across(end), y - 4, across(end), y + 4, "whisker") for end in (low, high)]
        out.append(
            f'<circle class="dot" cx="{across(_clip(mark.value, panel.ends)):.1f}" cy="{y:.1f}" r="4.5"/>'
        )
    return out


def _upright(x: float, mark: Mark, up: Callable[[float], float], ends: Ends) -> list[str]:
    low, high = (_clip(mark.value if end is None else end, ends) for end in (mark.low, mark.high))
    dot = f'<circle class="dot" cx="{x:.1f}" cy="{up(_clip(mark.value, ends)):.1f}" r="5"/>'
    return [_line(x, up(low), x, up(high), "whisker"), dot]


def _band(known: Sequence[tuple[float, Mark]], up: Callable[[float], float], ends: Ends) -> list[str]:
    whole = [(x, m.low, m.high) for x, m in known if m.low is not None and m.high is not None]
    if len(whole) < 2:
        return []
    edge = [f"{x:.1f},{up(_clip(low, ends)):.1f}" for x, low, _ in whole]
    edge += [f"{x:.1f},{up(_clip(high, ends)):.1f}" for x, _, high in reversed(whole)]
    return [f'<polygon class="band" points="{" ".join(edge)}"/>']


def _svg(key: str, title: str, described: str, height: float, parts: Sequence[str]) -> str:
    """`key` is unique on the page: it names the picture's title and description."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-labelledby="{key}-title {key}-desc">'
        f'<title id="{key}-title">{escape(title)}</title><desc id="{key}-desc">{escape(described)}</desc>'
        f"{''.join(parts)}</svg>"
    )


def _text(x: float, y: float, words: str, style: str = "", more: str = "") -> str:
    kind = f' class="{style}"' if style else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{kind}{" " + more if more else ""}>{escape(words)}</text>'


def _line(x: float, y: float, x2: float, y2: float, style: str) -> str:
    return f'<line class="{style}" x1="{x:.1f}" y1="{y:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _hatch(x: float, y: float, width: float, height: float) -> str:
    """A field of slanted lines: here is something that is not shown."""
    slants = [
        f"M{x + min(at, width):.1f} {y + max(0.0, at - width):.1f}L{x + max(0.0, at - height):.1f} {y + min(at, height):.1f}"
        for at in range(4, int(width + height), 8)
    ]
    field = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect class="hidden" {field}/><path class="hatch" d="{"".join(slants)}"/>'


def _scale(values: Ends, pixels: Ends) -> Callable[[float], float]:
    length = values[1] - values[0] or 1.0
    return lambda value: pixels[0] + (value - values[0]) / length * (pixels[1] - pixels[0])


def _clip(value: float, ends: Ends) -> float:
    return min(max(value, ends[0]), ends[1])


def _ticks(ends: Ends) -> list[float]:
    """Three to six round numbers from end to end."""
    length = ends[1] - ends[0]
    power = 10.0 ** math.floor(math.log10(length))
    step = next(s * power for s in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0) if length / (s * power) <= 5.001)
    first = math.ceil(ends[0] / step - 1e-6)
    return [at * step for at in range(first, math.floor(ends[1] / step + 1e-6) + 1)]


def _apart(labels: Sequence[tuple[float, str, float]], gap: float) -> list[tuple[float, str, float]]:
    """The labels from top to bottom, each at least `gap` below the one before."""
    out: list[tuple[float, str, float]] = []
    for y, name, level in sorted(labels):
        out.append((max(y, out[-1][0] + gap) if out else y, name, level))
    return out


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _number(value: float, percent: bool) -> str:
    return _percent(value) if percent else f"{value:.2f}"


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
