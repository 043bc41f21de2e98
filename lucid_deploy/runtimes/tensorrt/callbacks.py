"""What TensorRT calls while it works: its logger and its progress monitor.

Neither lets an exception through: TensorRT's C++ code has no place for one. Both keep it, the monitor stops the build,
and the caller raises it again. A signal is handled wherever Python happens to run, which is in the bindings too, before
any line of ours: they print what its handler raises, and go on. So what handlers raise is kept as well.
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
STEPS = 1000  # the whole build, in the numbers that progress is reported with


class Progress:
    """Turns nested phases into one number that never goes back.

    Args:
        report: Called with (done, STEPS).
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._phases: dict[str, tuple[str | None, int]] = {}  # parent, steps
        self._done: dict[str, int] = {}
        self._reached = 0

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """Begin a phase, which is one step of its parent."""
        self._phases[phase], self._done[phase] = (parent, max(steps, 1)), 0

    def step(self, phase: str, index: int) -> None:
        """Finish a step of a phase."""
        if phase in self._phases:
            self._done[phase] = index + 1
            self._update()

    def finish(self, phase: str) -> None:
        """End a phase; its parent reports the step."""
        self._phases.pop(phase, None)
        self._done.pop(phase, None)

    def _update(self) -> None:
        roots = [name for name, (parent, _) in self._phases.items() if parent not in self._phases]
        reached = int(STEPS * max((self._fraction(root) for root in roots), default=0.0))
        if reached > self._reached:
            self._reached = reached
            self._report(min(reached, STEPS), STEPS)

    def _fraction(self, phase: str) -> float:
        steps = self._phases[phase][1]
        inside = sum(self._fraction(name) for name, (parent, _) in self._phases.items() if parent == phase)
        return min(self._done[phase] + min(inside, 1.0), steps) / steps


class CallbackFailure:
    """An exception that was raised inside a callback, or by a signal's handler while TensorRT worked."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    @contextlib.contextmanager
    def of_signals(self) -> Iterator[None]:
        """Keep what handlers of signals raise, Ctrl-C's too."""
        known = signal.valid_signals() if threading.current_thread() is threading.main_thread() else set()
        handlers = {number: handler for number in known if callable(handler := signal.getsignal(number))}

        def keep(number: int, frame: FrameType | None) -> None:
            try:
                handlers[signal.Signals(number)](number, frame)
            except BaseException as error:  # noqa: BLE001 (raised again by the caller)
                self.error = error

        for number in handlers:
            signal.signal(number, keep)
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def raise_again(self) -> None:
        """Raise it where Python code is waiting for it."""
        if self.error is not None:
            error, self.error = self.error, None
            try:
                raise error
            finally:
                del error  # it knows this frame, and all that the frames above hold: builders are to end at once


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Keep Python from looking for garbage.

    TensorRT calls a logger while it holds a lock. If Python looked for garbage there and found a builder that nobody
    holds, its end would wait for the same lock, for good.
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
            try:
                if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                    self.errors.append(message.strip())
            except BaseException as error:  # noqa: BLE001 (raised again by the caller)
                failure.error = error

    return Logger()


def make_monitor(trt: Any, report: Report, failure: CallbackFailure) -> Any:
    """Return a progress monitor that calls ``report`` with (done, in all), and stops the build if that raises."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()
            self._progress = Progress(report)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            try:
                self._progress.start(phase_name, parent_phase, num_steps)
            except BaseException as error:  # noqa: BLE001 (raised again by the caller)
                failure.error = error

        def phase_finish(self, phase_name: str) -> None:
            try:
                self._progress.finish(phase_name)
            except BaseException as error:  # noqa: BLE001 (raised again by the caller)
                failure.error = error

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                self._progress.step(phase_name, step)
            except BaseException as error:  # noqa: BLE001 (raised again by the caller)
                failure.error = error
            return failure.error is None

    return Monitor()


def explain(errors: list[str]) -> str:
    """Return the error that says why something failed, in one line: the first, without what a missing driver adds.

    Where it ends with a colon, as the parser's does, which names the node there, the next one has the reason.
    """
    telling = [text for text in errors if "cudaError 35" not in text and not _FRAME.match(text)]
    first, *others = telling or errors or ["no reason given"]
    return " ".join(" ".join([first, *others[:1]] if first.endswith(":") else [first]).split())
