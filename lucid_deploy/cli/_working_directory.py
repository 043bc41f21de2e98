"""A working directory that was removed: PyTorch's library of mathematics ends the process then, in words of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder

from lucid_deploy.errors import LucidError

_ENDING = ("torch",)  # modules whose import ends a process that has no working directory


def has_working_directory() -> bool:
    """Whether the directory that the process works in is there yet."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


class _PyTorchIsRefused(MetaPathFinder):
    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name in _ENDING:
            raise LucidError(
                "The working directory does not exist any more, and PyTorch ends a process that has none. Change to "
                "another one."
            )


@contextmanager
def without_pytorch_nowhere() -> Iterator[None]:
    """Refuse to import PyTorch in a block without a working directory; what does without PyTorch runs.

    Raises:
        LucidError: PyTorch is imported there. Importing it would exit ("Cannot load libtorch_cpu.so", status 2).
    """
    if has_working_directory():
        yield
        return
    finder = _PyTorchIsRefused()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
