"""How many threads libraries start, and how they wait for work: they are told before they are loaded."""

from __future__ import annotations

import os
import sys

from lucid_deploy.processors import allowed_threads

# PyTorch's OpenMP threads, and NumPy's OpenBLAS threads: after 2**4 processor cycles, not 2**26.
_SLEEP = {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_THREAD_TIMEOUT": "4"}


def bound_threads() -> None:
    """Let PyTorch and NumPy start no more threads than this process may use; what the user has set stays.

    They start one for each of the machine's cores, whatever time a container gets of them.
    """
    if not _loaded() and (threads := allowed_threads()) is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))


def let_waiting_threads_sleep() -> None:
    """Let threads of PyTorch and NumPy that have nothing to do sleep at once; what the user has set stays.

    They spin for up to a tenth of a second after every product, in the hope of the next one. In a command that goes
    back and forth between PyTorch, NumPy and a runtime, each takes the processor from the others by that. What is
    computed does not depend on it. The libraries read this once, when they are loaded: afterwards nothing is set.
    """
    if not _loaded():
        for name, value in _SLEEP.items():
            os.environ.setdefault(name, value)


def _loaded() -> bool:
    return bool({"numpy", "torch"} & sys.modules.keys())
