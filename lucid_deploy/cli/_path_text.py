"""Texts that name files: shells complete them, and the command itself looks at what is there."""

from __future__ import annotations

from collections.abc import Iterable

import click
from click.shell_completion import CompletionItem

_KINDS = {"FILE": "file", "[FILE]": "file", "ARTIFACT": "dir"}  # by metavar: what a shell offers
_NAMES = {"checkpoint": "dir"}  # without a metavar


class PathText(click.types.StringParamType):
    """A text that is a path or may be one (a checkpoint can be a name on a hub, ``-`` is a stream).

    ``click.Path`` would complete it too, and refuse what is no path.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind  # of click's completion items: file or dir

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Leave it to the shell."""
        return [CompletionItem(incomplete, type=self.kind)]


def complete_paths(parameters: Iterable[click.Parameter]) -> None:
    """Let shells complete all of a command's texts that name files."""
    for item in parameters:
        kind = _KINDS.get(item.metavar or "") or _NAMES.get(item.name or "")
        if kind is not None and type(item.type) is click.types.StringParamType:
            item.type = PathText(kind)
