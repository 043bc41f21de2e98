"""Options for checkpoints of the Hugging Face Hub."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lucid_deploy.cli._generation_options import read_file
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

    endpoint, token = values["hub_endpoint"], values["token_file"]
    if values["revision"] == "":
        raise LucidError("--revision is empty: name a branch, a tag or a commit, or leave it out.")
    if endpoint is not None and not endpoint.startswith(("http://", "https://")):
        raise LucidError(f"--hub-endpoint {endpoint} is no address: it begins with https:// or http://")
    return HubOptions(
        revision=values["revision"],
        token=None if token is None else _read_token(token),
        cache=None if values["hub_cache"] is None else Path(values["hub_cache"]),
        offline=values["offline"],
        endpoint=None if endpoint is None else endpoint.rstrip("/"),
    )


def _read_token(path: str) -> str:
    token = read_file("--token-file", path).strip()
    if os.name == "posix" and Path(path).stat().st_mode & stat.S_IROTH:
        raise LucidError(f"--token-file {path} can be read by every user of this machine; run: chmod o-r {path}")
    if not (token.isascii() and token.isprintable() and token) or " " in token:
        raise LucidError(f"--token-file {path} holds no token: it is one line of ASCII without blanks.")
    return token
