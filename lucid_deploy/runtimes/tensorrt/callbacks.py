"""TensorRT's logger and progress monitor, and the exceptions that are raised inside them.

TensorRT's C++ code cannot pass on an exception: callbacks store it, the monitor stops the build, and the caller raises
it again. Signal handlers may run in the bindings, which print what they raise and go on, so that is stored as well.
"""

from __future__ import annotations

import contextlib
import gc
import re
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

Report = Callable[[int, int], None]
_FRAME = re.compile(r"([\w.]+:\d+: )?--- ")  # the parser's lines around a node that it shows
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Progress:
    """The steps of the outermost phase, as (done, steps); what happens within a step is not counted."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._outermost: tuple[str, int] | None = None

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """Begin a phase."""
        if parent is None:
            self._outermost = (phase, steps)

    def step(self, phase: str, index: int) -> None:
        """Finish a step of a phase."""
        if self._outermost is not None and self._outermost[0] == phase:
            self._report(index + 1, self._outermost[1])


class CallbackFailure:
    """An exception that was raised inside a callback, or by a signal's handler while TensorRT worked."""

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
        """Call TensorRT: store what Ctrl-C and SIGTERM raise meanwhile, then raise what was stored."""
        handlers: dict[int, Callable[..., Any]] = {}
        if threading.current_thread() is threading.main_thread():
            handlers = {number: handler for number in _SIGNALS if callable(handler := signal.getsignal(number))}

        def store(number: int, frame: FrameType | None) -> None:
            with self.stored():
                handlers[number](number, frame)

        for number in handlers:
            signal.signal(number, store)
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        self.raise_again()

    def raise_again(self) -> None:
        """Raise what was stored, once."""
        if self.error is not None:
            error, self.error = self.error, None
            try:
                raise error
            finally:
                del error  # it knows this frame, and all that the frames above hold: builders are to end at once


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Disable Python's garbage collection.

    TensorRT calls a logger while it holds a lock. If Python collected garbage there and found an unused builder, its
    destruction would wait for the same lock for ever.
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
    """Return a progress monitor that calls ``report`` with (done, in all), and stops the build if that raises."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()
            self._progress = Progress(report)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with failure.stored():
                self._progress.start(phase_name, parent_phase, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            pass

        def step_complete(self, phase_name: str, step: int) -> bool:
            with failure.stored():
                self._progress.step(phase_name, step)
            return failure.error is None

    return Monitor()


def explain(errors: list[str]) -> str:
    """Return the error that says why something failed, in one line: the first, without what a missing driver adds.

    Where it ends with a colon, as the parser's does, which names the node there, the next one has the reason.
    """
    telling = [text for text in errors if "cudaError 35" not in text and not _FRAME.match(text)]
    first, *others = telling or errors or ["no reason given"]
    return " ".join(" ".join([first, *others[:1]] if first.endswith(":") else [first]).split())
