"""The command ``lucid-deploy adapters``: list, add and remove the LoRA adapters of an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lucid_deploy.cli._command import Command
from lucid_deploy.cli._console import note, show, write_results
from lucid_deploy.cli._options import NamedFolder, artifact_argument, json_option
from lucid_deploy.errors import LucidError

if TYPE_CHECKING:
    from lucid_deploy.artifact import Artifact


@click.group("adapters")
def command() -> None:
    """List, add and remove the LoRA adapters of an artifact.

    An artifact has room for adapters if it was exported with --adapter or --max-adapters. Its weights and graphs do
    not change: one file is replaced, whole or not at all. Processes that have opened the artifact keep the adapters
    that it had then.

    Example: lucid-deploy adapters add ./artifact support=./lora
    """


@command.command("list", cls=Command)
@artifact_argument
@json_option("the list")
def list_command(artifact: str, json_target: str | None) -> None:
    """List an artifact's adapters.

    Example: lucid-deploy adapters list ./artifact
    """
    from lucid_deploy.artifact import open_artifact

    _show(open_artifact(artifact), json_target)


@command.command("add", cls=Command)
@artifact_argument
@click.argument("adapters", nargs=-1, required=True, type=NamedFolder(), metavar="NAME=DIR...")
def add_command(artifact: str, adapters: tuple[tuple[str, Path], ...]) -> None:
    """Add adapters, as PEFT saves them: all or none.

    Example: lucid-deploy adapters add ./artifact support=./lora
    """
    from lucid_deploy.artifact import open_artifact
    from lucid_deploy.export.adapters import change_adapters

    opened, given = open_artifact(artifact), dict(adapters)
    if len(given) < len(adapters):
        raise LucidError("Two of the adapters have the same name.")
    for sentence in change_adapters(opened, given):
        note(f"Note: {sentence}")
    _show(opened)


@command.command("remove", cls=Command)
@artifact_argument
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def remove_command(artifact: str, names: tuple[str, ...]) -> None:
    """Remove adapters: all or none.

    Example: lucid-deploy adapters remove ./artifact support
    """
    from lucid_deploy.artifact import open_artifact
    from lucid_deploy.export.adapters import change_adapters

    opened = open_artifact(artifact)
    change_adapters(opened, {}, names)
    _show(opened)


def _show(artifact: Artifact, json_target: str | None = None) -> None:
    import msgspec

    slots, adapters = artifact.manifest.adapters, artifact.adapters()
    facts: dict[str, Any] = {"adapters": msgspec.to_builtins(adapters), "room": msgspec.to_builtins(slots)}

    def lines() -> None:
        for each in adapters:
            show(f"{each.name}: rank {each.rank}, from {each.source}")
        room = "no room for adapters" if slots is None else f"room for {slots.count}, of rank {slots.rank} at most"
        show(f"{len(adapters)} adapter{'' if len(adapters) == 1 else 's'} in {artifact.directory}; {room}")

    write_results(facts, json_target, lines)
