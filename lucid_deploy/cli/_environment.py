"""Options from the environment: a variable that looks like one and is none is refused, as a misspelt option is."""

from __future__ import annotations

import os
import re

import click

from lucid_deploy.cli._names import in_capitals, near, nearest
from lucid_deploy.cli._sources import variable
from lucid_deploy.errors import LucidError

PREFIX = "LUCID_DEPLOY"  # of the variables
# What Kubernetes and Docker say of a service that is called as the program is, in the containers beside it.
_SERVICE = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$")
_ADDRESS = re.compile(r"(tcp|udp|sctp)://")


def check_environment(command: click.Command, ctx: click.Context) -> None:
    """Refuse variables that are no option of any command: a misspelt one would have no effect.

    Those of other commands are not looked at.

    Args:
        command: The one that is called.
        ctx: Its context.

    Raises:
        LucidError: There is such a variable.
    """
    if not ctx.auto_envvar_prefix or ctx.resilient_parsing:  # the latter while a shell completes
        return
    options = [item for item in command.params if isinstance(item, click.Option)]
    known, own = {variable(ctx, item) for item in options}, f"{ctx.auto_envvar_prefix}_"
    others = {  # other spellings of an option, and what its parameter is called in Python
        f"{own}{in_capitals(name)}": variable(ctx, item)
        for item in options
        for name in (item.name or "", *item.opts, *item.secondary_opts)
    }
    unknown = next((name for name in sorted(os.environ) if name.startswith(own) and name not in known), None)
    if unknown is not None:
        meant = others.get(unknown)
        hint = f" Did you mean {meant}?" if meant else near(unknown, known)
        raise LucidError(f"The environment variable {unknown} is no option of {ctx.command_path}.{hint}")
    while ctx.parent is not None:
        ctx = ctx.parent
        _check_commands(ctx, known, others, own)


def _check_commands(ctx: click.Context, known: set[str], others: dict[str, str], own: str) -> None:
    """Refuse variables whose name begins as a group's does and goes on with none of its commands."""
    group, start = ctx.command, f"{ctx.auto_envvar_prefix}_"
    if not isinstance(group, click.Group) or not ctx.auto_envvar_prefix:
        return
    commands = [in_capitals(name) for name in group.list_commands(ctx)]
    beginnings = tuple(f"{start}{name}_" for name in commands)
    for name in sorted(os.environ):
        if not name.startswith(start) or name in known or name.startswith(beginnings) or _is_of_a_service(name):
            continue
        rest = name.removeprefix(start)
        meant = others.get(own + rest) or _corrected(start, rest, commands, known)
        raise LucidError(
            f"The environment variable {name} is no option: in its name, no command of {ctx.command_path} follows "
            f"{start[:-1]}.{f' Did you mean {meant}?' if meant else ''}"
        )


def _corrected(start: str, rest: str, commands: list[str], known: set[str]) -> str | None:
    """Return the name with the command that its next word is nearly, or a known name that it is nearly; None: neither.

    The beginning that all have is left out of the comparison: it would make any two of them near.
    """
    word, blank, option = rest.partition("_")
    if blank and (found := nearest(word, commands)):
        return f"{start}{found}_{option}"
    found = nearest(rest, [name.removeprefix(start) for name in known])
    return None if found is None else f"{start}{found}"


def _is_of_a_service(name: str) -> bool:
    return bool(_SERVICE.search(name) or (name.endswith("_PORT") and _ADDRESS.match(os.environ[name])))
