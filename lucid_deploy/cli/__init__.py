"""The command line. Commands live one per file and are imported when they are called, so that ``--help`` is quick."""

from __future__ import annotations

import errno
import importlib
import signal
import sys
import tempfile
from typing import IO, Any

import click

from lucid_deploy.cli._command import PREFIX, Group, show_where
from lucid_deploy.cli._signals import unwinding_on_signals
from lucid_deploy.cli._streams import let_go_of_output, prepare_streams
from lucid_deploy.cli._threads import bound_threads
from lucid_deploy.cli._working_directory import has_working_directory, without_pytorch_nowhere
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.interrupts import begun
from lucid_deploy.shortages import leave_out_memory_at_exit, limit_met
from lucid_deploy.version import __version__

CLOSED_PIPE = 13  # the number of SIGPIPE, which Windows has not
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

    def show(self, file: IO[Any] | None = None) -> None:
        """See :class:`click.ClickException`; where nothing can be said, the status still says what kind it was."""
        try:
            super().show(file)
        except OSError:
            let_go_of_output()


class _Commands(Group):
    _is_program = False

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Run as what this process is for, not as a part of it."""
        self._is_program = True
        try:
            return super().__call__(*arguments, **named)
        finally:
            leave_out_memory_at_exit()

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

    def make_context(self, *arguments: Any, **named: Any) -> click.Context:
        """See :class:`click.Command`; --help and --version are written here."""
        try:
            return super().make_context(*arguments, **named)
        except OSError as error:
            _end_without_reader(error)
            raise

    def main(self, *arguments: Any, **named: Any) -> Any:
        """See :class:`click.Command`; --help is written before any command is invoked."""
        try:
            prepare_streams()
            bound_threads()
            with without_pytorch_nowhere():
                return super().main(*arguments, **named)
        except OSError as error:
            told = _told(error)
            if told is None:
                _end_without_reader(error)
                raise
        except LucidError as error:
            told = error
        _ReportedError(told).show()
        sys.exit(told.exit_code)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            begun()
            with unwinding_on_signals(ends_process=self._is_program):
                result = super().invoke(ctx)
                sys.stdout.flush()  # what Python still holds is a part of the result
                return result
        except LucidError as error:
            show_where(ctx, error)
            met = limit_met(error) if isinstance(error, CheckFailed) else None  # nothing is wrong with what was checked
            raise _ReportedError(error if met is None else LucidError(met)) from error
        except OSError as error:
            told = _told(error)
            if told is None:
                _end_without_reader(error)
                raise
            raise _ReportedError(told) from error
        except Exception as error:
            met = limit_met(error)
            if met is None:
                raise
            show_where(ctx, error)
            raise _ReportedError(LucidError(met)) from error
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(128 + signal.SIGINT)


def _told(error: OSError) -> LucidError | None:
    """Return what to say of the system's error; None: it is a closed pipe, or a bug."""
    if (met := limit_met(error)) is not None:
        return LucidError(met)
    if error.filename is not None:
        return LucidError(f"{error.filename}: {error.strerror}.")
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # the last: ulimit -f
        let_go_of_output()
        return LucidError(f"Writing the output failed: {error.strerror}.")
    if error.errno in (errno.EIO, errno.ESTALE):  # where nobody has said of which file
        return LucidError(f"Reading or writing a file failed: {error.strerror}. Is its disk, or its server, broken?")
    if error.errno == errno.ENOENT and not has_working_directory():
        return LucidError("The working directory does not exist any more. Change to another one.")
    if error.errno == errno.ENOENT and not _has_temporary_directory():
        return LucidError(f"{error.strerror}. Set TMPDIR to a folder that can be written.")
    return None


def _end_without_reader(error: OSError) -> None:
    """End as the system ends a program whose output is closed; click would say 1, which is a failed check."""
    if error.errno == errno.EPIPE:
        let_go_of_output()
        sys.exit(128 + CLOSED_PIPE)


def _has_temporary_directory() -> bool:
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        return False
    return True


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": PREFIX})
@click.version_option(__version__, prog_name="lucid-deploy")
def main() -> None:
    """Take models with LUCID attention from PyTorch to production.

    Results go to stdout, progress and messages to stderr. Exit status: 0 success, 1 a check failed (parity, a damaged
    artifact), 2 bad usage or input.
    """
