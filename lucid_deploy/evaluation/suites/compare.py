"""Two models on the documents of one suite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.paired import Difference, average_difference, paired_difference
from lucid_deploy.evaluation.suites.run import TaskResult


def compare_suites(first: Sequence[TaskResult], second: Sequence[TaskResult]) -> dict[tuple[str, str], Difference]:
    """Return the difference in each task and metric; with several tasks, also of their average, as task ``all``.

    A task counts in the average by its first metric.

    Raises:
        LucidError: The models were not asked the same.
    """
    found: dict[tuple[str, str], Difference] = {}
    main = []
    for mine, theirs in zip(first, second, strict=True):
        if mine.prompts != theirs.prompts:
            raise LucidError(
                f"{mine.task.name}: the two models were asked different prompts (do their chat templates differ?), so "
                "their scores cannot be paired."
            )
        for metric in mine.scores:
            found[mine.task.name, metric] = paired_difference(mine.scores[metric], theirs.scores[metric])
        metric = next(iter(mine.scores))
        main.append((mine.scores[metric], theirs.scores[metric]))
    if len(main) > 1:
        found["all", "mean"] = average_difference(main)
    return found


def difference_table(title: str, found: dict[tuple[str, str], Difference]) -> Table:
    """Return the differences for people."""
    table = Table("task", "metric", title=escape(title))
    for heading in ("difference", "95 % interval", "documents", "better", "worse", "p (McNemar)"):
        table.add_column(heading, justify="right")
    for (task, metric), item in found.items():
        interval = f"{item.low:+.4f} to {item.high:+.4f}"
        p = "" if item.p is None else f"{item.p:.3g}"
        numbers = map(str, (item.documents, item.better, item.worse))
        table.add_row(task, metric, f"{item.value:+.4f}", interval, *numbers, p)
    return table


def differences_to_list(found: dict[tuple[str, str], Difference]) -> list[dict[str, Any]]:
    """Return the differences for JSON."""
    return [{"task": task, "metric": metric, **item.to_dict()} for (task, metric), item in found.items()]
