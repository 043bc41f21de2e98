"""Consoles and progress bars: results on stdout, everything else on stderr."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import TIMEOUT_MAX, Event, Lock, Thread
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lucid_deploy.cli._streams import let_go
from lucid_deploy.errors import LucidError
from lucid_deploy.files import write_whole

INTERVAL = 10.0  # seconds between two lines where no bar can be shown


class _Console(Console):
    """rich would end the process, or a thread of it, and lead stdout nowhere, if either stream is closed."""

    def on_broken_pipe(self) -> None:
        """End a command whose results have no reader; remarks that nobody reads are left out."""
        if not self.stderr:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        self.quiet = True
        let_go(sys.stderr, 2)


console_out = _Console(highlight=False, width=None if sys.stdout.isatty() else 120)  # tables in files and pipes
console_err = _Console(stderr=True, highlight=False)


def set_output(quiet: bool, no_color: bool) -> Callable[[], None]:
    """Set up both consoles for a command; return the function that puts them back as they were.

    Args:
        quiet: Write nothing to stderr; errors do not go through the console.
        no_color: Write no colours, as with the variable NO_COLOR.
    """
    before = [(console, console.quiet, console.no_color) for console in (console_out, console_err)]
    console_err.quiet = quiet
    for console in (console_out, console_err):
        console.no_color = no_color or bool(os.environ.get("NO_COLOR"))

    def restore() -> None:
        for console, was_quiet, had_no_color in before:
            console.quiet, console.no_color = was_quiet, had_no_color

    return restore


def note(text: str) -> None:
    """Write a remark to stderr, unless the command is to be quiet."""
    console_err.print(text, markup=False, soft_wrap=True)


@contextmanager
def progress(description: str, estimate: bool = False) -> Iterator[Callable[..., None]]:
    """Show a progress bar on stderr while the block runs, or :class:`ProgressLines` where stderr is no terminal.

    Args:
        description: What is being done.
        estimate: Whether to say how long it will take yet, for work whose parts take about equally long.

    Yields:
        A function to call with (done, total), or with (description, done, total) where the work has several steps.
    """
    if not console_err.is_terminal:
        lines = ProgressLines(console_err, description, estimate=estimate)
        with every(INTERVAL, lines.repeat):
            yield lines.update
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        *((TextColumn("left:"), TimeRemainingColumn()) if estimate else ()),
    )
    with Progress(*columns, console=console_err, transient=True) as bar:
        task = bar.add_task(description, total=None)

        def update(*values: Any) -> None:
            text, done, total = values if len(values) == 3 else (description, *values)
            bar.update(task, description=text, completed=done, total=total)

        yield update


@contextmanager
def every(seconds: float, call: Callable[[], None]) -> Iterator[None]:
    """Call something again and again, in a thread of its own, while the block runs."""
    ended = Event()

    def repeat() -> None:
        with suppress(OSError):  # stderr is closed: nobody reads on
            while not ended.wait(min(seconds, TIMEOUT_MAX)):
                call()

    thread = Thread(target=repeat, name="lucid-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class ProgressLines:
    """Writes a line every ten seconds: what is being done, how far, since when. Short work writes none. Thread-safe.

    If it is to estimate, it says about how long the work will take yet.
    """

    def __init__(
        self,
        console: Console,
        description: str,
        clock: Callable[[], float] = time.monotonic,
        estimate: bool = False,
    ) -> None:
        self._console, self._description, self._clock, self._estimate = console, description, clock, estimate
        self._begun = self._last = clock()
        self._step, self._step_begun, self._step_done = description, self._begun, 0
        self._done, self._total = 0, 0
        self._lock = Lock()

    def update(self, *values: Any) -> None:
        """Take (done, total), or (description, done, total); write a line if it is time for one."""
        text, done, total = values if len(values) == 3 else (self._description, *values)
        with self._lock:
            now = self._clock()
            if text != self._step:
                self._step, self._step_begun, self._step_done = text, now, done
            self._done, self._total = done, total
            self._write(now, INTERVAL)

    def repeat(self) -> None:
        """Write a line if the work itself has had nothing to say for nearly so long."""
        with self._lock:
            self._write(self._clock(), 0.9 * INTERVAL)

    def _write(self, now: float, interval: float) -> None:
        if now - self._last < interval:
            return
        text, done, total, self._last = self._step, self._done, self._total, now
        far = f", {done / total:.0%}" if total else ""
        known = self._estimate and total and self._step_done < done < total  # a step may begin half done
        rest = (now - self._step_begun) * (total - done) / (done - self._step_done) if known else None
        left = "" if rest is None else f", about {rest:.0f} s left"
        self._console.print(f"{text}{far}; {now - self._begun:.0f} s so far{left}", markup=False, soft_wrap=True)


@contextmanager
def shown_after(json_target: str | None, show: Callable[[], None]) -> Iterator[None]:
    """Show results after the block that writes them to files, unless they are JSON on stdout.

    Also if the block fails: a full disk takes no results away.
    """
    try:
        yield
    finally:
        if json_target != "-":
            show()


def write_json(data: Any, target: str) -> None:
    """Write data as JSON to a file, whole or not at all, or to stdout if the target is ``-``.

    Raises:
        LucidError: The file cannot be written.
    """
    text = json.dumps(data, indent=2) + "\n"
    if target == "-":
        print(text, end="")  # noqa: T201 (the result itself)
        return
    write_text(text, target)


def write_text(text: str, target: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        LucidError: The file cannot be written.
    """
    path = Path(target).resolve()  # what a link points to is replaced, not the link
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_text(text, encoding="utf-8", errors="backslashreplace")  # a device or a pipe: nothing to replace
            return
        write_whole(path, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise LucidError(f"{target} cannot be written: {error.strerror or error}.") from error


def human_size(size: float) -> str:
    """Return a number of bytes in a unit a person reads."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
