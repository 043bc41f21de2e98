"""``lucid-deploy doctor``."""

from __future__ import annotations

import click


@click.command("doctor")
@click.option("--json", "json_target", metavar="FILE", help="Write the findings as JSON to FILE; - is stdout.")
def command(json_target: str | None) -> None:
    """Show what is installed, what works, and what to install.

    Exit status 1 if something that is needed for exporting is missing or broken.

    Example: lucid-deploy doctor
    """
    from rich.table import Table

    from lucid_deploy.cli._console import console_out, progress, write_json
    from lucid_deploy.diagnosis import CHECKS, run_check
    from lucid_deploy.errors import CheckFailed

    findings = []
    with progress("Checking") as update:
        for done, check in enumerate(CHECKS):
            update(f"Checking {check.name}", done, len(CHECKS))
            findings.append(run_check(check))
    if json_target is not None:
        write_json([finding.to_dict() for finding in findings], json_target)
    if json_target != "-":
        table = Table("", "what", "version", "for", "remark")
        marks = {"ok": "[green]ok[/]", "missing": "[yellow]missing[/]", "broken": "[red]broken[/]"}
        for item in findings:
            table.add_row(marks[item.status], item.name, item.version, item.purpose, item.remark)
        console_out.print(table)
    wrong = [item.name for item in findings if item.required and item.status != "ok"]
    if wrong:
        raise CheckFailed(f"Needed and not working: {', '.join(wrong)}. See the remarks above.")
