"""``lucid-deploy clean``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lucid_deploy.cli._command import Command
from lucid_deploy.cli._options import json_option

if TYPE_CHECKING:
    from lucid_deploy.leftovers import Leftovers


@click.command("clean", cls=Command, any_bytes=True)
@click.argument("directories", nargs=-1, type=click.Path())
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@json_option("what was removed, restored, is in use, and failed")
def command(directories: tuple[str, ...], dry_run: bool, json_target: str | None) -> None:
    """Remove what killed commands left half-written.

    DIRECTORIES are the folders of outputs, this one if none is named, and artifacts, in which engines lie. What a
    running command is making stays, and what is finished too. An artifact that was to be replaced when its command was
    killed gets its name back. Export does the same in the folder of its output, but leaves the layers that an export
    interrupted while calibrating has finished; they are removed here.

    Example: lucid-deploy clean
    """
    from lucid_deploy.cli._console import console_out, write_json
    from lucid_deploy.errors import LucidError
    from lucid_deploy.leftovers import remove_leftovers

    given = [Path(name) for name in directories or (".",)]
    if wrong := [path for path in given if not path.is_dir()]:
        raise LucidError(f"{wrong[0]} is no directory.")
    places = [place for path in given for place in (path, path / "engines") if place.is_dir()]
    found = [remove_leftovers(place, dry_run, unfinished=True) for place in places]
    failed = [str(path) for item in found for path in item.failed]
    facts = {
        "dry_run": dry_run,
        "removed": [str(path) for item in found for path in item.removed],
        "restored": [str(path) for item in found for path in item.restored],
        "in_use": [str(path) for item in found for path in item.in_use],
        "failed": failed,
    }
    if json_target is not None:
        write_json(facts, json_target)
    if json_target != "-":
        for line in _lines(found, dry_run):
            console_out.print(line, soft_wrap=True, markup=False)
    if failed:
        raise LucidError(f"{failed[0]} could not be removed, or get its name again. Is the folder yours, and writable?")


def _lines(found: list[Leftovers], dry_run: bool) -> list[str]:
    would = "Would have " if dry_run else ""
    failed = any(item.failed for item in found)  # which is an error
    said = {
        f"{would}removed": [path for item in found for path in item.removed],
        f"{would}restored": [path for item in found for path in item.restored],
        "In use": [path for item in found for path in item.in_use],
    }
    lines = [f"{what[0].upper()}{what[1:]}: {path}" for what, paths in said.items() for path in paths]
    return lines or ([] if failed else ["Nothing was left behind."])
