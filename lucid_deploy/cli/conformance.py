"""The command ``lucid-deploy conformance``, which is also the program ``lucid-conformance``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Table

from lucid_deploy.cli._command import Command
from lucid_deploy.cli._console import console_out, progress, show, write_results
from lucid_deploy.cli._options import json_option, runtime_options
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.runtimes.options import RuntimeOptions

if TYPE_CHECKING:
    from lucid_deploy.conformance.runner import Result


@click.command("conformance", cls=Command)
@runtime_options("kernels", "threads")
@click.option("--cases", type=click.Path(), help="Run the cases of this folder instead of making them.")
@click.option("--only", default="", help="Only cases with this text in their names.")
@click.option("--write", type=click.Path(), help="Write the cases into this new folder and run nothing.")
@json_option("the results")
def command(runtime: RuntimeOptions, cases: str | None, only: str, write: str | None, json_target: str | None) -> None:
    """Check that onnxruntime computes our operators correctly on this machine, case by case.

    A case has inputs, expected outputs and tolerances, for one operator or for a whole tiny model. Cases are made when
    the command runs, from the operators' current function bodies. A case in a type that onnxruntime lacks is not run.
    The exit status is 1 if a case fails, or if none was run. --write writes the cases to files, for other runtimes.

    Example: lucid-deploy conformance --kernels functions
    """
    from pathlib import Path

    if write is not None:
        from lucid_deploy.conformance.cases import write_cases

        if cases is not None or json_target is not None:
            raise LucidError("--write runs nothing: leave --cases and --json out.")
        show(f"Wrote {write_cases(Path(write), only)} cases to {write}.")
        return
    from lucid_deploy.conformance.runner import FAILED, PASSED, run_cases

    with progress("Running cases") as update:
        results = run_cases(runtime, Path(cases) if cases is not None else None, only, update)
    write_results([result.to_dict() for result in results], json_target, lambda: _show(results))
    failed = [result.case for result in results if result.status == FAILED]
    if failed:
        raise CheckFailed(
            f"{len(failed)} of {len(results)} cases failed: {', '.join(failed[:5])}{', …' if len(failed) > 5 else ''}."
        )
    if not any(result.status == PASSED for result in results):
        raise CheckFailed(f"None of {len(results)} cases was run: onnxruntime supports none of their types.")


def _show(results: list[Result]) -> None:
    table = Table("case", "result", "error", "allowed")
    table.add_column("remark", overflow="fold")
    marks = {"passed": "[green]passed[/]", "failed": "[red]failed[/]", "not run": "[yellow]not run[/]"}
    for item in results:
        worst = max(item.errors, key=lambda name: _share(item, name), default=None)
        error = item.errors.get(worst) if worst is not None else None
        shown = "" if worst is None else "no number" if error is None else f"{error:.2g}"
        allowed = "" if worst is None else f"{item.tolerances[worst]:.2g}"
        table.add_row(item.case, marks[item.status], shown, allowed, escape(item.remark))
    console_out.print(table)
    counts = {status: sum(item.status == status for item in results) for status in marks}
    show(", ".join(f"{count} {status}" for status, count in counts.items()))


def _share(item: Result, name: str) -> float:
    """Return an output's error over its tolerance; infinity if the error is not a finite number."""
    error = item.errors[name]
    return float("inf") if error is None else error / max(item.tolerances[name], 1e-300)


def main() -> None:
    """Run the command as the program ``lucid-conformance``, with the toolkit's messages and exit statuses."""
    import sys

    from lucid_deploy.cli import main as toolkit

    toolkit(["conformance", *sys.argv[1:]], prog_name="lucid-deploy")
