"""Benchmark results as plots: time, ratio and memory against length, with the spread of the rounds."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lucid_deploy.errors import missing_extra
from lucid_deploy.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]
LINES = 5  # in a panel: more cannot be told apart
_OURS = "tab:blue"  # the first contender's colour, which no other line has
_OTHERS = ("tab:orange", "tab:green", "tab:red", "tab:purple")
_MARKERS = "os^Dv"  # for the first contender's batches, whose lines share its colour
_APART = 12.0  # points between the names of two lines
_RESOLUTION = 110  # pixels an inch


@dataclass(frozen=True)
class _Line:
    """What is drawn of one contender at one batch size."""

    name: str
    rows: list[Row]
    colour: str
    marker: str


def plot(report: dict[str, Any], directory: Path) -> list[Path]:
    """Draw a PNG for each stage: ``prefill.png``, ``decode.png``; more, such as ``decode-2.png``, for many contenders.

    Every picture holds the first contender and at most as many others as make five lines.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise missing_extra("matplotlib", "bench", "draw plots") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    directory.mkdir(parents=True, exist_ok=True)
    drawn = []
    with plt.rc_context({"text.parse_math": False}):  # names are no formulas
        for stage in dict.fromkeys(row["stage"] for row in report["measurements"]):
            for number, lines in enumerate(_pictures(report, stage), start=1):
                name = stage if number == 1 else f"{stage}-{number}"
                drawn.append(_draw(report, lines, directory / f"{name}.png"))
    return drawn


def _pictures(report: dict[str, Any], stage: str) -> list[list[_Line]]:
    """Distribute a stage's lines over pictures, each of which has the first contender's."""
    first = report["measurements"][0]["contender"]
    series: dict[tuple[str, int], list[Row]] = {}
    for row in report["measurements"]:
        if row["stage"] == stage:
            series.setdefault((row["contender"], row["batch"]), []).append(row)
    several = len({batch for _, batch in series}) > 1
    named = {key: f"{key[0]}, batch {key[1]}" if several else key[0] for key in series}
    mine = [key for key in series if key[0] == first]
    ours = [_Line(named[key], series[key], _OURS, _MARKERS[i % len(_MARKERS)]) for i, key in enumerate(mine)]
    others = [key for key in series if key[0] != first]
    room = min(max(1, LINES - len(ours)), len(_OTHERS))
    groups = [others[low : low + room] for low in range(0, len(others), room)] or [[]]
    return [
        ours + [_Line(named[key], series[key], colour, "o") for key, colour in zip(group, _OTHERS, strict=False)]
        for group in groups
    ]


def _draw(report: dict[str, Any], lines: list[_Line], path: Path) -> Path:
    import matplotlib.pyplot as plt

    first, machine = report["measurements"][0]["contender"], report["machine"]
    figure, axes = plt.subplots(1, 3, figsize=(15, 5), layout="constrained")
    ends = [_bars(axis, lines, values) for axis, values in zip(axes, (_time, _ratio, _memory), strict=True)]
    _name_panels(axes[0], axes[1], axes[2], first)
    for axis in axes:
        _finish(axis, lines)
    where = f"{machine['processor']}, {machine['cores']} cores"
    figure.suptitle(textwrap.fill(f"{_message(lines, first)}; {where}", 130))
    rounds = len(lines[0].rows[0]["seconds"])
    explained = (
        f"Points are medians of {rounds} interleaved rounds, bars reach from the smallest to the largest. "
        f"The ratio is taken round by round against {first}, so that a machine that slows down slows both."
    )
    figure.supxlabel(textwrap.fill(explained, 150), fontsize="small")
    figure.canvas.draw()  # only then it is known where points lie
    for axis, mine in zip(axes, ends, strict=True):
        _name_lines(axis, lines, mine, 72 / figure.dpi)
    content = io.BytesIO()
    figure.savefig(content, dpi=_RESOLUTION)
    atomic_write(path, content.getvalue())
    plt.close(figure)
    return path


def _message(lines: list[_Line], first: str) -> str:
    """Say what the longest and largest measurement found: what others take beside the first."""
    found = [row for line in lines for row in line.rows]
    length, batch = max((row["length"], row["batch"]) for row in found)
    there = {row["contender"]: row for row in found if (row["length"], row["batch"]) == (length, batch)}
    at = f"{found[0]['stage'].capitalize()}, {length} tokens, batch {batch}"
    ratios = [f"{name} {row['ratio']['median']:.2f}" for name, row in there.items() if name != first]
    if not ratios:
        return f"{at}: {first} takes {1e3 * there[first]['median']:.3g} ms"
    *begin, last = ratios
    return f"{at}: {' and '.join([', '.join(begin), last] if begin else [last])} times what {first} takes"


def _time(row: Row) -> tuple[float, float, float]:
    return 1e3 * min(row["seconds"]), 1e3 * row["median"], 1e3 * max(row["seconds"])


def _ratio(row: Row) -> tuple[float, float, float]:
    ratio = row["ratio"]
    return ratio["min"], ratio["median"], ratio["max"]


def _memory(row: Row) -> tuple[float, float, float]:
    return (row["peak"] / 2**20,) * 3


def _bars(axis: Axes, lines: list[_Line], values: Callable[[Row], tuple[float, float, float]]) -> list[float]:
    """Draw points with bars from the smallest to the largest value of each, and return where each line ends."""
    ends = []
    for line in lines:
        low, middle, high = zip(*map(values, line.rows), strict=True)
        below = [value - least for value, least in zip(middle, low, strict=True)]
        above = [most - value for value, most in zip(middle, high, strict=True)]
        lengths = [row["length"] for row in line.rows]
        axis.errorbar(lengths, middle, yerr=[below, above], marker=line.marker, color=line.colour, capsize=3)
        ends.append(middle[-1])
    return ends


def _name_panels(time: Axes, ratio: Axes, memory: Axes, first: str) -> None:
    """Say what each panel shows, and which way is better."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    time.set(title="time (lower is better)", ylabel="ms", yscale="log")
    time.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    time.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ratio.set(title=f"ratio (above 1 is slower than {first})", ylabel=f"time over that of {first}")
    memory.set(title="peak memory (lower is better)", ylabel="MiB")
    memory.set_ylim(bottom=0)


def _finish(axis: Axes, lines: list[_Line]) -> None:
    axis.set(xlabel="tokens", xscale="log")
    ticks = sorted({row["length"] for line in lines for row in line.rows})
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.grid(alpha=0.3)


def _name_lines(axis: Axes, lines: list[_Line], ends: list[float], points: float) -> None:
    """Write the lines' names beside their ends, moved apart where they would overlap; a pixel is so many points."""
    heights = [float(points * axis.transData.transform((1, end))[1]) for end in ends]
    places = _spread(heights, float(points * axis.bbox.y1))
    for line, end, height, place in zip(lines, ends, heights, places, strict=True):
        axis.annotate(
            line.name,
            (1, end),
            xycoords=("axes fraction", "data"),
            xytext=(4, place - height),
            textcoords="offset points",
            va="center",
            color=line.colour,
            fontsize="small",
        )


def _spread(heights: list[float], top: float) -> list[float]:
    """Return heights at least so far apart that names fit, in the same order, and none above the top."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    placed = dict.fromkeys(order, 0.0)
    low = -float("inf")
    for i in order:
        low = placed[i] = max(heights[i], low + _APART)
    high = top + _APART
    for i in reversed(order):
        high = placed[i] = min(placed[i], high - _APART)
    return [placed[i] for i in range(len(heights))]
