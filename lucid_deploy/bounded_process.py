"""Run untrusted work in a process with limits on processor time and memory.

Requests come from strangers; chat templates and the regular expressions of a tokenizer come with a model. Any of them
may take unlimited time or memory. In a worker process such work is interrupted, or the process dies alone. Parent and
worker exchange frames over the worker's stdin and stdout: four bytes of length, then MessagePack.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any, BinaryIO

import msgspec

from lucid_deploy.errors import LucidError

HEADER_BYTES = 4
SETUP_SECONDS = 30.0  # of processor time, for loading what the worker needs
UNINTERRUPTED_SECONDS = 2.0  # beyond the limit, for code that Python cannot interrupt; then the process ends
STDERR_SECONDS = 1.0  # to read the stderr of an ended process: a child of its own may hold that pipe open
# No threads for linear algebra: the memory limit could refuse their stacks.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
# Signals for the parent, which ends its workers by closing their stdin. Windows has no SIGHUP.
IGNORED_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Bounds(msgspec.Struct, frozen=True):
    """What one task may cost: seconds of processor time, and bytes of memory beyond what the worker has anyway."""

    seconds: float = 5.0
    memory: int = 256 << 20


class Setup(msgspec.Struct, frozen=True):
    """The first frame."""

    bounds: Bounds
    data: bytes


class Reply(msgspec.Struct, frozen=True):
    """A worker's answer to the setup or to a task."""

    kind: str  # done, refused (a LucidError), costly (a limit was met) or fault (a bug)
    data: bytes = b""  # the result, with done
    text: str = ""  # the message, or the traceback of a bug


class TooCostly(LucidError):
    """The task exceeded its limit of time or memory."""


class WorkerKilled(LucidError):
    """Something else killed the worker during the task."""


class WorkerFault(Exception):
    """The worker failed by a bug; the message is its traceback."""


class _TimeIsUp(BaseException):
    """Raised by a signal handler in the middle of anything; not an Exception, so that no other code catches it."""


class BoundedProcess:
    """A worker process, started again when it has ended. Thread-safe: one task at a time.

    It runs ``python -m module``, which calls :func:`serve` and gets ``setup``. Error messages call its work ``what``.

    Attributes:
        ready: What the worker returned when it was ready; None before the first start.
    """

    def __init__(self, module: str, setup: bytes, bounds: Bounds, what: str) -> None:
        self.command = (sys.executable, "-P", "-m", module)  # -P: import nothing from the working directory
        self.ready: bytes | None = None
        self._setup, self._bounds, self._what = Setup(bounds, setup), bounds, what
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()  # over a start or a task
        self._closed = False

    def __enter__(self) -> BoundedProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The process's id; None before the start."""
        return None if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is there for the next task."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process, unless it runs, and wait until it is ready."""
        with self._lock:
            if not self.running:
                self._start()

    def ask(self, task: bytes) -> bytes:
        """Run a task in the process, which is started again if it has ended.

        Raises:
            LucidError: The task was refused, or is TooCostly; or the process was killed, WorkerKilled.
            WorkerFault: The worker has a bug.
        """
        with self._lock:
            if not self.running:
                self._start()
            assert self._process is not None
            reply = self._exchange(task)
            if reply is None:
                raise self._error_of_death(self._process.wait())
        return self._result(reply)

    def kill(self) -> None:
        """End the process at once; a task that runs fails. The next task starts it again."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """End the process for good."""
        self._closed = True
        self.kill()
        with self._lock:
            if self._process is not None:
                self._process.communicate()

    def _start(self) -> None:
        if self._closed:
            raise LucidError("The process is closed.")
        pipe = subprocess.PIPE
        # A session of its own: signals of a terminal or a shell to the parent's group do not reach it.
        self._process = process = subprocess.Popen(
            self.command,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            start_new_session=True,
            env={**os.environ, **ENVIRONMENT},
        )
        reply = self._exchange(msgspec.msgpack.encode(self._setup))
        if reply is None:
            raise _not_started(process.wait(), _stderr_of(process))
        self.ready = self._result(reply)

    def _exchange(self, data: bytes) -> Reply | None:
        """Send a frame and return the reply; None if the process ended."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(len(data).to_bytes(HEADER_BYTES, "big") + data)
            process.stdin.flush()
            frame = read_frame(process.stdout)
        except BrokenPipeError:
            return None
        except BaseException:  # Ctrl-C: a reply that comes later would be taken for that of the next task
            process.kill()
            process.wait()
            raise
        return msgspec.msgpack.decode(frame, type=Reply) if frame else None

    def _result(self, reply: Reply) -> bytes:
        if reply.kind == "costly":
            raise TooCostly(f"{self._what} {reply.text}. Shorten it.")
        if reply.kind == "refused":
            raise LucidError(reply.text)
        if reply.kind == "fault":
            raise WorkerFault(reply.text)
        return reply.data

    def _error_of_death(self, status: int) -> LucidError:
        if status == -signal.SIGVTALRM:
            return TooCostly(f"{self._what} {_time_text(self._bounds)}. Shorten it.")
        if status == -signal.SIGKILL:  # the limits end it in other ways
            return WorkerKilled(f"{self._what} failed: the process for it was killed. Try again.")
        return TooCostly(f"{self._what} {_memory_text(self._bounds)}. Shorten it.")


