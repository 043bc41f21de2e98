"""Where the value of an option comes from: the command line, the environment, or a file of ``--config``."""

from __future__ import annotations

from collections.abc import Sequence

import click
from click.core import ParameterSource

from lucid_deploy.cli._names import in_capitals, long_name

CONFIG = "lucid_deploy.config"  # in click's meta: the file
# Where values come from, the place that goes first in front.
_PLACES = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP)


def is_given(context: click.Context, name: str) -> bool:
    """Whether an option was given, on the command line or elsewhere, its default's value included."""
    return context.get_parameter_source(name) is not ParameterSource.DEFAULT


def variable(context: click.Context, parameter: click.Parameter) -> str:
    """Return the name of an option's environment variable: of its own, or made of the command and its longest name."""
    return str(parameter.envvar or f"{context.auto_envvar_prefix}_{in_capitals(long_name(parameter))}")


def source(context: click.Context, parameter: click.Parameter) -> str | None:
    """Return what a value comes from if not from the command line: a variable by name, or a file's path."""
    found = context.get_parameter_source(parameter.name or "")
    if found is ParameterSource.ENVIRONMENT:
        return f"the environment variable {variable(context, parameter)}"
    return str(context.meta[CONFIG]) if found is ParameterSource.DEFAULT_MAP else None


def leave_nearest(context: click.Context, group: Sequence[Sequence[str]]) -> None:
    """Of alternatives, leave those that come from the place that goes first; the others count as not given.

    The command line goes before the environment, and that before a file, as for one option.

    Args:
        context: Of the command, with all its values.
        group: The alternatives, each of one option or of several that go together, by their parameters.
    """
    sources = {name: context.get_parameter_source(name) for names in group for name in names}
    place = next((place for place in _PLACES if place in sources.values()), None)
    beaten = [name for names in group if all(sources[name] is not place for name in names) for name in names]
    for option in context.command.params:
        if isinstance(option, click.Option) and option.name in beaten and sources[option.name] in _PLACES:
            context.params[option.name] = () if option.multiple else False if option.is_flag else None
            context.set_parameter_source(option.name, ParameterSource.DEFAULT)


def origins(context: click.Context, parameters: Sequence[click.Parameter]) -> str:
    """Return sentences for an error about options: what those come from that are not on the command line.

    Args:
        context: Of the command.
        parameters: The options; with several each sentence names its own.

    Returns:
        The sentences, each with a blank before it; empty if there are none.
    """
    sources = ((parameter, source(context, parameter)) for parameter in parameters)
    return "".join(
        f" {'It' if len(parameters) == 1 else long_name(parameter)} comes from {where}."
        for parameter, where in sources
        if where is not None
    )
