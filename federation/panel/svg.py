"""The parts of a picture: lines, texts, hatched fields, scales and ticks, as SVG text. `charts.py` makes pictures of them.

Colours are the page's own CSS classes. Names are escaped here: a picture goes into the page as it is.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 720
Ends = tuple[float, float]


@dataclass(frozen=True)
class Mark:
    """A value, and the ends of its interval where it has one."""

    value: float
    low: float | None = None
    high: float | None = None


def upright(x: float, mark: Mark, up: Callable[[float], float], ends: Ends) -> list[str]:
    """A dot with an upright whisker."""
    low, high = (clip(mark.value if end is None else end, ends) for end in (mark.low, mark.high))
    dot = f'<circle class="dot" cx="{x:.1f}" cy="{up(clip(mark.value, ends)):.1f}" r="5"/>'
    return [line(x, up(low), x, up(high), "whisker"), dot]


def band(known: Sequence[tuple[float, Mark]], up: Callable[[float], float], ends: Ends) -> list[str]:
    """The field between the ends of intervals that follow each other."""
    whole = [(x, m.low, m.high) for x, m in known if m.low is not None and m.high is not None]
    if len(whole) < 2:
        return []
    edge = [f"{x:.1f},{up(clip(low, ends)):.1f}" for x, low, _ in whole]
    edge += [f"{x:.1f},{up(clip(high, ends)):.1f}" for x, _, high in reversed(whole)]
    return [f'<polygon class="band" points="{" ".join(edge)}"/>']


def picture(
    key: str, title: str, described: str, height: float, parts: Sequence[str], width: float = WIDTH
) -> str:
    """`key` is unique on the page: it names the picture's title and description."""
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-labelledby="{key}-title {key}-desc">'
        f'<title id="{key}-title">{escape(title)}</title><desc id="{key}-desc">{escape(described)}</desc>'
        f"{''.join(parts)}</svg>"
    )


def text(x: float, y: float, words: str, style: str = "", more: str = "") -> str:
    """Words that begin at x, or end or have their middle there, as `style` says."""
    kind = f' class="{style}"' if style else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{kind}{" " + more if more else ""}>{escape(words)}</text>'


def line(x: float, y: float, x2: float, y2: float, style: str) -> str:
    """A straight line."""
    return f'<line class="{style}" x1="{x:.1f}" y1="{y:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def hatch(x: float, y: float, width: float, height: float) -> str:
    """A field of slanted lines: here is something that is not shown."""
    slants = [
        f"M{x + min(at, width):.1f} {y + max(0.0, at - width):.1f}L{x + max(0.0, at - height):.1f} {y + min(at, height):.1f}"
        for at in range(4, int(width + height), 8)
    ]
    field = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect class="hidden" {field}/><path class="hatch" d="{"".join(slants)}"/>'


def scale(values: Ends, pixels: Ends) -> Callable[[float], float]:
    """From values to pixels."""
    length = values[1] - values[0] or 1.0
    return lambda value: pixels[0] + (value - values[0]) / length * (pixels[1] - pixels[0])


def clip(value: float, ends: Ends) -> float:
    """`value`, or the end that it is beyond."""
    return min(max(value, ends[0]), ends[1])


def ticks(ends: Ends) -> list[float]:
    """Three to six round numbers from end to end."""
    length = ends[1] - ends[0]
    power = 10.0 ** math.floor(math.log10(length))
    step = next(s * power for s in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0) if length / (s * power) <= 5.001)
    first = math.ceil(ends[0] / step - 1e-6)
    return [at * step for at in range(first, math.floor(ends[1] / step + 1e-6) + 1)]


def apart(labels: Sequence[tuple[float, str, float]], gap: float) -> list[tuple[float, str, float]]:
    """The labels from top to bottom, each at least `gap` below the one before."""
    out: list[tuple[float, str, float]] = []
    for y, name, level in sorted(labels):
        out.append((max(y, out[-1][0] + gap) if out else y, name, level))
    return out


def percent(share: float) -> str:
    """0.4 as 40%."""
    return f"{100 * share:.0f}%"


def number(value: float, share: bool) -> str:
    """A tick's number: a share in percent, another to two places."""
    return percent(value) if share else f"{value:.2f}"


def short(name: str, most: int) -> str:
    """`name`, or as much of it as `most` letters hold."""
    return name if len(name) <= most else name[: most - 1] + "…"
