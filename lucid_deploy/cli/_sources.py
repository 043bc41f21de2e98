"""Options that come from the environment: their names, and the refusal of unknown ones.

Click reads their values. By itself it would ignore a misspelt variable, and name variables after Python parameters.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from difflib import get_close_matches

import click
from click.core import ParameterSource

from lucid_deploy.errors import LucidError

PREFIX = "LUCID_DEPLOY"  # of environment variables


def long_name(option: click.Parameter) -> str:
    """Return an option's longest spelling, such as ``--json``."""
    return max(option.opts, key=len)


def in_capitals(name: str) -> str:
    """Return a name as environment variables have it: ``--max-body`` becomes ``MAX_BODY``."""
    return name.lstrip("-").replace("-", "_").upper()


def near(name: str, known: Collection[str]) -> str:
    """Return `` Did you mean NAME?`` with the most similar known name, or nothing."""
    return "".join(f" Did you mean {found}?" for found in get_close_matches(name, known, n=1))


def given_options(context: click.Context, names: Collection[str]) -> list[click.Parameter]:
    """Return the options among ``names`` that the command line or environment sets, even to their defaults."""
    options = [option for option in context.command.params if option.name in names]
    return [each for each in options if context.get_parameter_source(str(each.name)) is not ParameterSource.DEFAULT]


def refuse_given(context: click.Context, names: Collection[str], reason: str, remedy: str = "Leave it out.") -> None:
    """Refuse options that have no effect here, whatever their value; ``reason`` follows their names."""
    if given := given_options(context, names):
        raise LucidError(f"{', '.join(map(long_name, given))} {reason}.{origins(context, given)} {remedy}")


def origins(context: click.Context, options: Sequence[click.Parameter]) -> str:
    """Return sentences, each after a blank, that name the environment variables which set some of these options."""
    sentences = ""
    for option in options:
        found = context.get_parameter_source(option.name or "")
        subject = "It" if len(options) == 1 else long_name(option)
        if found is ParameterSource.ENVIRONMENT:
            sentences += f" {subject} comes from the environment variable {option.envvar}."
    return sentences


def name_variables(command: click.Command, context: click.Context) -> None:
    """Give each option of a command its environment variable, and refuse variables that no option reads.

    ``LUCID_DEPLOY_RUN_TOP_K`` is for ``run --top-k``. Variables of other commands are not looked at.
    """
    path = _path(context)
    if not path:  # a command on its own, as in a configuration of Ray
        return
    own = "_".join([PREFIX, *map(in_capitals, path)])
    options = [option for option in command.params if isinstance(option, click.Option)]
    for option in options:
        option.envvar = option.envvar or f"{own}_{in_capitals(long_name(option))}"
    known = {str(option.envvar) for option in options}
    for name in sorted(os.environ):
        if name.startswith(f"{own}_") and name not in known and not context.resilient_parsing:
            raise LucidError(
                f"The environment variable {name} is no option of {context.command_path}.{near(name, known)}"
            )


def _path(context: click.Context) -> list[str]:
    """Return a command's words after ``lucid-deploy``, such as ``plugin build``."""
    return context.command_path.removeprefix(context.find_root().command_path).split()
