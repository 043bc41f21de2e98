"""Output that appears whole or not at all: made under a temporary name beside its own, then renamed.

Temporary names are locked while their process lives, so that what a killed process left can be told from what another
one is making: the system lets go of a lock when its process ends, however it ends.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lucid_deploy.errors import LucidError

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked and nothing removed
    fcntl = None  # type: ignore[assignment]

_PARTIAL, _OLD, _RESUMABLE = ".lucid.partial", ".lucid.old", ".lucid.resume"
_LEFT = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}(?P<kind>\.lucid\.(?:partial|old|resume))", re.DOTALL)


@contextmanager
def partial_directory(target: Path) -> Iterator[Path]:
    """Yield an empty directory beside the target, hidden and on the same file system, to be filled and renamed to it.

    It is removed at the end if it still has its temporary name. What killed processes left beside it is removed first.

    Raises:
        OSError: The target's parent is missing or cannot be written.
    """
    remove_leftovers(target.parent)
    with _held(target, _PARTIAL, _new_directory) as (_, building):
        try:
            yield building
        finally:
            shutil.rmtree(building, ignore_errors=True)  # gone already if all went well


def put_in_place(building: Path, target: Path) -> None:
    """Give a finished directory its name, as :func:`put_all_in_place` does."""
    put_all_in_place({target: building})


def put_all_in_place(made: Mapping[Path, Path]) -> None:
    """Give finished directories their names. What they replace is moved aside, and removed only after all that worked.

    Whatever is raised on the way, Ctrl-C included, what was at the targets is there again, or the new directories are,
    with the old ones' permissions, never some of each. A link is replaced, not what it points to.

    Args:
        made: By their names, directories from :func:`partial_directory`. Whether something that is there may be
            replaced is for the caller to check.

    Raises:
        OSError: A rename fails; the directories have their temporary names again.
    """
    with ExitStack() as asides:
        begun: list[tuple[Path, Path, Path | None]] = []
        try:
            for target, building in made.items():
                there = target.exists()
                if there and not target.is_symlink():
                    os.chmod(building, stat.S_IMODE(target.stat().st_mode))
                aside = asides.enter_context(_aside(target)) if there else None
                begun.append((target, building, aside))
                if aside is not None:
                    os.rename(target, aside)
                os.rename(building, target)
        except BaseException:  # Ctrl-C too
            if not any(map(os.path.lexists, made.values())):
                raise  # all are there
            for target, building, aside in reversed(begun):
                if not os.path.lexists(building) and os.path.lexists(target):
                    os.rename(target, building)
                if aside is not None and os.path.lexists(aside) and not os.path.lexists(target):
                    os.rename(aside, target)
            raise


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """Yield a hidden name for what is at the target; what gets it is removed in the end, unless it is the only copy."""
    with _held(target, _OLD, _new_directory) as (_, old):
        aside = old / target.name
        try:
            yield aside
        finally:
            if os.path.lexists(target) or not os.path.lexists(aside):
                shutil.rmtree(old, ignore_errors=True)


@contextmanager
def whole_directory(target: Path) -> Iterator[Path]:
    """Yield an empty directory that takes the target's place when the block ends, and is removed if it raises.

    Raises:
        OSError: As :func:`partial_directory` and :func:`put_in_place`.
    """
    with partial_directory(target) as building:
        yield building
        put_in_place(building, target)


@contextmanager
def resumable_directory(target: Path, key: str) -> Iterator[Path | None]:
    """Yield a hidden directory beside the target, for what a command that is interrupted shall find when it runs again.

    The same key finds the same directory, with what is in it. When the block ends it is removed, with all others that
    this target has and nobody uses. It stays if the block raises, Ctrl-C included, and if the process is killed, unless
    it is empty; :func:`remove_leftovers` removes it when it is asked to.

    Args:
        target: What the command makes.
        key: Hexadecimal; of everything that decides what is kept there.

    Yields:
        The directory; None: another process uses it, or the system or the file system knows no locks.

    Raises:
        OSError: The target's parent is missing or cannot be written.
    """
    place = target.parent / f".{target.name}.{key[:8]}{_RESUMABLE}"
    if (handle := _held_in_common(place)) is None:
        yield None
    else:
        try:
            if not (place / key).exists():
                for path in place.iterdir():
                    _remove(path)
                (place / key).touch()
            yield place
            shutil.rmtree(place, ignore_errors=True)
        except BaseException:  # Ctrl-C too
            with suppress(OSError):
                if [path.name for path in place.iterdir()] == [key]:
                    shutil.rmtree(place, ignore_errors=True)
            raise
        finally:
            os.close(handle)
    remove_resumable(target)


def remove_resumable(target: Path) -> None:
    """Remove what :func:`resumable_directory` has kept for the target, but for what another process uses."""
    for path in resumable(target):
        with _lock_of_another(path) as free:
            if free:
                shutil.rmtree(path, ignore_errors=True)


def resumable(target: Path) -> list[Path]:
    """Return what interrupted commands that were making the target have left to go on with."""
    with suppress(OSError):
        return [path for path in sorted(target.parent.iterdir()) if _is_resumable(path, target.name)]
    return []


def _is_resumable(path: Path, name: str) -> bool:
    found = _LEFT.fullmatch(path.name)
    return found is not None and (found["kind"], found["name"]) == (_RESUMABLE, name) and not path.is_symlink()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name the file when reading it fails; only opening it would do that by itself.

    Raises:
        LucidError: A read failed.
    """
    try:
        yield
    except OSError as error:
        raise LucidError(f"{path} cannot be read: {error.strerror or error}.") from error


