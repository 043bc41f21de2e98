"""``--config FILE``: options from a TOML file, one table for each command. Unknown names are refused."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import click

from lucid_deploy.cli._sources import long_name, near
from lucid_deploy.errors import LucidError


def read_defaults(name: str, context: click.Context) -> dict[str, Any]:
    """Return the options that a file has for a command, by the names of its Python parameters.

    Args:
        name: The file.
        context: The command's context; its path names the table, ``[plugin.build]`` for ``plugin build``.

    Raises:
        LucidError: The file cannot be read, or has a table, a name or a value that no command takes.
    """
    tables = read_toml(name)
    root = context.find_root()
    path = context.command_path.removeprefix(root.command_path).split()  # "python -m lucid_deploy.cli" has blanks
    if isinstance(root.command, click.Group):
        commands = root.command.list_commands(root)
        if unknown := sorted(tables.keys() - set(commands)):
            raise LucidError(f"{name}: there is no command {unknown[0]!r}.{near(unknown[0], commands)}")
    table = tables
    for step in path:
        table = table.get(step, {})
        if not isinstance(table, dict):
            raise LucidError(f"{name}: {step} must be a table: [{'.'.join(path)}]")
    options = {long_name(option).lstrip("-"): option for option in context.command.params if _belongs_here(option)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        option = options.get(key.replace("_", "-"))
        if option is None:
            raise LucidError(f"{name}: {'.'.join(path)} has no option {key!r}.{near(key, options)}")
        try:
            values[str(option.name)] = _as_on_the_command_line(option, value)
            option.type_cast_value(context, values[str(option.name)])
        except click.BadParameter as error:
            raise LucidError(f"{name}: {'.'.join(path)}.{key}: {error.message}") from error
    return values


def read_toml(name: str) -> dict[str, Any]:
    """Return the tables of a file.

    Raises:
        LucidError: It cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(Path(name).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise LucidError(f"--config {name} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise LucidError(f"--config {name} is not a TOML file: {error}") from error


def _belongs_here(option: click.Parameter) -> bool:
    return isinstance(option, click.Option) and long_name(option) not in ("--config", "--help")


def _as_on_the_command_line(option: click.Parameter, value: Any) -> Any:
    """Return a value as Click gets it from the command line, where numbers are text.

    Raises:
        click.BadParameter: It is of a kind that the option does not take.
    """
    if isinstance(option, click.Option) and option.is_flag:
        if not isinstance(value, bool):
            raise click.BadParameter(f"must be true or false, not {value!r}.")
        return value
    items = value if isinstance(value, list) and option.multiple else [value]
    for item in items:
        if isinstance(item, bool) or not isinstance(item, str | int | float) or "\0" in str(item):
            raise click.BadParameter(f"must be text or a number, not {item!r}.")
    words = [str(item) for item in items]
    return words if option.multiple else words[0]
