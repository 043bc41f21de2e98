"""Cycles that shared memory takes for what a warp's threads read and write at once.

Shared memory has 32 banks, one word of four bytes of each in a cycle; word w lies in bank w % 32. Threads that want the
same word get it together, and those that want different words of one bank wait for each other. A warp moves 128 bytes
at once at most, so that those with 8 bytes a thread go by half warps and those with 16 by quarter warps. The addresses
of ``ldmatrix`` and ``stmatrix`` are those of rows of 16 bytes, eight of one matrix at once, which is the same rule.
(CUDA C++ Programming Guide, "Shared memory", and NVIDIA's answers on wide accesses, which the guide leaves out.)

Words that the halves or quarters of a warp have in common are counted for each; a GPU may do better there. What
``wgmma`` and ``tcgen05`` read by descriptors is no access of a thread, and not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tools.ptx.source import Instruction

LANES = 32
BANKS = 32
WORD = 4  # bytes


def phases(size: int, threads: np.ndarray) -> np.ndarray:
    """Return for each thread a number that those have in common whose ``size`` bytes are moved at once."""
    return threads // min(LANES, BANKS * WORD // size)


def cycles(offsets: np.ndarray, size: int, threads: np.ndarray) -> int:
    """Return the cycles that one instruction takes shared memory.

    Args:
        offsets: Where each thread's bytes begin.
        size: Bytes of a thread, a power of two up to 16.
        threads: The numbers of the threads, of one warp or of several, each of which waits for the others.
    """
    words = offsets.astype(np.int64)[:, None] // WORD + np.arange(max(1, size // WORD))
    at_once = np.broadcast_to(phases(size, threads)[:, None], words.shape)
    different = np.unique(np.stack([at_once.ravel(), words.ravel()]), axis=1)
    of_bank, count = np.unique(np.stack([different[0], different[1] % BANKS]), axis=1, return_counts=True)
    _, begins = np.unique(of_bank[0], return_index=True)
    return int(np.maximum.reduceat(count, begins).sum())


@dataclass
class Count:
    """What an instruction took shared memory.

    Attributes:
        cycles: As counted.
        least: With no conflict.
    """

    cycles: int = 0
    least: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.cycles + other.cycles, self.least + other.least)

    def __sub__(self, other: Count) -> Count:
        return Count(self.cycles - other.cycles, self.least - other.least)


class Counter:
    """A :data:`~tools.ptx.machine.Watch` that counts by instruction."""

    def __init__(self) -> None:
        self.found: dict[Instruction, Count] = {}

    def __call__(self, instruction: Instruction, offsets: np.ndarray, size: int, threads: np.ndarray) -> None:
        taken = Count(cycles(offsets, size, threads), np.unique(phases(size, threads)).size)
        self.found[instruction] = self.found.get(instruction, Count()) + taken

    def less(self, other: Counter) -> dict[Instruction, Count]:
        """Return what is counted here and not in another run of the same code, of fewer tiles."""
        found = {each: count - other.found.get(each, Count()) for each, count in self.found.items()}
        return {each: count for each, count in found.items() if count.cycles}
