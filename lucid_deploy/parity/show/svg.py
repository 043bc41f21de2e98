"""Line charts as inline SVG: small, no script, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 280  # of the drawing's own units; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 70, 12, 12, 40  # margins for labels
_Place = Callable[[float, float], tuple[float, float]]  # from values to the drawing's units
SERIES = 6  # classes s0 … s5 that the style sheet has


@dataclass(frozen=True)
class Line:
    """One series.

    Attributes:
        name: For the legend.
        points: (x, y); a y that is not a finite number above zero leaves a gap.
        style: Which of the style sheet's series.
        marks: Draw a dot at every point.
        reference: A limit rather than a measurement: dashed.
        broad: Drawn wide and pale, to be seen under the others.
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: int
    marks: bool = False
    reference: bool = False
    broad: bool = False


def log_chart(name: str, title: str, description: str, x_label: str, lines: Sequence[Line]) -> str:
    """Return a chart with a logarithmic y axis, or an empty string if there is nothing above zero to draw.

    Args:
        name: Unique in the page, of letters and digits.
        title: Its short name, read out first.
        description: What it shows, in words, for those who do not see it.
        x_label: Under the x axis.
        lines: What to draw.
    """
    drawn = [(x, y) for line in lines for x, y in line.points if math.isfinite(y) and y > 0]
    if not drawn:
        return ""
    low = math.floor(math.log10(min(y for _, y in drawn)))
    high = max(math.ceil(math.log10(max(y for _, y in drawn))), low + 1)
    first, last = min(x for x, _ in drawn), max(x for x, _ in drawn)
    span = last - first or 1

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * ((x - first) / span if last > first else 0.5)
        up = (math.log10(y) - low) / (high - low)
        return across, TOP + (HEIGHT - TOP - BOTTOM) * (1 - up)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{name}-t {name}-d">',
        f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(description)}</desc>',
        *_y_axis(low, high, place, first),
        *_x_axis(first, last, place, low, x_label),
        *(_drawn(line, place) for line in lines),
        "</svg>",
    ]
    return "".join(parts)


def _y_axis(low: int, high: int, place: _Place, x: float) -> list[str]:
    step = max(1, math.ceil((high - low) / 6))
    parts = []
    for power in range(low, high + 1, step):
        _, y = place(x, 10.0**power)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">1e{power}</text>')
    return parts


def _x_axis(first: float, last: float, place: _Place, low: int, label: str) -> list[str]:
    parts = []
    for value in _ticks(first, last):
        x, y = place(value, 10.0**low)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{value:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="label" x="{middle:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(label)}</text>')
    return parts


def _ticks(first: float, last: float) -> list[float]:
    """Return about six whole numbers between two."""
    if last <= first:
        return [first]
    rough = (last - first) / 6
    base = 10.0 ** math.floor(math.log10(rough))
    step = max(1.0, next(base * factor for factor in (1, 2, 5, 10) if base * factor >= rough))
    start = math.ceil(first / step)
    return [step * index for index in range(start, math.floor(last / step) + 1)]


def _drawn(line: Line, place: _Place) -> str:
    path, dots, pen_down = [], [], False
    for x, y in line.points:
        if not (math.isfinite(y) and y > 0):
            pen_down = False
            continue
        left, top = place(x, y)
        path.append(f"{'L' if pen_down else 'M'}{left:.1f} {top:.1f}")
        pen_down = True
        if line.marks:
            dots.append(f'<circle class="dot {classes(line)}" cx="{left:.1f}" cy="{top:.1f}" r="3"/>')
    shape = f'<path class="{classes(line)}" d="{"".join(path)}"/>'
    return f"<g><title>{escape(line.name)}</title>{shape}{''.join(dots)}</g>"


def classes(line: Line) -> str:
    """Return the style sheet's classes of a line."""
    return f"line s{line.style % SERIES}" + (" limit" if line.reference else "") + (" broad" if line.broad else "")
