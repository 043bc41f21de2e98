"""``lucid-deploy bench --solvers``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

USED = {"artifacts", "lengths", "repeats", "threads", "questions", "json_target", "solvers"}


def bench_solvers(
    context: click.Context,
    artifacts: tuple[str, ...],
    lengths: tuple[int, ...],
    questions: int,
    repeats: int,
    threads: int | None,
    json_target: str | None,
) -> None:
    """Compare ways to solve one artifact's system, and show a table.

    Raises:
        LucidError: Options that have nothing to do here, several artifacts, or as
            :func:`~lucid_deploy.bench.solver_comparison.compare_solvers`.
    """
    from lucid_deploy.artifact import open_artifact
    from lucid_deploy.bench.machine import describe_machine
    from lucid_deploy.cli._console import console_out, progress, shown_after, write_json
    from lucid_deploy.errors import LucidError

    _refuse_others(context)
    if len(artifacts) != 1:
        raise LucidError(f"--solvers takes one artifact, not {len(artifacts)}.")
    artifact = open_artifact(artifacts[0])
    from lucid_deploy.bench.solver_comparison import compare_solvers
    from lucid_deploy.runtimes.torch.threads import torch_threads

    with progress("Solving") as update, torch_threads(threads):
        rows = compare_solvers(artifact, lengths, questions, repeats, update)
    with shown_after(json_target, lambda: console_out.print(_table(rows))):
        if json_target is not None:
            write_json({"machine": describe_machine(), "questions": questions, "rows": rows}, json_target)


def _refuse_others(context: click.Context) -> None:
    from lucid_deploy.errors import LucidError

    for option in context.command.params:
        given = context.get_parameter_source(option.name or "") is click.core.ParameterSource.COMMANDLINE
        if given and option.name not in USED:
            raise LucidError(f"{option.opts[0]} has nothing to do with --solvers; leave one of them out.")


def refuse_questions(context: click.Context) -> None:
    """Refuse ``--questions`` where nothing is asked."""
    from lucid_deploy.errors import LucidError

    if context.get_parameter_source("questions") is click.core.ParameterSource.COMMANDLINE:
        raise LucidError("--questions is for --solvers; leave it out, or add --solvers.")


def _table(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    asked = any(row["needles"] is not None for row in rows)
    table = Table("tokens", "solver", "type", "error of Y", "ms a layer", "best token as in float64")
    if asked:
        table.add_column("needles right")
    for row in rows:
        error = "not finite" if row["error"] is None else f"{row['error']:.1e}"
        cells = [str(row["length"]), row["solver"], row["dtype"], error, f"{row['milliseconds']:.2f}"]
        cells.append(f"{100 * row['same_best']:.1f} %")
        if asked:
            needles = row["needles"]
            cells.append("not asked" if needles is None else f"{needles['right']} of {needles['count']}")
        table.add_row(*cells)
    return table
