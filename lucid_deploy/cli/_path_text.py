"""Texts that name files: shells complete them, and the command itself looks at what is there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

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

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See :func:`_refuse_empty`."""
        _refuse_empty(self, value, param, ctx)
        return super().convert(value, param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Leave it to the shell."""
        return [CompletionItem(incomplete, type=self.kind)]


class NamedPath(click.Path):
    """A path that is not empty."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See :func:`_refuse_empty`."""
        _refuse_empty(self, value, param, ctx)
        return super().convert(value, param, ctx)


def complete_paths(parameters: Iterable[click.Parameter]) -> None:
    """Let shells complete all of a command's texts that name files, and refuse paths that are empty."""
    for item in parameters:
        if type(item.type) is click.Path:
            item.type = NamedPath(path_type=item.type.type)
        kind = _KINDS.get(item.metavar or "") or _NAMES.get(item.name or "")
        if kind is not None and type(item.type) is click.types.StringParamType:
            item.type = PathText(kind)


def _refuse_empty(kind: click.ParamType, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> None:
    """Refuse what a shell makes of a variable that is not set; taken as a path, it would be the current folder."""
    if value == "":
        kind.fail("it is empty; the current folder is written as a dot.", param, ctx)
