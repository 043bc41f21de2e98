"""What every command has: options for its output, options from a file or the environment, and hints at near names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from click.core import ParameterSource

from lucid_deploy.cli._environment import PREFIX, check_environment
from lucid_deploy.cli._names import long_name, near
from lucid_deploy.cli._path_text import complete_paths
from lucid_deploy.cli._sources import CONFIG, leave_nearest, origins, source, variable
from lucid_deploy.cli._streams import check_encoding
from lucid_deploy.errors import LucidError

_VERBOSE = "lucid_deploy.verbose"  # in click's meta


def is_verbose() -> bool:
    """Whether the command that runs was given ``--verbose``."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(_VERBOSE))


class Command(click.Command):
    """A command with the options that all have; its function does not get them.

    Args:
        any_bytes: Whether its arguments may be bytes that are no text in the locale's encoding.
        alternatives: Groups of options of which one is to be given, as
            :func:`~lucid_deploy.cli._sources.leave_nearest` takes them.
        arguments: As :class:`click.Command` takes them, and so ``named``.
    """

    def __init__(
        self,
        *arguments: Any,
        any_bytes: bool = False,
        alternatives: Sequence[Sequence[Sequence[str]]] = (),
        **named: Any,
    ) -> None:
        super().__init__(*arguments, **named)
        self._any_bytes, self._alternatives = any_bytes, alternatives
        self.params = [*self.params, *_common_options()]
        complete_paths(self.params)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See :class:`click.Command`; what a wrong value came from is said too."""
        if not self._any_bytes:
            check_encoding(args)
        check_environment(self, ctx)
        self._name_variables(ctx)
        try:
            rest = super().parse_args(ctx, args)
            for group in self._alternatives:
                leave_nearest(ctx, group)
            return rest
        except click.BadParameter as error:
            named = error.param
            where = "" if named is None else origins(ctx, [named])
            if not where:
                raise
            raise click.BadParameter(f"{error.message}{where}", ctx, named) from error

    def invoke(self, ctx: click.Context) -> Any:
        """See :class:`click.Command`; checks outputs, and with ``--verbose`` says which options come from elsewhere."""
        from lucid_deploy.cli._outputs import check_outputs

        check_outputs(ctx.params, ctx.meta.get(CONFIG))
        if ctx.meta.get(_VERBOSE):
            _show_sources(self, ctx)
        return super().invoke(ctx)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Say where options can come from besides the command line."""
        named = [item for item in self.params if isinstance(item, click.Option) and item.name not in _common_names()]
        if ctx.auto_envvar_prefix and named:
            formatter.write_paragraph()
            formatter.write_text(
                f"Each option can also be set in the environment, as in {variable(ctx, named[0])} for "
                f"{named[0].opts[-1]}, or in a file: see --config."
            )
        super().format_epilog(ctx, formatter)

    def _name_variables(self, ctx: click.Context) -> None:
        """Name options' variables after the options; click would take the names of their Python parameters."""
        if not ctx.auto_envvar_prefix:
            return
        for item in self.params:
            if isinstance(item, click.Option):
                item.envvar, item.allow_from_autoenv = variable(ctx, item), False


class Group(click.Group):
    """A group of commands that knows near names of an unknown one, and takes no options from the environment."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See :class:`click.Group`."""
        for option in self.get_params(ctx):  # --help and --version
            if isinstance(option, click.Option):
                option.allow_from_autoenv = False
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """See :class:`click.Group`."""
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
            help="A TOML file with options: a table named like the command, in it names without dashes in front.",
        ),
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            envvar=f"{PREFIX}_QUIET",
            expose_value=False,
            callback=_remember("quiet"),
            help="Neither progress nor remarks on stderr; errors and results stay.",
        ),
        click.Option(
            ["-v", "--verbose"],
            is_flag=True,
            envvar=f"{PREFIX}_VERBOSE",
            expose_value=False,
            callback=_remember("verbose"),
            help="More on stderr: options from elsewhere, and where in the code an error was raised.",
        ),
        click.Option(
            ["--no-color"],
            is_flag=True,
            envvar=f"{PREFIX}_NO_COLOR",
            expose_value=False,
            callback=_remember("no_color"),
            help="No colours; the variable NO_COLOR does the same.",
        ),
    ]


def _common_names() -> set[str | None]:
    return {option.name for option in _common_options()}


def _read_config(ctx: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    from lucid_deploy.cli._config_file import read_defaults

    if value is not None and not ctx.resilient_parsing:
        ctx.default_map = read_defaults(value, ctx)
        ctx.meta[CONFIG] = value


def _remember(name: str) -> Any:
    """Return the callback of a flag for the output; together they act once all three are known."""

    def callback(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
        from lucid_deploy.cli._console import set_output

        given = ctx.meta.setdefault("lucid_deploy.output", {})
        given[name] = value
        if len(given) < 3 or ctx.resilient_parsing:
            return
        del ctx.meta["lucid_deploy.output"]
        if given["quiet"] and given["verbose"]:
            quiet, verbose = map(ctx.get_parameter_source, ("quiet", "verbose"))
            if quiet is verbose:
                raise LucidError("Give --quiet or --verbose, not both.")
            given["verbose" if quiet is ParameterSource.COMMANDLINE else "quiet"] = False
        ctx.meta[_VERBOSE] = given["verbose"]
        ctx.call_on_close(set_output(given["quiet"], given["no_color"]))
        ctx.color = False if given["no_color"] else ctx.color

    return callback


def _show_sources(command: click.Command, ctx: click.Context) -> None:
    from lucid_deploy.cli._console import console_err

    for parameter in command.params:
        where = source(ctx, parameter)
        if where is not None:
            value = ctx.params.get(parameter.name or "", True)
            console_err.print(f"{long_name(parameter)} is {value}, from {where}", markup=False, soft_wrap=True)
