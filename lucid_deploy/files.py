"""Output that appears whole or not at all: made under a temporary name beside its own, then renamed."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from lucid_deploy.errors import LucidError
from lucid_deploy.leftovers import (
    LEFT,
    OLD,
    PARTIAL,
    RESUMABLE,
    discard,
    held,
    held_in_common,
    lock_of_another,
    new_directory,
    note_together,
    remove,
    remove_leftovers,
    turn_in,
)


@contextmanager
def partial_directory(target: Path) -> Iterator[Path]:
    """Yield an empty directory beside the target, hidden and on the same file system, to be filled and renamed to it.

    It is removed at the end if it still has its temporary name. What killed processes left beside it is removed first.

    Raises:
        OSError: The target's parent is missing or cannot be written.
    """
    remove_leftovers(target.parent)
    with held(target, PARTIAL, new_directory) as (_, building):
        try:
            yield building
        finally:
            shutil.rmtree(building, ignore_errors=True)  # gone already if all went well


def check_replaceable(target: Path) -> None:
    """Check that a directory to be replaced does not hold the current one: it could not be renamed by such a name.

    Raises:
        LucidError: It does.
    """
    current = Path.cwd()
    if not target.is_symlink() and target.resolve() in (current, *current.parents):
        raise LucidError(
            f"{target} is or holds the current folder, which cannot be replaced. Run the command from another folder."
        )


def put_in_place(building: Path, target: Path, replace: bool = True) -> None:
    """Give a finished directory its name, as :func:`put_all_in_place` does."""
    put_all_in_place({target: building}, replace)


def put_all_in_place(made: Mapping[Path, Path], replace: bool = True) -> None:
    """Give finished directories their names. What they replace is moved aside, and removed only after all that worked.

    Whatever is raised on the way, Ctrl-C included, what was at the targets is there again, or the new directories are,
    with the old ones' permissions, never some of each. If the process is killed, some are missing at most, and
    :func:`~lucid_deploy.leftovers.remove_leftovers` puts back what was there. A link is replaced, not what it points
    to.

    Args:
        made: By their names, which are in one directory, directories from :func:`partial_directory`. Whether something
            that is there may be replaced is for the caller to check, before the work.
        replace: Whether something may be there. If not, what came while the directories were filled stays.

    Raises:
        LucidError: Something is there that may not be replaced.
        OSError: A rename fails; the directories have their temporary names again.
    """
    with turn_in(next(iter(made)).parent):  # else two processes would take each other's old directories for their own
        _put_all_in_place(made, replace)


def _put_all_in_place(made: Mapping[Path, Path], replace: bool) -> None:
    there = [target for target in made if target.exists()]
    if there and not replace:
        raise LucidError(
            f"{there[0]} exists already: another command made it in the meantime. Pass --overwrite to replace it."
        )
    with _aside(made, there) as aside:
        try:
            for target in there:
                if not target.is_symlink():
                    os.chmod(made[target], stat.S_IMODE(target.stat().st_mode))
            for target in there:  # all, before one is replaced: new and old are never beside each other
                os.rename(target, aside / target.name)
            for target, building in made.items():
                os.rename(building, target)
        except BaseException:  # Ctrl-C too
            if not any(map(os.path.lexists, made.values())):
                raise  # all are there
            for target, building in made.items():
                if not os.path.lexists(building) and os.path.lexists(target):
                    os.rename(target, building)
            for target in there:
                if os.path.lexists(aside / target.name) and not os.path.lexists(target):
                    os.rename(aside / target.name, target)
            raise


@contextmanager
def _aside(made: Mapping[Path, Path], there: list[Path]) -> Iterator[Path]:
    """Yield a hidden directory for what is moved aside; it is removed in the end, unless it holds an only copy."""
    first = next(iter(made))
    if not there and len(made) == 1:
        yield first  # nothing is moved
        return
    with held(first, OLD, new_directory) as (_, aside):
        try:
            note_together(aside, made)
            yield aside
        finally:
            if all(os.path.lexists(target) or not os.path.lexists(aside / target.name) for target in there):
                with suppress(OSError):
                    discard(aside, first.name)


@contextmanager
def whole_directory(target: Path, replace: bool = True) -> Iterator[Path]:
    """Yield an empty directory that takes the target's place when the block ends, and is removed if it raises.

    Raises:
        LucidError: As :func:`put_in_place`.
        OSError: As :func:`partial_directory` and :func:`put_in_place`.
    """
    with partial_directory(target) as building:
        yield building
        put_in_place(building, target, replace)


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
    place = target.parent / f".{target.name}.{key[:8]}{RESUMABLE}"
    if (handle := held_in_common(place)) is None:
        yield None
    else:
        try:
            if not (place / key).exists():
                for path in place.iterdir():
                    remove(path)
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
        with lock_of_another(path) as free:
            if free:
                shutil.rmtree(path, ignore_errors=True)


def resumable(target: Path) -> list[Path]:
    """Return what interrupted commands that were making the target have left to go on with."""
    with suppress(OSError):
        return [path for path in sorted(target.parent.iterdir()) if _is_resumable(path, target.name)]
    return []


def _is_resumable(path: Path, name: str) -> bool:
    found = LEFT.fullmatch(path.name)
    return found is not None and (found["kind"], found["name"]) == (RESUMABLE, name) and not path.is_symlink()


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
    with held(path, PARTIAL, lambda name: os.open(name, flags, made_with)) as (handle, name):
        if kept is not None:
            os.chmod(name, kept)  # before there is anything to read in it
        with os.fdopen(handle, "wb", closefd=False) as file:
            file.write(content)
            file.flush()
            os.fsync(handle)
        os.replace(name, path)


def _mode_of(path: Path) -> int | None:
    """Return the permissions of a file; None if none is there, or a link."""
    with suppress(FileNotFoundError):
        found = os.lstat(path).st_mode
        if stat.S_ISREG(found):
            return stat.S_IMODE(found)
    return None


def missing_directories(path: Path) -> list[Path]:
    """Return the directories that making this one would make, innermost first."""
    return [directory for directory in (path, *path.parents) if not directory.exists()]


def remove_empty(directories: list[Path]) -> None:
    """Remove the directories, innermost first, until one is not empty."""
    with suppress(OSError):
        for directory in directories:
            directory.rmdir()
