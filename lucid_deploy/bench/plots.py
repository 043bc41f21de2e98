"""Benchmark results as plots: time, ratio and memory against length, with the spread of the rounds."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lucid_deploy.errors import missing_extra
from lucid_deploy.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]


def plot(report: dict[str, Any], directory: Path) -> list[Path]:
    """Draw one PNG per stage.

    Args:
        report: From :func:`lucid_deploy.bench.report.build_report`.
        directory: Where to write them; made if need be.

    Raises:
        LucidError: matplotlib is not installed.
        OSError: A plot cannot be written; one that was there is unchanged.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise missing_extra("matplotlib", "bench", "draw plots") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    directory.mkdir(parents=True, exist_ok=True)
    stages = dict.fromkeys(row["stage"] for row in report["measurements"])
    with plt.rc_context({"text.parse_math": False}):  # names are no formulas
        return [_draw(report, stage, directory) for stage in stages]


def _draw(report: dict[str, Any], stage: str, directory: Path) -> Path:
    import matplotlib.pyplot as plt

    rows = [row for row in report["measurements"] if row["stage"] == stage]
    first = report["measurements"][0]["contender"]
    figure, axes = plt.subplots(1, 3, figsize=(15, 5), layout="constrained")
    _draw_times(axes[0], rows)
    _draw_ratios(axes[1], rows, first)
    _draw_memory(axes[2], rows)
    for axis in axes:
        _finish(axis, rows)
    lines = axes[0].containers
    axes[0].legend(lines, [str(line.get_label()) for line in lines], fontsize="small")  # else without names like _a
    machine = report["machine"]
    figure.suptitle(f"{stage}: {machine['processor']}, {machine['cores']} cores")
    rounds = len(rows[0]["seconds"])
    explained = (
        f"Points are medians of {rounds} interleaved rounds, bars reach from the smallest to the largest. "
        f"The ratio is taken round by round against {first}, so that a machine that slows down slows both."
    )
    figure.supxlabel(textwrap.fill(explained, 150), fontsize="small")
    path, content = directory / f"{stage}.png", io.BytesIO()
    figure.savefig(content, dpi=110)
    write_whole(path, content.getvalue())
    plt.close(figure)
    return path


def _series(rows: list[Row]) -> dict[str, list[Row]]:
    """Return the rows of each contender and batch size, by its label."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(f"{row['contender']}, batch {row['batch']}", []).append(row)
    return found


def _draw_times(axis: Axes, rows: list[Row]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    for name, mine in _series(rows).items():
        middle = [1e3 * row["median"] for row in mine]
        reach = [(1e3 * min(row["seconds"]), 1e3 * max(row["seconds"])) for row in mine]
        _bars(axis, mine, middle, reach, name)
    axis.set(title="time (lower is better)", ylabel="ms", yscale="log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_ratios(axis: Axes, rows: list[Row], first: str) -> None:
    for name, mine in _series(rows).items():
        ratios = [row["ratio"] for row in mine]
        reach = [(ratio["min"], ratio["max"]) for ratio in ratios]
        _bars(axis, mine, [ratio["median"] for ratio in ratios], reach, name)
    axis.set(title="ratio of times (below 1 is faster)", ylabel=f"time over that of {first}")


def _draw_memory(axis: Axes, rows: list[Row]) -> None:
    for name, mine in _series(rows).items():
        axis.plot([row["length"] for row in mine], [row["peak"] / 2**20 for row in mine], marker="o", label=name)
    axis.set(title="peak memory (lower is better)", ylabel="MiB")


def _bars(axis: Axes, rows: list[Row], middle: list[float], reach: list[tuple[float, float]], label: str) -> None:
    """Draw points with bars between the smallest and the largest value of each."""
    below = [value - low for value, (low, _) in zip(middle, reach, strict=True)]
    above = [high - value for value, (_, high) in zip(middle, reach, strict=True)]
    axis.errorbar([row["length"] for row in rows], middle, yerr=[below, above], marker="o", capsize=3, label=label)


def _finish(axis: Axes, rows: list[Row]) -> None:
    axis.set(xlabel="tokens", xscale="log")
    ticks = sorted({row["length"] for row in rows})
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
