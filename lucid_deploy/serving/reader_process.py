"""A process that reads bodies: JSON, chat template and tokenizer, within bounds of processor time and memory.

What comes from strangers (bodies) or came with the model (templates, a tokenizer's regular expressions) may take any
time and any memory. Here it is interrupted, or the process dies alone. Run as ``python -m`` by :mod:`readers`, with
which it talks in frames over stdin and stdout: four bytes of length, then MessagePack.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any, BinaryIO

import msgspec

from lucid_deploy.artifact.chat import load_chat_templates
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError
from lucid_deploy.serving.errors import ApiError
from lucid_deploy.serving.limits import Limits
from lucid_deploy.serving.requests import Kind, PreparedRequest, RequestReader

HEADER_BYTES = 4
KILLED = "reader_killed"
COMMAND = (sys.executable, "-P", "-m", "lucid_deploy.serving.reader_process")  # -P: nothing from the working directory
# They multiply nothing: no threads for it, which a limit could refuse.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
LAST_WORDS_SECONDS = 1.0  # for what an ended process wrote to stderr: another one may hold that pipe open
SETUP_SECONDS = 30.0  # of processor time, for loading tokenizer and chat template
# Signals that are meant for the server, which closes stdin when it is done. Windows has no SIGHUP.
MEANT_FOR_SERVER = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
UNINTERRUPTED_SECONDS = 2.0  # beyond the limit, for code that Python cannot interrupt; then the process ends


class ReaderSetup(msgspec.Struct, frozen=True):
    """The first frame: what to read for."""

    directory: str
    model: str
    limits: Limits


class ReadTask(msgspec.Struct, frozen=True):
    """Every further frame: a body, and what it asks for."""

    kind: Kind
    body: bytes


class ReaderReady(msgspec.Struct, frozen=True, tag="ready"):
    """The answer to the setup."""

    has_chat_template: bool
    chat_refusal: str | None = None


class BodyPrepared(msgspec.Struct, frozen=True, tag="prepared"):
    """The answer to a body that can be run."""

    request: PreparedRequest


class BodyRefused(msgspec.Struct, frozen=True, tag="refused"):
    """The answer to a body that is wrong or too costly, or to a setup that cannot be read."""

    status: int
    message: str
    code: str | None
    param: str | None


class ReaderFault(msgspec.Struct, frozen=True, tag="failed"):
    """The answer if this code has a fault."""

    trace: str


Reply = ReaderReady | BodyPrepared | BodyRefused | ReaderFault


class _TimeIsUp(BaseException):
    """Raised by a signal in the middle of anything, so nothing but this module may take it for an error of its own."""


def main() -> None:
    """Read bodies until stdin ends."""
    for number in MEANT_FOR_SERVER:
        signal.signal(number, signal.SIG_IGN)
    source, target = _own_pipes()
    setup = msgspec.msgpack.decode(read_frame(source), type=ReaderSetup)
    try:
        with _bounded_time(SETUP_SECONDS):
            reader = _open(setup)
    except (LucidError, _TimeIsUp, MemoryError) as error:
        needed = f"needed more than {setup.limits.reading_bytes >> 20} MiB of memory"
        what = needed if isinstance(error, MemoryError) else f"took more than {SETUP_SECONDS:g} s"
        reason = str(error) if isinstance(error, LucidError) else f"Tokenizer and chat template {what} to load."
        write_frame(target, BodyRefused(500, reason, None, None))
        return
    write_frame(target, ReaderReady(reader.can_chat, reader.chat_refusal))
    gc.freeze()
    gc.disable()  # a body of a million lists would be gone through again and again while it is parsed
    while frame := read_frame(source):
        write_frame(target, answer(reader, msgspec.msgpack.decode(frame, type=ReadTask), setup.limits))
        gc.collect()


def answer(reader: RequestReader, task: ReadTask, limits: Limits) -> Reply:
    """Read one body within its bounds."""
    try:
        with _bounded_time(limits.reading_seconds):
            return BodyPrepared(reader.read(task.kind, task.body))
    except ApiError as error:
        return BodyRefused(error.status, error.message, error.code, error.param)
    except _TimeIsUp:
        return too_costly(f"took more than {limits.reading_seconds:g} s of processor time")
    except MemoryError:
        return too_costly(f"needed more than {limits.reading_bytes >> 20} MiB of memory")
    except Exception:  # noqa: BLE001 (whatever it is, the server logs it and answers)
        return ReaderFault(traceback.format_exc())


def too_costly(what: str) -> BodyRefused:
    """Return the refusal of a body that cannot be read within bounds."""
    message = f"Reading this request (parsing, chat template, tokenizing) {what}. Shorten it."
    return BodyRefused(400, message, "too_costly", None)


def refusal_of_death(status: int | None, limits: Limits) -> BodyRefused:
    """Return what the end of the process says of the body that it was reading.

    Args:
        status: Its exit status, as :mod:`subprocess` has it.
        limits: Its bounds.
    """
    if status == -signal.SIGVTALRM:
        return too_costly(f"took more than {limits.reading_seconds:g} s of processor time")
    if status == -signal.SIGKILL:  # by someone else: its bounds end it in other ways
        return BodyRefused(503, "The process that read this request was killed. Send it again.", KILLED, None)
    return too_costly(f"needed more than {limits.reading_bytes >> 20} MiB of memory")


def not_started(status: int | None, said: bytes) -> LucidError:
    """Return what to say of a process that ended before it was ready.

    Args:
        status: Its exit status, as :mod:`subprocess` has it.
        said: What it wrote to stderr: its last line is in the message, all of it in a note of the error.
    """
    text = said.decode("utf-8", "backslashreplace").strip()
    why = f"exit status {status}" + (f", {text.splitlines()[-1].strip().rstrip('.')}" if text else "")
    error = LucidError(
        f"The process that reads requests did not start ({why}). Is there a limit on memory or processes?"
    )
    error.add_note(text)
    return error


def read_frame(source: IO[bytes]) -> bytes:
    """Return the next frame; empty at the end."""
    header = source.read(HEADER_BYTES)
    return source.read(int.from_bytes(header, "big")) if len(header) == HEADER_BYTES else b""


def write_frame(target: BinaryIO, reply: Reply) -> None:
    """Write a frame."""
    data = msgspec.msgpack.encode(reply)
    target.write(len(data).to_bytes(HEADER_BYTES, "big") + data)
    target.flush()


def _open(setup: ReaderSetup) -> RequestReader:
    directory = Path(setup.directory)
    tokenizer = TextTokenizer(directory)
    _bound_memory(setup.limits.reading_bytes)  # before the template: compiling it computes what is constant in it
    return RequestReader(setup.model, setup.limits, tokenizer, load_chat_templates(directory))


def _own_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Return stdin and stdout, and leave nothing in their places that a library could write to.

    A panic of the tokenizers library writes a page to stderr, as often as a client likes.
    """
    source, target = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for place in (0, 1, 2):
        os.dup2(nowhere, place)
    os.close(nowhere)
    return source, target


def _bound_memory(more: int) -> None:
    """Bound the address space to what it is now and so many bytes, or as the user has bound it; Linux only."""
    if not sys.platform.startswith("linux"):
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bounds = (
        pages * resource.getpagesize() + more,
        *(given for given in (soft, hard) if given != resource.RLIM_INFINITY),
    )
    resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))


@contextmanager
def _bounded_time(seconds: float) -> Iterator[None]:
    """Interrupt the body of the ``with`` after so much processor time, and end the process if that does not help.

    Processor time, so that a busy machine refuses nothing. Where there are no such timers (Windows) the server's own
    patience is the bound.
    """
    if not hasattr(signal, "setitimer"):
        yield
        return
    running = True

    def on_signal(_number: int, _frame: FrameType | None) -> Any:
        if running:
            raise _TimeIsUp

    signal.signal(signal.SIGPROF, on_signal)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds + UNINTERRUPTED_SECONDS)  # SIGVTALRM ends a process
    try:
        yield
    finally:
        running = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


if __name__ == "__main__":
    main()