def write_whole(path: Path, content: bytes, mode: int | None = None) -> None:
    """Write a file whole or not at all, and to the disk before it gets its name. A link is replaced.

    What killed processes left beside it is removed first.

    Args:
        path: The file; its directory exists.
        content: All of it.
        mode: Its permissions, less what the user's umask takes away. None: those of the file that is replaced, and for
            a new one what ``open`` gives.

    Raises:
        OSError: It cannot be written; a file that was there is unchanged.
    """
    remove_leftovers(path.parent)
    kept = _mode_of(path) if mode is None else None
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    made_with = kept if kept is not None else 0o666 if mode is None else mode
    with _held(path, _PARTIAL, lambda name: os.open(name, flags, made_with)) as (handle, name):
        if kept is not None:
            os.chmod(name, kept)  # before there is anything to read in it
        with os.fdopen(handle, "wb", closefd=False) as file:
            file.write(content)
            file.flush()
            os.fsync(handle)
        os.replace(name, path)


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
    for path in _listed(directory):
        found = _LEFT.fullmatch(path.name)
        if found is None or path.is_symlink() or (found["kind"] == _RESUMABLE and not unfinished):
            continue
        with _lock_of_another(path) as free:
            aside, target = path / found["name"], path.parent / found["name"]
            if not free:
                in_use.append(path)
                continue
            only_copy = found["kind"] == _OLD and os.path.lexists(aside) and not os.path.lexists(target)
            if not dry_run:
                with suppress(OSError):
                    if only_copy:
                        os.rename(aside, target)
                    _remove(path)
            if not dry_run and os.path.lexists(path):
                failed.append(path)
            elif only_copy:
                restored.append(target)
            else:
                removed.append(path)
    return Leftovers(tuple(removed), tuple(restored), tuple(in_use), tuple(failed))


def _listed(directory: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(directory.iterdir())
    return []


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _mode_of(path: Path) -> int | None:
    """Return the permissions of a file; None if none is there, or a link."""
    with suppress(FileNotFoundError):
        found = os.lstat(path).st_mode
        if stat.S_ISREG(found):
            return stat.S_IMODE(found)
    return None


def _temporary_name(target: Path, kind: str) -> Path:
    # Not from tempfile, which makes what only its owner can read. The system applies the umask to what is made here;
    # to apply it later, a program would have to read it, which changes it for other threads.
    while True:
        name = target.parent / f".{target.name}.{secrets.token_hex(4)}{kind}"
        if not os.path.lexists(name):
            return name


@contextmanager
def _held(target: Path, kind: str, make: Callable[[Path], int | None]) -> Iterator[tuple[int, Path]]:
    """Yield the descriptor of what is made beside the target, which holds a lock, and its name.

    A file, or a directory that is empty then, is removed when the block ends. A signal raises as soon as there is
    something, before what made it has returned: so what is begun here is cleaned up here, and its name known before.
    """
    while True:
        name = _temporary_name(target, kind)
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


def _new_directory(name: Path) -> int | None:
    os.mkdir(name)
    with suppress(FileNotFoundError):
        return os.open(name, os.O_RDONLY)
    return None


def _held_in_common(place: Path) -> int | None:
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


def _lock(handle: int) -> None:
    if fcntl is not None:
        with suppress(OSError):  # a file system without locks: nobody removes anything there either
            fcntl.flock(handle, fcntl.LOCK_EX)


@contextmanager
def _lock_of_another(path: Path) -> Iterator[bool]:
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


def _is_free(handle: int) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def missing_directories(path: Path) -> list[Path]:
    """Return the directories that making this one would make, innermost first."""
    return [directory for directory in (path, *path.parents) if not directory.exists()]


def remove_empty(directories: list[Path]) -> None:
    """Remove the directories, innermost first, until one is not empty."""
    with suppress(OSError):
        for directory in directories:
            directory.rmdir()
