"""Where an option's value comes from: the command line, the environment, or the file of ``--config``.

Click reads all three (``auto_envvar_prefix``, ``default_map``). What stands here names variables after options, refuses
unknown names, which Click would ignore, and says in an error where a wrong value was found.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence

import click
from click.core import ParameterSource

from lucid_deploy.errors import LucidError

PREFIX = "LUCID_DEPLOY"  # of environment variables
CONFIG = "lucid_deploy.config"  # key of Click's meta: the file of --config
COMMON = ("CONFIG", "QUIET", "VERBOSE", "NO_COLOR")  # variables that apply to every command
# Kubernetes and Docker set these in containers beside a service that is called lucid-deploy.
_SERVICE = re.compile(rf"{PREFIX}_(SERVICE_HOST|SERVICE_PORT\w*|PORT|PORT_\d+_\w+)$")


def long_name(option: click.Parameter) -> str:
    """Return an option's longest spelling, ``--json``."""
    return max(option.opts, key=len)


def in_capitals(name: str) -> str:
    """Return a name as environment variables have it: ``--max-body`` becomes ``MAX_BODY``."""
    return name.lstrip("-").replace("-", "_").upper()


def near(name: str, known: Collection[str]) -> str:
    """Return `` Did you mean NAME?`` with the most similar known name, or nothing."""
    from difflib import get_close_matches

    return "".join(f" Did you mean {found}?" for found in get_close_matches(name, known, n=1))


def is_given(context: click.Context, name: str) -> bool:
    """Whether an option was set anywhere, even to its default."""
    return context.get_parameter_source(name) is not ParameterSource.DEFAULT


def variable(context: click.Context, option: click.Parameter) -> str:
    """Return the name of an option's environment variable: ``LUCID_DEPLOY_RUN_TOP_K`` for ``run --top-k``."""
    return str(option.envvar or f"{context.auto_envvar_prefix}_{in_capitals(long_name(option))}")


def source(context: click.Context, option: click.Parameter) -> str | None:
    """Return where a value comes from, in words; None for the command line and for defaults."""
    found = context.get_parameter_source(option.name or "")
    if found is ParameterSource.ENVIRONMENT:
        return f"the environment variable {variable(context, option)}"
    return str(context.meta[CONFIG]) if found is ParameterSource.DEFAULT_MAP else None


def origins(context: click.Context, options: Sequence[click.Parameter]) -> str:
    """Return sentences, each after a blank, that say which of these options are not from the command line."""
    sources = ((option, source(context, option)) for option in options)
    return "".join(
        f" {'It' if len(options) == 1 else long_name(option)} comes from {where}."
        for option, where in sources
        if where is not None
    )


def check_environment(command: click.Command, context: click.Context) -> None:
    """Refuse environment variables with our prefix that no option reads, since a misspelt one would have no effect.

    Variables of other commands are not looked at.

    Raises:
        LucidError: There is such a variable.
    """
    if not context.auto_envvar_prefix or context.resilient_parsing:  # the latter while a shell completes
        return
    known = {variable(context, option) for option in command.params if isinstance(option, click.Option)}
    root = context.find_root().command
    commands = [in_capitals(name) for name in root.list_commands(context)] if isinstance(root, click.Group) else []
    others = tuple(f"{PREFIX}_{name}_" for name in commands)
    for name in sorted(os.environ):
        if not name.startswith(f"{PREFIX}_") or name in known or _SERVICE.match(name):
            continue
        if name.startswith(f"{context.auto_envvar_prefix}_"):
            raise LucidError(
                f"The environment variable {name} is no option of {context.command_path}.{near(name, known)}"
            )
        if not name.startswith(others):
            raise LucidError(f"The environment variable {name} belongs to no command.{near(name, known)}")
