"""Scores as tables for people."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

from lucid_deploy.evaluation.report import Report, Score, wilson
from lucid_deploy.evaluation.task import Task

_ROWS = 8  # more values of a label are shown in ranges


def percent(score: Score) -> str:
    """Return a score in words, with its interval."""
    low, high = wilson(score.right, score.count)
    interval = f"95 % interval {100 * low:.1f} to {100 * high:.1f}"
    return f"{score.right} of {score.count} right, {score.accuracy:.1%} ({interval})"


def render_tables(report: Report) -> list[Table]:
    """Return a report's table: rows by columns if it has both labels, else rows with their intervals."""
    task = report.task
    return [_grid(report, task, task.columns) if task.columns is not None else _list(report, task)]


def _grid(report: Report, task: Task, column_label: str) -> Table:
    cells = report.by(task.rows, column_label)
    rows = sorted({key[0] for key in cells})
    columns = sorted({key[1] for key in cells})
    table = Table(task.rows, title=f"{task.name}: right answers by {task.rows} and {column_label}")
    for column in columns:
        table.add_column(str(column), justify="right")
    for row in rows:
        scores = [cells.get((row, column)) for column in columns]
        shown = ["" if score is None else f"{score.accuracy:.1%}" for score in scores]
        table.add_row(str(row), *shown)
    whole = report.by(column_label)
    table.add_section()
    table.add_row("all", *(f"{whole[(column,)].accuracy:.1%}" for column in columns))
    return table


def _list(report: Report, task: Task) -> Table:
    scores = report.by(task.rows)
    keys = [key[0] for key in scores]
    size = -(-len(keys) // _ROWS)
    table = Table(task.rows, title=f"{task.name}: right answers by {task.rows}")
    for heading in ("right", "of", "accuracy", "95 % interval"):
        table.add_column(heading, justify="right")
    for start in range(0, len(keys), size):
        group = keys[start : start + size]
        right, count = (sum(getattr(scores[(key,)], name) for key in group) for name in ("right", "count"))
        low, high = wilson(right, count)
        label = str(group[0]) if len(group) == 1 else f"{group[0]} to {group[-1]}"
        table.add_row(label, str(right), str(count), f"{right / count:.1%}", f"{100 * low:.1f} to {100 * high:.1f}")
    return table


def harness_table(results: dict[str, Any]) -> Table:
    """Return the metrics of lm_eval's tasks as a table; those over prompts that were cut have a star."""
    cut = results.get("truncated", {})
    caption = ", ".join(f"{name}: {count} prompts were cut" for name, count in cut.items())
    title = "lm-evaluation-harness"
    table = Table("task", "metric", "filter", title=title, caption=f"* {escape(caption)}" if cut else None)
    table.add_column("value", justify="right")
    table.add_column("standard error", justify="right")
    for name, metrics in results["results"].items():
        for key, value in metrics.items():
            metric, _, filtered = key.partition(",")
            if not filtered or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = metrics.get(f"{metric}_stderr,{filtered}")
            shown = f"{error:.4f}" if isinstance(error, int | float) else ""
            number = f"{value:.4f}{'*' if name in cut else ''}"
            table.add_row(escape(name), escape(metric), escape(filtered), number, shown)
    return table
