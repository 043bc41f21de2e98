"""Options for checkpoints of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lucid_deploy.errors import LucidError

if TYPE_CHECKING:
    from lucid_deploy.model.hub import HubOptions

NAMES = ("revision", "token_file", "hub_cache", "offline", "hub_endpoint")


def hub_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command; its function gets them by :data:`NAMES`."""
    for option in (
        click.option("--hub-endpoint", metavar="URL", help="Another Hub than huggingface.co, such as a mirror."),
        click.option("--offline", is_flag=True, help="Use what was downloaded from the Hub before; contact no server."),
        click.option(
            "--hub-cache", type=click.Path(), metavar="DIR", help="Folder of the files downloaded from the Hub."
        ),
        click.option(
            "--token-file",
            type=click.Path(),
            metavar="FILE",
            help="Token for private models of the Hub; default: the one that hf auth login stored.",
        ),
        click.option("--revision", metavar="NAME", help="Branch, tag or commit of a model of the Hub; default: main."),
    ):
        command = option(command)
    return command


def read_hub_options(values: dict[str, Any]) -> HubOptions:
    """Return the options as the command line gave them.

    Args:
        values: By :data:`NAMES`.
    """
    from lucid_deploy.model.hub import HubOptions
    from lucid_deploy.serving.security import read_secrets

    endpoint, token = values["hub_endpoint"], values["token_file"]
    if values["revision"] == "":
        raise LucidError("--revision is empty: name a branch, a tag or a commit, or leave it out.")
    if endpoint is not None and not endpoint.startswith(("http://", "https://")):
        raise LucidError(f"--hub-endpoint {endpoint} is no address: it begins with https:// or http://")
    tokens = [None] if token is None else read_secrets("--token-file", token)
    if len(tokens) != 1:
        raise LucidError(f"--token-file {token} holds no token: it is one line of ASCII without blanks.")
    return HubOptions(
        revision=values["revision"],
        token=tokens[0],
        cache=None if values["hub_cache"] is None else Path(values["hub_cache"]),
        offline=values["offline"],
        endpoint=None if endpoint is None else endpoint.rstrip("/"),
    )
