"""A number of PyTorch threads for a while, in place of one for the whole process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lucid_deploy.errors import LucidError

_process: int | None = None  # in which a model has run with several threads


@contextmanager
def torch_threads(number: int | None) -> Iterator[None]:
    """Let PyTorch use ``number`` threads within an operator, then as many as before; None changes nothing.

    PyTorch keeps the number for each of the caller's threads, so sessions that run in several threads do not disturb
    each other. It has no call for one thread alone, though: a thread that uses PyTorch for the first time starts with
    the number that was set last, and keeps it. So a thread whose first use falls into this context starts with
    ``number``; one that must not, sets its own, or uses PyTorch once before.
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
    """Check, before a model runs on the CPU, that its threads were not left behind in a parent process.

    A fork copies the memory that says there are threads, and none of them: the first operator that hands work to them
    would wait for ever.
    """
    global _process
    if torch.get_num_threads() == 1:
        return
    if _process is None:
        _process = os.getpid()
    elif _process != os.getpid():
        raise LucidError(
            f"PyTorch has run with several threads in process {_process}, of which this one is a fork: it would wait "
            "for them for ever. Start processes with spawn instead of fork, or open the model with threads=1."
        )
