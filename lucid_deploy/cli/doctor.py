"""The command ``lucid-deploy doctor``: show what is installed and whether it works."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Table

from lucid_deploy.cli._command import Command
from lucid_deploy.cli._console import console_out, progress, write_results
from lucid_deploy.cli._options import json_option
from lucid_deploy.errors import CheckFailed

if TYPE_CHECKING:
    from lucid_deploy.doctor.diagnosis import Finding


@click.command("doctor", cls=Command)
@json_option("the findings")
def command(json_target: str | None) -> None:
    """Show what is installed, what works, and what to install.

    Everything for TensorRT is optional. Exit status 1 if something required is missing or broken.

    Example: lucid-deploy doctor
    """
    from lucid_deploy.doctor.diagnosis import CHECKS, run_check

    findings = []
    with progress("Checking") as update:
        for done, check in enumerate(CHECKS):
            update(f"Checking {check.name}", done, len(CHECKS))
            findings.append(run_check(check))
    write_results([finding.to_dict() for finding in findings], json_target, lambda: _show(findings))
    wrong = [item.name for item in findings if item.required and item.status != "ok"]
    if wrong:
        raise CheckFailed(f"Needed and not working: {', '.join(wrong)}. See the remarks above.")


def _show(findings: list[Finding]) -> None:
    table = Table("", "what", "version", "for")
    table.add_column("remark", overflow="fold")  # paths are to be copied, so nothing is cut off
    marks = {"ok": "[green]ok[/]", "missing": "[yellow]missing[/]", "broken": "[red]broken[/]"}
    for item in findings:
        table.add_row(marks[item.status], item.name, item.version, item.purpose, escape(item.remark))
    console_out.print(table)
