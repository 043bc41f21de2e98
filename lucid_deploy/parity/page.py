"""Render a verification as one HTML page without scripts or external resources, from ``templates/page.html.j2``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lucid_deploy.parity import words
from lucid_deploy.parity.gate import FACTOR, FLOOR_UNITS, UNIT, Comparison
from lucid_deploy.parity.record import KINDS
from lucid_deploy.parity.results import Verification

TEMPLATES = Path(__file__).parent / "templates"
LINES = 5  # most layers drawn in one chart
WIDTH, HEIGHT = 720, 280  # size of a chart in SVG user units; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 70, 12, 12, 40  # margins for labels
GATE_STYLE = 5  # gates are drawn with the CSS class s5; series have s0 to s4


@dataclass(frozen=True)
class Line:
    """One series of a chart."""

    name: str  # for the legend
    points: Sequence[tuple[float, float]]  # (x, y); a y that is not finite and positive leaves a gap
    style: int  # n for the CSS class sn
    kind: str = ""  # another CSS class; lines of the class "limit" are dashed


def render_page(found: Verification) -> str:
    """Return the HTML page; ``found`` must have comparisons and facts."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["e"] = lambda number: f"{number:.1e}"
    return environment.get_template("page.html.j2").render(
        v=found,
        words=words,
        used=_used,
        position_charts=_position_charts(found),
        FACTOR=FACTOR,
        FLOOR_UNITS=FLOOR_UNITS,
        FLOOR=FLOOR_UNITS * UNIT[found.dtype],
    )


def _used(item: Comparison) -> str:
    """Format the error as a percentage or multiple of its gate; ``not judged`` if it was not judged."""
    if item.outcome == "not judged":
        return item.outcome
    return f"{item.severity:.0%}" if item.severity < 10 else f"{item.severity:.3g}×"


def _position_charts(found: Verification) -> list[dict[str, Any]]:
    charts = []
    worst = found.worst_by_tensor(along_positions=True)
    for kind in dict.fromkeys((*KINDS, *(tensor.word for tensor in worst))):
        items = [item for tensor, item in worst.items() if tensor.word == kind]
        shown = _spread(items)
        lines = [
            Line(f"{c.tensor} ({c.scenario}, {c.schedule})", list(enumerate(c.errors.tolist(), c.start)), i)
            for i, c in enumerate(shown)
        ]
        ends = [x for line in lines for x, _ in line.points] or [0]
        limits = [item.gate.limit for item in shown]
        named = {"gate": limits[0]} if len(set(limits)) == 1 else {}
        if len(set(limits)) > 1:
            named = {"the narrowest of their gates": min(limits), "the widest": max(limits)}
        for name, limit in named.items():
            lines.append(Line(name, [(min(ends), limit), (max(ends), limit)], GATE_STYLE, kind="limit"))
        description = (
            f"Relative L2 error of {kind} at every position, each in the run where it is worst; lower is better."
        )
        charts += _chart(f"{kind} against position", description, "position in the sequence", lines)
    return charts


def _spread(items: Sequence[Comparison]) -> list[Comparison]:
    """Choose at most ``LINES`` layers to draw: evenly spaced ones and the worst one."""
    if len(items) <= LINES:
        return list(items)
    count = LINES - 1
    places = {round(index * (len(items) - 1) / (count - 1)) for index in range(count)}
    places.add(max(range(len(items)), key=lambda index: items[index].severity))
    return [items[index] for index in sorted(places)]


def _chart(title: str, description: str, x_label: str, lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Return one chart with a logarithmic y axis for the template, in a list; the list is empty if no y is positive."""
    drawn = [(x, y) for line in lines for x, y in line.points if math.isfinite(y) and y > 0]
    if not drawn:
        return []
    low = math.floor(math.log10(min(y for _, y in drawn)))
    high = max(math.ceil(math.log10(max(y for _, y in drawn))), low + 1)
    first, last = min(x for x, _ in drawn), max(x for x, _ in drawn)
    span = last - first or 1

    def across(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((x - first) / span if last > first else 0.5)

    def down(y: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (math.log10(y) - low) / (high - low))

    paths = []
    for line in lines:
        path, pen_down = [], False
        for x, y in line.points:
            if math.isfinite(y) and y > 0:
                path.append(f"{'L' if pen_down else 'M'}{across(x):.1f} {down(y):.1f}")
            pen_down = math.isfinite(y) and y > 0
        style = f"line s{line.style} {line.kind}".strip()
        paths.append({"name": line.name, "style": style, "d": "".join(path)})
    step = max(1, math.ceil((high - low) / 6))
    return [
        {
            "title": title,
            "description": description,
            "x_label": x_label,
            "size": (WIDTH, HEIGHT),
            "area": (LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM),
            "y_ticks": [(down(10.0**power), f"1e{power}") for power in range(low, high + 1, step)],
            "x_ticks": [(across(value), f"{value:g}") for value in _ticks(first, last)],
            "paths": paths,
        }
    ]


def _ticks(first: float, last: float) -> list[float]:
    """Return at most seven evenly spaced integers from ``first`` to ``last``."""
    if last <= first:
        return [first]
    rough = (last - first) / 6
    base = 10.0 ** math.floor(math.log10(rough))
    step = max(1.0, next(base * factor for factor in (1, 2, 5, 10) if base * factor >= rough))
    start = math.ceil(first / step)
    return [step * index for index in range(start, math.floor(last / step) + 1)]
