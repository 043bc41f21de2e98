"""Make what tests share once per run, in the worker that needs it first: in a folder of the run, under a lock."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def run_folder(factory: pytest.TempPathFactory, name: str) -> Path:
    """Return a folder that all workers of this run have in common."""
    own = factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name
    folder.mkdir(exist_ok=True)
    return folder


def made_once(root: Path, key: str, make: Callable[[Path], object]) -> Path:
    """Return the folder of a key, which ``make`` has filled, here or in another worker.

    If ``make`` raised, the next call removes the folder and makes it again.
    """
    folder = root / hashlib.sha256(key.encode()).hexdigest()[:16]
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / "done"
        if not done.is_file():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
