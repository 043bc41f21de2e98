"""The command line. Commands live one per file and are imported when they are called, so that ``--help`` is quick."""

from __future__ import annotations

import errno
import importlib
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from lucid_deploy.cli._command import PREFIX, Group, show_where
from lucid_deploy.cli._memory import TOO_LITTLE_MEMORY, lacks_memory
from lucid_deploy.cli._streams import prepare_streams
from lucid_deploy.errors import LucidError
from lucid_deploy.version import __version__

# Name of each command and the first line of its help, so that the list needs no command's imports.
COMMANDS = {
    "export": "Export a checkpoint to prefill and decode ONNX graphs.",
    "plugin": "Build the libraries that compute our operators natively.",
    "build": "Build TensorRT engines of an exported artifact.",
    "run": "Generate text with an exported artifact.",
    "chat": "Talk with a model in the terminal.",
    "serve": "Serve an artifact over HTTP, as OpenAI's API.",
    "verify": "Prove that an artifact computes what PyTorch computes.",
    "eval": "Measure how good an artifact's answers are.",
    "package": "Write what NVIDIA Triton, or trtexec and Polygraphy, take.",
    "inspect": "Show graphs, tensors, operators, sizes and memory needs.",
    "bench": "Measure prefill and decode of artifacts and baselines, side by side.",
    "conformance": "Check that a runtime computes our operators rightly, case by case.",
    "doctor": "Show what is installed, what works, and what to install.",
    "clean": "Remove what killed commands left half-written.",
    "completion": "Print what makes a shell complete commands and options.",
}


class _ReportedError(click.ClickException):
    """An expected error: one message on stderr, and the error's own exit status."""

    def __init__(self, error: LucidError) -> None:
        super().__init__(str(error))
        self.exit_code = error.exit_code  # type: ignore[misc]


class _Commands(Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"lucid_deploy.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(self, *arguments: Any, **named: Any) -> Any:
        """See :class:`click.Command`; --help is written before any command is invoked."""
        try:
            prepare_streams()
        except LucidError as error:
            _ReportedError(error).show()
            sys.exit(error.exit_code)
        return super().main(*arguments, **named)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _unwinding_on_signals():
                return super().invoke(ctx)
        except LucidError as error:
            show_where(ctx, error)
            raise _ReportedError(error) from error
        except OSError as error:
            if lacks_memory(error):
                raise _ReportedError(LucidError(TOO_LITTLE_MEMORY)) from error
            if error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:
                raise _ReportedError(LucidError(f"Writing the output failed: {error.strerror}.")) from error
            if error.filename is None:  # not about a file: a closed pipe, which click handles, or a bug
                raise
            raise _ReportedError(LucidError(f"{error.filename}: {error.strerror}.")) from error
        except Exception as error:
            if came_of_interrupt(error):
                _end_interrupted(ctx)
            if not lacks_memory(error):
                raise
            show_where(ctx, error)
            raise _ReportedError(LucidError(TOO_LITTLE_MEMORY)) from error
        except KeyboardInterrupt:
            _end_interrupted(ctx)


def came_of_interrupt(error: BaseException) -> bool:
    """Return whether an error came while Ctrl-C was being handled, as of a module whose import it cut off."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, KeyboardInterrupt):
        seen = seen.__cause__ or seen.__context__
    return seen is not None


def _end_interrupted(ctx: click.Context) -> NoReturn:
    click.echo("Interrupted.", err=True)
    ctx.exit(128 + signal.SIGINT)


@contextmanager
def _unwinding_on_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP exceptions, so that what is half done is cleaned up, as it is after Ctrl-C.

    A signal that is ignored (nohup) stays ignored.
    """
    known = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [number for number in known if signal.getsignal(number) == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        numbers = []

    def stop(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": PREFIX})
@click.version_option(__version__, prog_name="lucid-deploy")
def main() -> None:
    """Take models with LUCID attention from PyTorch to production.

    Results go to stdout, progress and messages to stderr. Exit status: 0 success, 1 a check failed (parity, a damaged
    artifact), 2 bad usage or input.
    """
