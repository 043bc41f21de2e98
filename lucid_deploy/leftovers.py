"""Temporary names beside what is being made, their locks, and what killed processes left under them.

The names are locked while their process lives, so that what a killed process left can be told from what another one is
making: the system lets go of a lock when its process ends, however it ends.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked and nothing removed
    fcntl = None  # type: ignore[assignment]

PARTIAL, OLD, RESUMABLE = ".lucid.partial", ".lucid.old", ".lucid.resume"
LEFT = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}(?P<kind>\.lucid\.(?:partial|old|resume))", re.DOTALL)
TOGETHER = ".lucid.together"  # within what is moved aside: the inodes of directories that appear together, by name


@dataclass(frozen=True)
class Leftovers:
    """What was found under temporary names in a directory.

    Attributes:
        removed: What processes left that are no more.
        restored: What such a process had moved aside and not replaced; it has its name again.
        in_use: What a running process is making.
        failed: What could not be removed, or get its name again.
    """

    removed: tuple[Path, ...] = ()
    restored: tuple[Path, ...] = ()
    in_use: tuple[Path, ...] = ()
    failed: tuple[Path, ...] = ()


def remove_leftovers(directory: Path, dry_run: bool = False, unfinished: bool = False) -> Leftovers:
    """Remove what killed processes left under temporary names in a directory; links are not followed.

    Args:
        directory: Where to look; not in its subdirectories.
        dry_run: Only say what would be done.
        unfinished: Remove what an interrupted command could go on with, too.
    """
    removed, restored, in_use, failed = [], [], [], []
    # What was moved aside comes first: it is told by inodes, which removing the rest would set free.
    for path in sorted(_listed(directory), key=lambda path: not path.name.endswith(OLD)):
        found = LEFT.fullmatch(path.name)
        if found is None or path.is_symlink() or (found["kind"] == RESUMABLE and not unfinished):
            continue
        with lock_of_another(path) as free:
            if not free:
                in_use.append(path)
                continue
            back, away = _unfinished(path, found["name"]) if found["kind"] == OLD else ([], [])
            rest = None if dry_run else _cleared(path, back, away)
            if rest is not None:
                failed.append(rest)
            else:
                restored += back
                removed += [*away, *([] if back else [path])]
    return Leftovers(*map(tuple, map(sorted, (removed, restored, in_use, failed))))


def note_together(aside: Path, made: Mapping[Path, Path]) -> None:
    """Write down which directories are to appear together, before the first gets its name."""
    if len(made) > 1:
        inodes = {target.name: os.lstat(building).st_ino for target, building in made.items()}
        (aside / TOGETHER).write_text(json.dumps(inodes), encoding="utf-8")


def _unfinished(aside: Path, name: str) -> tuple[list[Path], list[Path]]:
    """Return what gets its name back, and what loses it, since of what was to appear together something is missing.

    What stands at a name and is neither what was moved aside nor what was to replace it is somebody else's and stays.
    """
    inodes = _together(aside)
    old = {path.name for path in aside.iterdir()} & (inodes.keys() or {name})
    targets = [aside.parent / name for name in sorted(old | inodes.keys())]
    if all(map(os.path.lexists, targets)):
        return [], []
    away = [path for path in targets if os.path.lexists(path) and os.lstat(path).st_ino == inodes.get(path.name)]
    back = [path for path in targets if path.name in old and (path in away or not os.path.lexists(path))]
    return back, [path for path in away if path not in back]


def _together(aside: Path) -> dict[str, int]:
    try:
        found = json.loads((aside / TOGETHER).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or its writer was killed, before anything got another name
        return {}
    return found if isinstance(found, dict) else {}


def _cleared(path: Path, back: list[Path], away: list[Path]) -> Path | None:
    """Give old directories their names, and remove the rest; return what could not be removed."""
    with suppress(OSError):
        # As long as one is missing, the next process goes on after an interruption: so those that are there come first.
        for target in sorted([*back, *away], key=os.path.lexists, reverse=True):
            if os.path.lexists(target):
                discard(target, target.name)
            if target in back:
                os.rename(path / target.name, target)
        found = LEFT.fullmatch(path.name)
        if found is not None and found["kind"] == OLD:
            path = discard(path, found["name"])
        else:
            remove(path)
    return path if os.path.lexists(path) else None


def discard(path: Path, name: str) -> Path:
    """Remove a file or directory: first its name, so that nothing half removed is ever taken for something whole.

    Returns:
        Where it was before it was removed; something is there yet if that went wrong.
    """
    rest = temporary_name(path.parent / name, PARTIAL)
    os.rename(path, rest)
    remove(rest)
    return rest


def _listed(directory: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(directory.iterdir())
    return []


def remove(path: Path) -> None:
    """Remove a file, or a directory as far as that goes."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def temporary_name(target: Path, kind: str) -> Path:
    """Return a hidden name beside the target that nothing has."""
    # Not from tempfile, which makes what only its owner can read. The system applies the umask to what is made here;
    # to apply it later, a program would have to read it, which changes it for other threads.
    while True:
        name = target.parent / f".{target.name}.{secrets.token_hex(4)}{kind}"
        if not os.path.lexists(name):
            return name


