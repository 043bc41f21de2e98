"""What tests share is made once per run, by the worker that needs it first: a folder of the run, and locks in it."""

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

    What has failed is removed, and made again by the next that asks.
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
