"""The base of all commands: options for output, options from a file or the environment, hints at similar names."""

from __future__ import annotations

from typing import Any

import click

from lucid_deploy.cli._process import check_encoding
from lucid_deploy.cli._sources import (
    CONFIG,
    PREFIX,
    check_environment,
    in_capitals,
    long_name,
    near,
    origins,
    source,
    variable,
)
from lucid_deploy.errors import LucidError

_VERBOSE = "lucid_deploy.verbose"  # in click's meta
_FLAGS = ("quiet", "verbose", "no_color")


def is_verbose() -> bool:
    """Whether the command that runs was given ``--verbose``."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(_VERBOSE))


class Command(click.Command):
    """A command with the options that every command has; its function does not receive them."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.params = [*self.params, *_common_options()]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse options; an error says where a wrong value comes from."""
        check_encoding(args)
        check_environment(self, ctx)
        self._name_variables(ctx)
        try:
            return super().parse_args(ctx, args)
        except click.BadParameter as error:
            where = "" if error.param is None else origins(ctx, [error.param])
            if not where:
                raise
            raise click.BadParameter(f"{error.message}{where}", ctx, error.param) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Check outputs and run; with ``--verbose``, say which options are not from the command line."""
        from lucid_deploy.cli._outputs import check_outputs

        _set_output(ctx, *(ctx.params.pop(name) for name in _FLAGS))
        check_outputs(ctx.params, ctx.meta.get(CONFIG))
        if ctx.meta.get(_VERBOSE):
            _show_sources(self, ctx)
        return super().invoke(ctx)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Say where options can come from besides the command line."""
        named = [item for item in self.params if isinstance(item, click.Option) and item.envvar is None]
        if ctx.auto_envvar_prefix and named:
            formatter.write_paragraph()
            formatter.write_text(
                f"Each option can also be set in the environment, as in {variable(ctx, named[0])} for "
                f"{named[0].opts[-1]}, or in a file: see --config."
            )
        super().format_epilog(ctx, formatter)

    def _name_variables(self, ctx: click.Context) -> None:
        """Name environment variables after options; Click would name them after Python parameters."""
        if not ctx.auto_envvar_prefix:
            return
        for item in self.params:
            if isinstance(item, click.Option):
                item.envvar, item.allow_from_autoenv = variable(ctx, item), False


class Group(click.Group):
    """A group of commands that knows near names of an unknown one, and takes no options from the environment."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for option in self.get_params(ctx):  # --help and --version
            if isinstance(option, click.Option):
                option.allow_from_autoenv = False
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            message = f"No such command '{args[0]}'.{near(args[0], self.list_commands(ctx))}"
            raise click.UsageError(message, error.ctx) from error


def show_where(ctx: click.Context, error: BaseException) -> None:
    """With ``--verbose``, write to stderr where in the code an expected error was raised."""
    import traceback

    if ctx.meta.get(_VERBOSE):
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)


def _common_options() -> list[click.Option]:
    return [
        click.Option(
            ["--config"],
            metavar="FILE",
            envvar=f"{PREFIX}_CONFIG",
            is_eager=True,
            expose_value=False,
            callback=_read_config,
            help="A TOML file with options: a table for each command, with option names as keys, without dashes.",
        ),
        _flag(["-q", "--quiet"], "Write no progress and no remarks to stderr; errors and results stay."),
        _flag(
            ["-v", "--verbose"],
            "Write more to stderr: which options come from elsewhere, and where in the code an error was raised.",
        ),
        _flag(["--no-color"], "No colours; the variable NO_COLOR does the same."),
    ]


def _flag(names: list[str], help: str) -> click.Option:
    return click.Option(names, is_flag=True, envvar=f"{PREFIX}_{in_capitals(names[-1])}", help=help)


def _read_config(ctx: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    from lucid_deploy.cli._config_file import read_defaults

    if value is not None and not ctx.resilient_parsing:
        ctx.default_map = read_defaults(value, ctx)
        ctx.meta[CONFIG] = value


def _set_output(ctx: click.Context, quiet: bool, verbose: bool, no_color: bool) -> None:
    from lucid_deploy.cli._console import set_output

    if quiet and verbose:
        raise LucidError("Give --quiet or --verbose, not both.")
    ctx.meta[_VERBOSE] = verbose
    ctx.call_on_close(set_output(quiet, no_color))
    ctx.color = False if no_color else ctx.color


def _show_sources(command: click.Command, ctx: click.Context) -> None:
    from lucid_deploy.cli._console import console_err

    for parameter in command.params:
        where = source(ctx, parameter)
        if where is not None:
            value = ctx.params.get(parameter.name or "", True)
            console_err.print(f"{long_name(parameter)} is {value}, from {where}", markup=False, soft_wrap=True)
