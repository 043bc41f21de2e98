"""``lucid-deploy conformance``, also as the program ``lucid-conformance``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lucid_deploy.cli._command import Command
from lucid_deploy.cli._options import json_option, runtime_options
from lucid_deploy.runtimes.options import RuntimeOptions

if TYPE_CHECKING:
    from lucid_deploy.conformance.runner import Result


@click.command("conformance", cls=Command)
@runtime_options(
    "runtime", "device", "provider", "kernels", "threads", help="What runs the cases; auto is onnxruntime."
)
@click.option("--cases", type=click.Path(), help="A folder of cases in place of ours.")
@click.option("--only", default="", help="Run the cases with this text in their names.")
@json_option("the results")
def command(runtime: RuntimeOptions, cases: str | None, only: str, json_target: str | None) -> None:
    """Check that a runtime computes our operators rightly, case by case.

    The cases hold inputs, what must come out, and how far it may be off: for each operator, and for whole tiny models.
    A case in a type that the runtime does not have is not run. Exit status 1 if a case fails, or if none is run.

    Example: lucid-deploy conformance --runtime onnxruntime --kernels functions
    """
    from pathlib import Path

    from lucid_deploy.cli._console import progress, write_json
    from lucid_deploy.conformance.case_files import CASES
    from lucid_deploy.conformance.runner import FAILED, PASSED, run_cases
    from lucid_deploy.errors import CheckFailed

    with progress("Running cases") as update:
        results = run_cases(runtime, Path(cases) if cases is not None else CASES, only, update)
    if json_target is not None:
        write_json([result.to_dict() for result in results], json_target)
    if json_target != "-":
        _show(results)
    failed = [result.case for result in results if result.status == FAILED]
    if failed:
        raise CheckFailed(
            f"{len(failed)} of {len(results)} cases failed: {', '.join(failed[:5])}{', …'[: 3 * (len(failed) > 5)]}."
        )
    if not any(result.status == PASSED for result in results):
        raise CheckFailed(f"None of {len(results)} cases was run: the runtime has none of their types.")


def _show(results: list[Result]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from lucid_deploy.cli._console import console_out

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
    console_out.print(", ".join(f"{count} {status}" for status, count in counts.items()), markup=False)


def _share(item: Result, name: str) -> float:
    """Return how much of its tolerance an output uses, above all others if it is no number."""
    error = item.errors[name]
    return float("inf") if error is None else error / max(item.tolerances[name], 1e-300)


def main() -> None:
    """Run the command as a program of its own, with the toolkit's messages and exit statuses."""
    import sys

    from lucid_deploy.cli import main as toolkit

    toolkit(["conformance", *sys.argv[1:]], prog_name="lucid-deploy")
