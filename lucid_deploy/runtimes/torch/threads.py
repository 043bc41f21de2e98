"""Set PyTorch's number of threads within a context, and refuse to run in a fork, where its threads are missing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lucid_deploy.errors import LucidError

_process: int | None = None  # id of the process in which a model first ran with several threads


@contextmanager
def torch_threads(number: int | None) -> Iterator[None]:
    """Let PyTorch use ``number`` threads per operator inside the context; None changes nothing.

    PyTorch stores the number per calling thread, so sessions in several threads do not affect each other. But a thread
    that uses PyTorch for the first time takes the number that any thread set last. A thread that needs another number
    has to set it, or use PyTorch once beforehand.
    """
    if number is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_threads_are_here() -> None:
    """Check, before a model runs on the CPU, that PyTorch's threads were not started by a parent process.

    A fork copies PyTorch's record of its threads but not the threads, so the first parallel operator would hang.
    """
    global _process
    if torch.get_num_threads() == 1:
        return
    if _process is None:
        _process = os.getpid()
    elif _process != os.getpid():
        raise LucidError(
            f"PyTorch has run with several threads in process {_process}, and this process is a fork of it: PyTorch "
            "would hang. Start processes with spawn instead of fork, or open the model with threads=1."
        )
