"""A pytest plugin: tests, and the processes they start, see a home, a cache and a temporary folder of this run alone.

A user's cache may hold the library of CPU kernels, which sessions then use, and settings at home change other programs.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from multiprocessing.util import Finalize
from pathlib import Path

import pytest

FOLDERS = {"HOME": "home", "XDG_CACHE_HOME": "cache", "TMPDIR": "tmp"}
_LAST = -1000  # after multiprocessing has removed its own folder inside (-100), as this process ends
INSIDE_HOME = ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")  # unset, they lie in HOME


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # the process that started this worker has done it for all of them
        return
    root = Path(tempfile.mkdtemp(prefix="lucid-"))  # short: sockets limit the length of their paths
    Finalize(None, shutil.rmtree, (root, True), exitpriority=_LAST)
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)
    # What a failed test leaves in tmp_path stays where pytest keeps it.
    patch.setenv("PYTEST_DEBUG_TEMPROOT", os.environ.get("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir()))
    for name, folder in FOLDERS.items():
        (root / folder).mkdir()
        patch.setenv(name, str(root / folder))
    for name in INSIDE_HOME:
        patch.delenv(name, raising=False)
    patch.setattr(tempfile, "tempdir", os.environ["TMPDIR"])  # tempfile has read TMPDIR before
