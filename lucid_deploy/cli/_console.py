"""Consoles and progress bars: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment

from lucid_deploy.errors import LucidError, printable
from lucid_deploy.files import atomic_write

INTERVAL = 10.0  # seconds between two lines where no bar can be shown


class _Console(Console):
    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Replace control characters: what is shown may come from a stranger's files."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


# Tables in files and pipes are 120 wide. If stdout is closed it is None; prepare_streams reports that.
console_out = _Console(highlight=False, width=None if sys.stdout and sys.stdout.isatty() else 120)
console_err = _Console(stderr=True, highlight=False)


def set_output(quiet: bool, no_color: bool) -> None:
    """Set up both consoles for a command. ``quiet`` silences stderr's console; errors are written without a console."""
    console_err.quiet = quiet
    for console in (console_out, console_err):
        console.no_color = no_color or bool(os.environ.get("NO_COLOR"))


def note(text: str) -> None:
    """Write a remark to stderr, unless --quiet was given."""
    console_err.print(text, markup=False, soft_wrap=True)


def show(text: str) -> None:
    """Write a line of results to stdout, without wrapping it."""
    console_out.print(text, markup=False, soft_wrap=True)


@contextmanager
def progress(description: str, estimate: bool = False) -> Iterator[Callable[..., None]]:
    """Show a progress bar on stderr while the block runs; where stderr is no terminal, a line every ten seconds.

    Call the yielded function with (done, total), or with (description, done, total) if the work has several steps. With
    ``estimate`` the bar shows the time left too, for work whose parts take about equally long.
    """
    if not console_err.is_terminal:
        yield _ProgressLines(description).update
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


class _ProgressLines:
    """Writes a line about the progress, at most every ten seconds; shorter work writes none."""

    def __init__(self, description: str) -> None:
        self._description = description
        self._start = self._last = time.monotonic()

    def update(self, *values: Any) -> None:
        text, done, total = values if len(values) == 3 else (self._description, *values)
        now = time.monotonic()
        if now - self._last >= INTERVAL:
            self._last = now
            far = f", {done / total:.0%}" if total else ""
            note(f"{text}{far}; {now - self._start:.0f} s so far")


def write_results(data: Any, json_target: str | None, show: Callable[[], None]) -> None:
    """Show results, and write them as JSON to ``json_target`` if given; with ``-``, stdout gets the JSON alone.

    Results are shown first, so that they are not lost when writing the file fails.
    """
    if json_target != "-":
        show()
    if json_target is not None:
        write_json(data, json_target)


def write_json(data: Any, target: str) -> None:
    """Write data as JSON to a file, whole or not at all, or to stdout if the target is ``-``."""
    text = json.dumps(data, indent=2) + "\n"
    if target == "-":
        print(text, end="")  # noqa: T201 (the result itself)
        return
    write_text(text, target)


def write_text(text: str, target: str) -> None:
    """Write a text file, whole or not at all; a device or pipe is written directly."""
    path = Path(target).resolve()  # what a link points to is replaced, not the link
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_text(text, encoding="utf-8", errors="backslashreplace")  # a device or a pipe: nothing to replace
            return
        atomic_write(path, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise LucidError(f"{target} cannot be written: {error.strerror or error}.") from error


def human_size(size: float) -> str:
    """Return a number of bytes as text with a suitable unit, such as ``4.0 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