@contextmanager
def held(target: Path, kind: str, make: Callable[[Path], int | None]) -> Iterator[tuple[int, Path]]:
    """Yield the descriptor of what is made beside the target, which holds a lock, and its name.

    A file, or a directory that is empty then, is removed when the block ends. A signal raises as soon as there is
    something, before what made it has returned: so what is begun here is cleaned up here, and its name known before.
    """
    while True:
        name = temporary_name(target, kind)
        handle = None
        try:
            if (handle := make(name)) is not None:
                _lock(handle)
                if name.exists():
                    yield handle, name
                    return
        finally:
            if handle is not None:
                os.close(handle)
            with suppress(OSError):
                name.rmdir() if name.is_dir() else name.unlink()
        # Another process took it for a leftover before it was locked.


def new_directory(name: Path) -> int | None:
    """Make a directory; return a descriptor of it, None if another process has removed it."""
    os.mkdir(name)
    with suppress(FileNotFoundError):
        return os.open(name, os.O_RDONLY)
    return None


def held_in_common(place: Path) -> int | None:
    """Make a directory whose name other processes know, if it is missing; return a descriptor that holds its lock.

    None: another process has it, or nothing can be locked; then none is made.
    """
    while fcntl is not None:
        place.mkdir(exist_ok=True)
        try:
            handle = os.open(place, os.O_RDONLY)
        except FileNotFoundError:  # as below
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            if not isinstance(error, BlockingIOError):  # a file system without locks
                with suppress(OSError):
                    place.rmdir()
            return None
        if _is_at(handle, place):
            return handle
        os.close(handle)  # who had it removed it before it was locked, and there may be a new one
    return None


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file still has this name: a lock of one that was removed keeps nobody out."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def take_lock(handle: int) -> None:
    """Lock an open file until it is closed; on a system or a file system without such locks, nobody is kept out.

    Raises:
        BlockingIOError: Another process has locked it.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return  # a file system without locks, such as some of clusters: two runs are the user's to avoid


def _lock(handle: int) -> None:
    if fcntl is not None:
        with suppress(OSError):  # a file system without locks: nobody removes anything there either
            fcntl.flock(handle, fcntl.LOCK_EX)


@contextmanager
def lock_of_another(path: Path) -> Iterator[bool]:
    """Lock what another process may be making; yield whether it could be locked, so that none is."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        yield _is_free(handle) and _is_at(handle, path)
    finally:
        os.close(handle)


@contextmanager
def turn_in(directory: Path) -> Iterator[None]:
    """Wait until no other process is in such a block for this directory; where nothing can be locked, do not wait.

    Nor in a directory with a temporary name: it belongs to one process, which holds its lock as long as it is there.
    """
    handle = None
    with suppress(OSError):  # it cannot be read
        if LEFT.fullmatch(directory.resolve().name) is None:
            handle = os.open(directory, os.O_RDONLY)
    try:
        if handle is not None:
            _lock(handle)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _is_free(handle: int) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
