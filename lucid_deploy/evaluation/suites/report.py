"""A suite's results for people and for files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.suites.run import TaskResult
from lucid_deploy.files import atomic_write

ANSWERS = "answers.jsonl"


def suite_table(suite: str, results: Sequence[TaskResult]) -> Table:
    """Return each task's metrics with their standard errors; scores over prompts that were cut have a star."""
    cut = any(any(result.truncated) for result in results)
    table = Table("task", "metric", title=suite, caption="* some prompts were cut" if cut else None)
    for heading in ("value", "standard error", "documents", "cut"):
        table.add_column(heading, justify="right")
    for result in results:
        star = "*" if any(result.truncated) else ""
        for metric, (value, error) in result.values.items():
            shown = "" if error is None else f"{error:.4f}"
            numbers = (f"{value:.4f}{star}", shown, str(len(result.samples)), str(sum(result.truncated)))
            table.add_row(result.task.name, metric, *numbers)
    return table


def write_output(folder: Path, facts: dict[str, Any], results: Sequence[TaskResult], samples: bool) -> None:
    """Write ``results.json`` and, if they are wanted, ``samples_NAME.jsonl`` of each task.

    Args:
        folder: It is made if it is missing.
        facts: The results.
        results: With the samples.
        samples: Whether to write these.

    Raises:
        LucidError: It cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for result in results if samples else ():
            lines = [
                json.dumps({**row, "truncated": cut}) for row, cut in zip(result.samples, result.truncated, strict=True)
            ]
            atomic_write(folder / f"samples_{result.task.name}.jsonl", "".join(f"{line}\n" for line in lines).encode())
        atomic_write(folder / "results.json", (json.dumps(facts, indent=2) + "\n").encode())
    except OSError as error:
        raise LucidError(f"{folder} cannot be written: {error.strerror or error}.") from error
