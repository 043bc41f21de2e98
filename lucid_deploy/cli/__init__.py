"""The command line. Commands live one per file and are imported when they are called, so that ``--help`` is quick."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from lucid_deploy.cli._command import is_verbose
from lucid_deploy.cli._process import bound_threads, discard_output, prepare_streams, raise_on_termination
from lucid_deploy.errors import LucidError, missing_extra, printable
from lucid_deploy.version import __version__

SIGPIPE = 13  # signal.SIGPIPE, which Python lacks on Windows
TOO_LITTLE_MEMORY = (
    "There is too little memory for this command. Free some, raise the limit (ulimit -v, or the container's), or use a "
    "smaller model, prompt or batch; lucid-deploy inspect estimates what an artifact needs."
)
# The name of each command and the first line of its help, so that listing the commands imports none of them.
COMMANDS = {
    "export": "Export a checkpoint to prefill and decode ONNX graphs.",
    "plugin": "Build the libraries that compute our operators natively.",
    "build": "Build TensorRT engines of an exported artifact.",
    "run": "Generate text with an exported artifact.",
    "chat": "Talk with a model in the terminal.",
    "serve": "Serve an artifact over HTTP, as OpenAI's API.",
    "verify": "Prove that an artifact computes what PyTorch computes.",
    "eval": "Measure how good an artifact's answers are.",
    "package": "Package an artifact for NVIDIA Triton, or for trtexec and Polygraphy.",
    "adapters": "List, add and remove the LoRA adapters of an artifact.",
    "inspect": "Show graphs, tensors, operators, sizes and memory needs.",
    "bench": "Measure prefill and decode of artifacts and baselines, side by side.",
    "conformance": "Check that onnxruntime computes our operators correctly on this machine, case by case.",
    "doctor": "Show what is installed, what works, and what to install.",
}


class _ReportedError(click.ClickException):
    """An expected error: one message on stderr, and the error's own exit status."""

    def __init__(self, error: LucidError) -> None:
        super().__init__(printable(str(error)))
        self.exit_code = error.exit_code  # type: ignore[misc]


class _Commands(click.Group):
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
        try:
            prepare_streams()
            bound_threads()
            return super().main(*arguments, **named)
        except (LucidError, OSError) as error:  # before or after the command, such as while --help is written
            expected = _expected(error)
            if expected is None:
                raise
            _ReportedError(expected).show()
            sys.exit(expected.exit_code)

    def make_context(self, *arguments: Any, **named: Any) -> click.Context:
        with _ending_without_reader():  # --help and --version are written here
            return super().make_context(*arguments, **named)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with raise_on_termination(), _ending_without_reader():
                result = super().invoke(ctx)
                sys.stdout.flush()  # a full disk shows here
                return result
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(128 + signal.SIGINT)
        except (LucidError, MemoryError, OSError, ModuleNotFoundError) as error:
            expected = _expected(error)
            if expected is None:
                raise
            if is_verbose():
                click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
            raise _ReportedError(expected) from error


@contextmanager
def _ending_without_reader() -> Iterator[None]:
    """Exit with SIGPIPE's status once nobody reads the output; Click's would be 1, which here means a failed check."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EPIPE:
            raise
        discard_output(1, 2)
        sys.exit(128 + SIGPIPE)


def _expected(error: Exception) -> LucidError | None:
    """Return the LucidError to report for an error that is not a bug; None for a bug."""
    if isinstance(error, LucidError):
        return error
    if isinstance(error, ModuleNotFoundError) and error.name in ("torch", "onnxscript", "onnx_ir"):
        return missing_extra(error.name, "export", "make or verify the graphs of a model")
    if isinstance(error, MemoryError):
        return LucidError(TOO_LITTLE_MEMORY)
    if isinstance(error, OSError) and error.filename is not None:
        return LucidError(f"{os.fspath(error.filename)}: {error.strerror}.")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        discard_output(1)
        return LucidError(f"Writing the output failed: {error.strerror}.")
    return None


_named = dict.fromkeys(COMMANDS, click.Command(None))  # names only: Click suggests one for a misspelt command


@click.group(cls=_Commands, commands=_named, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lucid-deploy")
def main() -> None:
    """Take models with LUCID attention from PyTorch to production.

    Results go to stdout, progress and messages to stderr. Exit status: 0 success, 1 a check failed (parity, a damaged
    artifact), 2 bad usage or input, 3 too little is proven (verify).
    """
