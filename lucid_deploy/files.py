"""Files and folders that appear complete or not at all: written beside their names, flushed to the disk, then renamed.

A killed process leaves a visible sibling, ``NAME.tmp-XXXXXXXX``, for the user to delete. No command reads, renames or
removes one that it has not made: anybody who can write into the folder may have put it there.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lucid_deploy.errors import LucidError


def atomic_write(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a file; an old one keeps its permissions, a new one gets ``mode`` less the umask. A link is replaced."""
    kept = os.lstat(path).st_mode if path.is_file() and not path.is_symlink() else None
    temporary = _sibling(path, "tmp")
    try:
        create = mode if kept is None else stat.S_IMODE(kept)
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, create)) as file:
            if kept is not None:
                os.fchmod(file.fileno(), create)  # whatever the umask is
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def temporary_sibling(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside the target, so on the same file system; it is removed when the block ends."""
    path = _sibling(target, "tmp")
    try:
        path.mkdir()
        yield path
    finally:
        _remove(path)


@contextmanager
def atomic_folders(*targets: Path, overwrite: bool = True) -> Iterator[list[Path]]:
    """Yield an empty folder for each target; when the block ends, the folders take the targets' names.

    An existing target raises a LucidError unless ``overwrite`` is set; one that is or contains the current folder
    always does. If anything raises, nothing changes. A single folder replaces an old one in one step if the system can
    swap names. Otherwise a kill between renames may leave ``NAME.old-XXXXXXXX`` (old) and ``NAME.tmp-…`` (new).
    """
    for target in targets:
        if not target.is_symlink() and target.resolve() in (Path.cwd(), *Path.cwd().parents):
            raise LucidError(f"{target} is or holds the current folder. Run the command from another folder.")
    new = {target.absolute(): _sibling(target, "tmp") for target in targets}
    missing = [folder for folder in next(iter(new)).parents if not folder.exists()]
    try:
        for path in new.values():
            path.mkdir(parents=True)
        yield list(new.values())
        for path in (file for folder in new.values() for file in folder.rglob("*") if file.is_file()):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        _put_in_place(new, overwrite)
    finally:
        for path in new.values():
            _remove(path)
        with suppress(OSError):  # a folder that is not empty stays, and so do those above it
            for folder in missing:
                folder.rmdir()


def _put_in_place(new: dict[Path, Path], overwrite: bool) -> None:
    existing = [target for target in new if os.path.lexists(target)]
    if existing and not overwrite:
        raise LucidError(f"{existing[0]} exists already. Choose another output, or pass --overwrite to replace it.")
    for target in existing:
        if not target.is_symlink():
            new[target].chmod(stat.S_IMODE(target.stat().st_mode))
    if len(new) == 1 and existing and _exchange(new[existing[0]], existing[0]):
        return
    old = {target: _sibling(target, "old") for target in existing}
    # Old folders are renamed first, so that old and new ones, such as graphs of two models, never stand together.
    moves = [*old.items(), *((path, target) for target, path in new.items())]
    try:
        for source, destination in moves:
            os.rename(source, destination)
    except BaseException:  # Ctrl-C too
        for source, destination in reversed(moves):
            if not os.path.lexists(source):
                os.rename(destination, source)
        raise
    for path in old.values():
        _remove(path)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two absolute paths in one step; return False if the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(0, os.fsencode(one), 0, os.fsencode(other), 2) == 0  # RENAME_EXCHANGE


def _sibling(target: Path, kind: str) -> Path:
    target = target.absolute()
    return target.with_name(f"{target.name}.{kind}-{secrets.token_hex(4)}")


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink()  # a file or a link, whose name was exchanged with a folder's
