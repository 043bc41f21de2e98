"""TensorRT's logger and progress monitor, which hand exceptions raised in them to the caller.

TensorRT's C++ code cannot pass on an exception: callbacks store it, the monitor stops the build, and the caller raises
it again. This includes exceptions that a signal handler raises during a callback.
"""

from __future__ import annotations

import contextlib
import gc
import re
from collections.abc import Callable, Iterator
from typing import Any

Report = Callable[[int, int], None]
_FRAME = re.compile(r"([\w.]+:\d+: )?--- ")  # lines that frame the parser's description of a node


class CallbackFailure:
    """The exception that was raised inside a callback, if there was one."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    @contextlib.contextmanager
    def stored(self) -> Iterator[None]:
        """Store an exception instead of raising it."""
        try:
            yield
        except BaseException as error:  # noqa: BLE001 (raised again by the caller)
            self.error = error

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """Raise the stored exception, once, at the end of the context in which the caller calls TensorRT."""
        yield
        if self.error is not None:
            error, self.error = self.error, None
            try:
                raise error
            finally:
                del error  # its traceback refers to this frame and those above, and would keep their builders alive


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Disable Python's garbage collection.

    TensorRT calls a logger while it holds a lock. If Python collected garbage there and found an unused builder, the
    builder's destructor would deadlock on the same lock.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def make_logger(trt: Any, failure: CallbackFailure) -> Any:
    """Return a logger that collects errors in ``.errors`` instead of printing."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            with failure.stored():
                if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                    self.errors.append(message.strip())

    return Logger()


def make_monitor(trt: Any, report: Report, failure: CallbackFailure) -> Any:
    """Return a progress monitor that calls ``report(done, total)`` and stops the build if a callback raises."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()
            self._outermost: tuple[str, int] | None = None  # name and steps; inner phases are not counted

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with failure.stored():
                if parent_phase is None:
                    self._outermost = (phase_name, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            pass

        def step_complete(self, phase_name: str, step: int) -> bool:
            with failure.stored():
                if self._outermost is not None and self._outermost[0] == phase_name:
                    report(step + 1, self._outermost[1])
            return failure.error is None

    return Monitor()


def explain(errors: list[str]) -> str:
    """Return the first error in one line; skip errors about a missing driver and lines that frame a node.

    If it ends with a colon, as the parser's errors do after a node's name, the next error, the reason, is appended.
    """
    telling = [text for text in errors if "cudaError 35" not in text and not _FRAME.match(text)]
    first, *others = telling or errors or ["no reason given"]
    return " ".join(" ".join([first, *others[:1]] if first.endswith(":") else [first]).split())
