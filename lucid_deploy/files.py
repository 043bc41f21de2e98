"""Output that appears whole or not at all: made under a temporary name beside its own, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def partial_directory(target: Path) -> Path:
    """Make an empty directory beside the target, hidden and on the same file system, to be filled and renamed to it.

    Raises:
        OSError: The target's parent is missing or cannot be written.
    """
    return Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))


def put_in_place(building: Path, target: Path) -> None:
    """Give a finished directory its name. What it replaces is moved aside, and removed only after that worked.

    Whatever is raised on the way, Ctrl-C included, what was at the target is there again, or the new directory is. A
    link is replaced, not what it points to.

    Args:
        building: The directory, from :func:`partial_directory`.
        target: Its name. Whether something that is there may be replaced is for the caller to check.

    Raises:
        OSError: A rename fails; ``building`` is still there.
    """
    os.chmod(building, 0o755)  # a temporary directory is its owner's only
    if not target.exists():
        os.rename(building, target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    aside = old / target.name
    try:
        os.rename(target, aside)
        os.rename(building, target)
    except BaseException:  # Ctrl-C too
        if os.path.lexists(aside) and not os.path.lexists(target):
            os.rename(aside, target)
        raise
    finally:
        if os.path.lexists(target) or not os.path.lexists(aside):  # else it holds the only copy
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def whole_directory(target: Path) -> Iterator[Path]:
    """Yield an empty directory that takes the target's place when the block ends, and is removed if it raises.

    Raises:
        OSError: As :func:`partial_directory` and :func:`put_in_place`.
    """
    building = partial_directory(target)
    try:
        yield building
        put_in_place(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)  # gone already if all went well


def write_whole(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file whole or not at all, and to the disk before it gets its name. A link is replaced.

    Args:
        path: The file; its directory exists.
        content: All of it.
        mode: Its permissions.

    Raises:
        OSError: It cannot be written; a file that was there is unchanged.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)  # gone already if all went well


def missing_directories(path: Path) -> list[Path]:
    """Return the directories that making this one would make, innermost first."""
    return [directory for directory in (path, *path.parents) if not directory.exists()]


def remove_empty(directories: list[Path]) -> None:
    """Remove the directories, innermost first, until one is not empty."""
    with suppress(OSError):
        for directory in directories:
            directory.rmdir()