def serve(open_worker: Callable[[bytes, Bounds], tuple[bytes, Callable[[bytes], bytes]]]) -> None:
    """Run tasks until stdin ends; the main function of a worker process.

    ``open_worker`` gets the setup; it returns what the parent finds in ``ready`` and the function that does a task, and
    calls :func:`bound_memory` once what is large has been loaded.
    """
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    source, target = _own_pipes()
    setup = msgspec.msgpack.decode(read_frame(source), type=Setup)
    handle: list[Callable[[bytes], bytes]] = []

    def prepare() -> bytes:
        ready, function = open_worker(setup.data, setup.bounds)
        handle.append(function)
        return ready

    reply = attempt(prepare, Bounds(SETUP_SECONDS, setup.bounds.memory))
    write_frame(target, reply)
    if reply.kind != "done":
        return
    gc.freeze()
    gc.disable()  # a body of a million lists would be scanned again and again while it is parsed
    while frame := read_frame(source):
        write_frame(target, attempt(lambda task=frame: handle[0](task), setup.bounds))  # type: ignore[misc]
        gc.collect()


def attempt(work: Callable[[], bytes], bounds: Bounds) -> Reply:
    """Do one task within a limit on processor time; return the reply to send."""
    try:
        with _bounded_time(bounds.seconds):
            return Reply("done", work())
    except LucidError as error:
        return Reply("refused", text=str(error))
    except _TimeIsUp:
        return Reply("costly", text=_time_text(bounds))
    except MemoryError:
        return Reply("costly", text=_memory_text(bounds))
    except Exception:  # noqa: BLE001 (whatever it is, the parent reports it)
        return Reply("fault", text=traceback.format_exc())


def bound_memory(more: int) -> None:
    """Limit the address space to its size now plus so many bytes, or to the user's own limit; on Linux."""
    if not sys.platform.startswith("linux"):
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = (
        pages * resource.getpagesize() + more,
        *(given for given in (soft, hard) if given != resource.RLIM_INFINITY),
    )
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))


def read_frame(source: IO[bytes]) -> bytes:
    """Return the next frame; empty at the end."""
    header = source.read(HEADER_BYTES)
    size = int.from_bytes(header, "big")
    frame = source.read(size) if len(header) == HEADER_BYTES else b""
    return frame if len(frame) == size else b""


def write_frame(target: BinaryIO, reply: Reply) -> None:
    """Write a frame."""
    data = msgspec.msgpack.encode(reply)
    target.write(len(data).to_bytes(HEADER_BYTES, "big") + data)
    target.flush()


def _time_text(bounds: Bounds) -> str:
    return f"took more than {bounds.seconds:g} s of processor time"


def _memory_text(bounds: Bounds) -> str:
    return f"needed more than {bounds.memory >> 20} MiB of memory"


def _stderr_of(process: subprocess.Popen[bytes]) -> bytes:
    """Return what an ended process wrote to stderr; nothing where another process keeps the pipe open."""
    try:
        return process.communicate(timeout=STDERR_SECONDS)[1]
    except subprocess.TimeoutExpired:
        return b""


def _not_started(status: int, stderr: bytes) -> LucidError:
    """Return the error of a process that ended before it was ready; a note of it has all that it wrote to stderr."""
    text = stderr.decode("utf-8", "backslashreplace").strip()
    why = f"exit status {status}" + (f", {text.splitlines()[-1].strip().rstrip('.')}" if text else "")
    error = LucidError(
        f"The process that reads requests did not start ({why}). Is there a limit on memory or processes?"
    )
    error.add_note(text)
    return error


def _own_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Return stdin and stdout, and put /dev/null in their places and in that of stderr.

    A panic of the tokenizers library writes a page to stderr, as often as a client likes.
    """
    source, target = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for place in (0, 1, 2):
        os.dup2(nowhere, place)
    os.close(nowhere)
    return source, target


@contextmanager
def _bounded_time(seconds: float) -> Iterator[None]:
    """Interrupt the block after so much processor time, and end the process if that does not help.

    Processor time, so that a busy machine refuses nothing. Windows has no such timers.
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
