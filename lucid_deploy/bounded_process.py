"""Run untrusted work in a process with limits on processor time and memory.

Requests come from strangers; chat templates and the regular expressions of a tokenizer come with a model. Any of them
may take unlimited time or memory. In a worker process such work fails alone: the kernel ends a worker whose time is
over, and another one takes its place. Parent and worker exchange pickles over the worker's stdin and stdout.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lucid_deploy.errors import LucidError

SETUP_SECONDS = 30.0  # of processor time, for loading what the worker needs
# No threads for linear algebra: the memory limit could refuse their stacks.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
# Signals for the parent alone: when it ends, its workers' stdin closes, which ends them. Windows has no SIGHUP.
IGNORED_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@dataclass(frozen=True)
class Bounds:
    """Limits of a task: seconds of processor time, and bytes beyond the memory in use when ``bound_memory`` runs."""

    seconds: float = 5.0
    memory: int = 256 << 20


class TooCostly(LucidError):
    """The task exceeded its limit of time or memory; a worker's unexplained death counts as lack of memory."""


class WorkerKilled(LucidError):
    """SIGKILL, which the limits do not send, ended the worker during the task."""


class WorkerFault(Exception):
    """The worker failed by a bug; the message is its traceback."""


class BoundedProcess:
    """A worker process, started again when it has ended. Thread-safe: it runs one task at a time.

    Runs ``python -m module``, which must call :func:`serve`, and sends it ``setup``. Error messages call
    a task ``what``.

    Attributes:
        ready: What the worker's ``open_worker`` returned for the parent; None before the first start.
    """

    def __init__(self, module: str, setup: Any, bounds: Bounds, what: str) -> None:
        self.command = (sys.executable, "-P", "-m", module)  # -P: import nothing from the working directory
        self.ready: Any = None
        self._setup, self._bounds, self._what = (setup, bounds), bounds, what
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()  # held during a start or a task
        self._closed = False

    def __enter__(self) -> BoundedProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def running(self) -> bool:
        """Whether the process is alive, so that the next task need not start it."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process, unless it runs, and wait until it is ready."""
        with self._lock:
            self._start()

    def ask(self, task: Any) -> Any:
        """Run a task in the process, which is started again if it has ended.

        Raises:
            LucidError: The task raised one, was too costly (TooCostly) or killed (WorkerKilled), or no process started.
            WorkerFault: The worker has a bug.
        """
        with self._lock:
            self._start()
            return self._exchange(task)

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
        if self.running:
            return
        if self._closed:
            raise LucidError("The process is closed.")
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL  # a panic of the tokenizers library writes a page to stderr
        # A session of its own: signals of a terminal or a shell to the parent's group do not reach it.
        self._process = subprocess.Popen(
            self.command,
            stdin=pipe,
            stdout=pipe,
            stderr=nowhere,
            start_new_session=True,
            env={**os.environ, **ENVIRONMENT},
        )
        self.ready = self._exchange(self._setup, starting=True)

    def _exchange(self, message: Any, starting: bool = False) -> Any:
        """Send a message; return the worker's result, or raise the error that it sent, or one for its death."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            pickle.dump(message, process.stdin)
            process.stdin.flush()
            result, error = pickle.load(process.stdout)  # safe: from code of ours, under the same user
        except (BrokenPipeError, EOFError, pickle.UnpicklingError):
            raise self._error_of_death(process.wait(), starting) from None
        except BaseException:  # Ctrl-C: a reply that comes later would be taken for that of the next task
            process.kill()
            process.wait()
            raise
        if isinstance(error, MemoryError):
            raise self._memory_error()
        if error is not None:
            raise error
        return result

    def _error_of_death(self, status: int, starting: bool) -> LucidError:
        seconds = SETUP_SECONDS if starting else self._bounds.seconds
        if hasattr(signal, "SIGPROF") and status == -signal.SIGPROF:
            return TooCostly(f"{self._what} took more than {seconds:g} s of processor time. Shorten it.")
        if starting:
            return LucidError(
                f"A process that checks input did not start (exit status {status}). Is there a limit on memory or "
                "processes?"
            )
        if status == -signal.SIGKILL:  # the limits end it in other ways
            return WorkerKilled(f"{self._what} failed: the process for it was killed. Try again.")
        return self._memory_error()

    def _memory_error(self) -> LucidError:
        return TooCostly(f"{self._what} needed more than {self._bounds.memory >> 20} MiB of memory. Shorten it.")


def serve(open_worker: Callable[[Any, Bounds], tuple[Any, Callable[[Any], Any]]]) -> None:
    """Run tasks until stdin ends, or none if ``open_worker`` fails; the main function of a worker process.

    ``open_worker`` gets the setup and the bounds. It loads what is large, then calls :func:`bound_memory`, and returns
    what the parent finds in ``ready`` and the function that runs a task.
    """
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    setup, bounds = pickle.load(sys.stdin.buffer)
    opened: list[Callable[[Any], Any]] = []

    def prepare(_: Any) -> Any:
        ready, work = open_worker(setup, bounds)
        opened.append(work)
        return ready

    _answer(prepare, None, SETUP_SECONDS)
    gc.freeze()
    gc.disable()  # or a body of a million lists would be scanned again and again while it is parsed
    while opened:
        try:
            task = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        _answer(opened[0], task, bounds.seconds)
        gc.collect()


def _answer(work: Callable[[Any], Any], task: Any, seconds: float) -> None:
    """Do one task within a limit on processor time; send its result and None, or None and its error.

    The limit is on processor time so that a busy machine refuses nothing. Windows has no timers for it, so no limit.
    """
    timer, kind = getattr(signal, "setitimer", lambda *_: None), getattr(signal, "ITIMER_PROF", 0)
    timer(kind, seconds)  # after that time, SIGPROF ends the process
    try:
        reply = pickle.dumps((work(task), None))
    except (LucidError, MemoryError) as error:
        reply = pickle.dumps((None, error))
    except Exception:  # noqa: BLE001 (whatever it is, the parent reports it)
        reply = pickle.dumps((None, WorkerFault(traceback.format_exc())))
    timer(kind, 0)
    sys.stdout.buffer.write(reply)
    sys.stdout.buffer.flush()


def bound_memory(more: int) -> None:
    """On Linux, limit the address space to its present size plus ``more`` bytes, or to the user's own lower limit."""
    if not sys.platform.startswith("linux"):
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    most = min([pages * resource.getpagesize() + more, *(each for each in limits if each != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
