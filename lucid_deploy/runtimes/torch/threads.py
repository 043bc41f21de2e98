"""A number of PyTorch threads for a while, in place of one for the whole process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
