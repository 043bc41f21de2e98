"""``--config FILE``: options of commands from a TOML file, one table for each command. Unknown names are refused."""

from __future__ import annotations

import tomllib
from datetime import date, time
from pathlib import Path
from typing import Any

import click

from lucid_deploy.cli._names import long_name, near
from lucid_deploy.errors import LucidError
from lucid_deploy.json_fields import clipped, shown

_NOT_IN_A_FILE = ("--config", "--help")


def read_defaults(name: str, ctx: click.Context) -> dict[str, Any]:
    """Return the options that a file has for the command of a context, by the names of its parameters.

    Args:
        name: The file.
        ctx: The command's context; its path names the table, ``[plugin.build]`` for ``plugin build``.

    Raises:
        LucidError: The file cannot be read, or has a table, a name or a value that no command takes.
    """
    tables = read_toml(name)
    root = ctx.find_root()
    if isinstance(root.command, click.Group):
        _check_tables(name, tables, root.command.list_commands(root))
    options = _options(ctx.command)
    table, path = tables, _path(ctx)
    for step in path:
        table = table.get(step, {})
        if not isinstance(table, dict):
            raise LucidError(f"{name}: {step} must be a table: [{'.'.join(path)}]")
    values: dict[str, Any] = {}
    for key, value in table.items():
        option = options.get(f"--{key.replace('_', '-')}")
        if option is None:
            known = [item.removeprefix("--") for item in options]
            raise LucidError(f"{name}: {'.'.join(path)} has no option {clipped(key)}.{near(key, known)}")
        try:
            values[str(option.name)] = _value(option, value)
            option.type_cast_value(ctx, values[str(option.name)])
        except click.BadParameter as error:
            raise LucidError(f"{name}: {'.'.join(path)}.{key}: {error.message}") from error
    return values


def read_toml(name: str) -> dict[str, Any]:
    """Return the tables of a file.

    Raises:
        LucidError: It cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(Path(name).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise LucidError(f"--config {name} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, or no TOML
        raise LucidError(f"--config {name} is not a TOML file: {error}") from error


def _check_tables(name: str, tables: dict[str, Any], commands: list[str]) -> None:
    for key, value in tables.items():
        if key not in commands:
            raise LucidError(
                f"{name}: {clipped(key)} is no command; options stand in a table of one.{near(key, commands)}"
            )
        if not isinstance(value, dict):
            raise LucidError(f"{name}: {key} must be a table of options: [{key}]")


def _path(ctx: click.Context) -> list[str]:
    names = [ctx.info_name or ""]
    while ctx.parent is not None and ctx.parent.parent is not None:
        ctx = ctx.parent
        names.insert(0, ctx.info_name or "")
    return names


def _options(command: click.Command) -> dict[str, click.Option]:
    """Return the options that a file may have, by their long names."""
    options = (item for item in command.params if isinstance(item, click.Option))
    found = {long_name(option): option for option in options}
    return {name: option for name, option in found.items() if name not in _NOT_IN_A_FILE}


def _value(option: click.Option, value: Any) -> Any:
    """Return a value as the command line would give it, so that both mean the same: numbers become words.

    Raises:
        click.BadParameter: It is of a kind that the option does not take.
    """
    if option.is_flag:
        if not isinstance(value, bool):
            raise click.BadParameter(f"must be true or false, not {_shown(value)}.")
        return value
    if isinstance(value, list) and option.multiple:
        return [_word(item) for item in value]
    return [_word(value)] if option.multiple else _word(value)


def _word(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise click.BadParameter(f"must be a text or a number, not {_shown(value)}.")
    if "\0" in str(value):
        raise click.BadParameter("holds a NUL character, which no argument can have.")
    return str(value)


def _shown(value: Any) -> str:
    return str(value) if isinstance(value, date | time) else shown(value)  # TOML has them, JSON has not
