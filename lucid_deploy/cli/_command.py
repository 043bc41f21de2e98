"""The base of all commands: options for output, and options from the environment."""

from __future__ import annotations

from typing import Any

import click

from lucid_deploy.cli._console import set_output
from lucid_deploy.cli._process import check_encoding
from lucid_deploy.cli._sources import PREFIX, in_capitals, name_variables, origins
from lucid_deploy.errors import LucidError

_VERBOSE = "lucid_deploy.verbose"  # key in the meta of click's context
_FLAGS = ("quiet", "verbose", "no_color")
_EPILOG = "Options can also come from the environment, as in LUCID_DEPLOY_RUN_TOP_K for run --top-k."


def is_verbose() -> bool:
    """Whether the command that runs was given ``--verbose``."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(_VERBOSE))


class Command(click.Command):
    """Adds --quiet, --verbose and --no-color to a command and handles them; the command's function never gets them."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.params = [*self.params, *_common_options()]
        self.epilog = _EPILOG

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse options; an error names the environment variable that a wrong value comes from."""
        check_encoding(args)
        name_variables(self, ctx)
        try:
            return super().parse_args(ctx, args)
        except click.BadParameter as error:
            where = "" if error.param is None else origins(ctx, [error.param])
            raise click.BadParameter(f"{error.message}{where}", ctx, error.param) if where else error from error

    def invoke(self, ctx: click.Context) -> Any:
        """Check that outputs can be written and replace no input, set up the consoles, and run."""
        from lucid_deploy.cli._outputs import check_outputs

        quiet, verbose, no_color = (ctx.params.pop(name) for name in _FLAGS)
        if quiet and verbose:
            raise LucidError("Give --quiet or --verbose, not both.")
        ctx.meta[_VERBOSE] = verbose
        set_output(quiet, no_color)
        ctx.color = False if no_color else ctx.color
        check_outputs(ctx.params)
        return super().invoke(ctx)


def _common_options() -> list[click.Option]:
    def flag(names: list[str], help: str) -> click.Option:
        return click.Option(names, is_flag=True, envvar=f"{PREFIX}_{in_capitals(names[-1])}", help=help)

    return [
        flag(["-q", "--quiet"], "Write no progress and no remarks to stderr; errors and results stay."),
        flag(["-v", "--verbose"], "Write more to stderr, such as where in the code an error was raised."),
        flag(["--no-color"], "No colours; the variable NO_COLOR does the same."),
    ]
