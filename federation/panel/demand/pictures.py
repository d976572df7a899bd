"""Pictures of a map, as SVG without script, font or file from elsewhere (see `federation.panel.svg`).

They are narrow, so that a telephone shows them whole. What cannot be told is hatched, never a gap that reads as zero.
"""

from collections.abc import Callable, Sequence
from itertools import groupby

from federation.panel.demand.said import ends
from federation.panel.svg import (
    Ends,
    Mark,
    clip,
    hatch,
    line,
    percent,
    picture,
    scale,
    short,
    text,
    ticks,
)

NARROW = 350.0


def bar(mark: Mark | None, top: float) -> str:
    """A bar with its whisker, as wide as its place; 0 at the left and `top` at the right. The number stands beside it."""
    if mark is None or top <= 0:
        return ""
    return _bar([_field("", mark.value, top), _whisker(mark, top)])


def shared_bar(whole: Mark | None, shared: Mark | None, top: float) -> str:
    """An agency's people as one bar, those whom the other knows too dark, with a whisker where their number may end."""
    if whole is None or top <= 0:
        return ""
    out = [_field("heat-rest", whole.value, top)]
    if shared is not None:
        out += [_field("heat-shared", shared.value, top), _whisker(shared, top)]
    return _bar(out)


def _bar(parts: Sequence[str]) -> str:
    return f'<svg class="bar" aria-hidden="true">{"".join(parts)}</svg>'


def _field(style: str, value: float, top: float) -> str:
    kind = f' class="{style}"' if style else ""
    return f'<rect{kind} width="{100 * clip(value / top, (0, 1)):.1f}%" height="100%"/>'


def _whisker(mark: Mark, top: float) -> str:
    """The interval, dark on light so that it is seen on every bar; nothing where it is the number itself."""
    low, high = (100 * clip(end / top, (0, 1)) for end in ends(mark))
    if low == high:
        return ""
    strokes = [(low, high, 50, 50), (low, low, 20, 80), (high, high, 20, 80)]
    return "".join(
        f'<line class="{style}" x1="{x:.1f}%" x2="{x2:.1f}%" y1="{y}%" y2="{y2}%"/>'
        for style in ("under", "over")
        for x, x2, y, y2 in strokes
    )


def trend(
    key: str, title: str, months: Sequence[str], values: Sequence[Mark | None], top: float, share: bool
) -> str:
    """One number month by month, with the band of its intervals, from 0 to `top`."""
    marks = [(tick, percent(tick) if share else f"{tick:,.10g}") for tick in ticks((0, top))]
    left, right = 12 + 7.6 * max(len(words) for _, words in marks), NARROW - 6
    above, below = 30.0, 140.0
    across, up = scale((0, max(len(months) - 1, 1)), (left + 6, right - 6)), scale((0, top), (below, above))
    half = min((right - left - 12) / max(len(months) - 1, 1) / 2, 9.0)
    out = [text(0, 14, short(title, 46), "strong")]
    for tick, words in marks:
        out.append(line(left, up(tick), right, up(tick), "grid"))
        out.append(text(left - 6, up(tick) + 4, words, "end"))
    at = list(enumerate(values))
    for known, run in groupby(at, key=lambda pair: pair[1] is not None):
        points = list(run)
        if not known:
            start = across(points[0][0]) - half
            out.append(hatch(start, above, across(points[-1][0]) + half - start, below - above))
            continue
        out += _run([(across(i), mark) for i, mark in points if mark is not None], up, (0, top))
    ends_of_axis = (0, len(months) - 1) if len(months) > 1 else (0,)
    for i, style in zip(ends_of_axis, ("soft", "end"), strict=False):
        out.append(text(left if i == 0 else right, below + 18, months[i], style))
    count = sum(mark is not None for mark in values)
    described = f"{count} of {len(months)} months can be told; the numbers are in the table below."
    return picture(key, title, described, below + 26, out, NARROW)


def _run(points: Sequence[tuple[float, Mark]], up: Callable[[float], float], within: Ends) -> list[str]:
    """Months that follow each other: the band of their intervals and a line; one alone has a whisker and a dot."""
    if len(points) == 1:
        ((x, mark),) = points
        low, high = (up(clip(end, within)) for end in ends(mark))
        return [
            line(x, low, x, high, "whisker"),
            f'<circle class="dot" cx="{x:.1f}" cy="{up(clip(mark.value, within)):.1f}" r="3.5"/>',
        ]
    edge = [f"{x:.1f},{up(clip(ends(mark)[0], within)):.1f}" for x, mark in points]
    edge += [f"{x:.1f},{up(clip(ends(mark)[1], within)):.1f}" for x, mark in reversed(points)]
    middle = [f"{x:.1f},{up(clip(mark.value, within)):.1f}" for x, mark in points]
    return [
        f'<polygon class="band" points="{" ".join(edge)}"/>',
        f'<polyline class="trend" points="{" ".join(middle)}"/>',
    ]


def lags(key: str, title: str, found: Sequence[tuple[int, Mark | None]], most: int) -> str:
    """Partial correlations, −1 to 1, at lags of 1 to `most` months, with whiskers; 0 is dashed."""
    left, right, above, below = 46.0, NARROW - 6, 30.0, 170.0
    across, up = scale((0.5, most + 0.5), (left, right)), scale((-1, 1), (below, above))
    out = [text(0, 14, short(title, 46), "strong")]
    for tick, words in ((-1, "−1"), (-0.5, "−0.5"), (0, "0"), (0.5, "0.5"), (1, "1")):
        out.append(line(left, up(tick), right, up(tick), "grid" if tick else "reference"))
        out.append(text(left - 6, up(tick) + 4, words, "end"))
    out += [text(across(lag), below + 18, str(lag), "mid") for lag in range(1, most + 1)]
    out.append(text((left + right) / 2, below + 36, "months later", "mid soft"))
    for lag, mark in found:
        if mark is None:
            out.append(hatch(across(lag) - 8, above, 16, below - above))
            continue
        low, high = (up(clip(end, (-1, 1))) for end in ends(mark))
        out.append(line(across(lag), low, across(lag), high, "whisker"))
        out.append(
            f'<circle class="dot" cx="{across(lag):.1f}" cy="{up(clip(mark.value, (-1, 1))):.1f}" r="4.5"/>'
        )
    described = f"{len(found)} lags of 1 to {most} months; the numbers are in the table."
    return picture(key, title, described, below + 46, out, NARROW)
