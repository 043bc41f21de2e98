"""How fast this machine is at the moment, roughly and in a tenth of a second: what estimates of time are made from."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SIZE = 768  # of the square matrices that are multiplied
COPIED = 32 << 20  # bytes: more than caches hold
HASHED = 8 << 20  # bytes


@dataclass(frozen=True)
class Speed:
    """Rates of one machine.

    Attributes:
        float32: Floating-point operations a second in products of float32.
        float64: The same in float64.
        memory: Bytes a second that are read.
        sha256: Bytes a second that are hashed.
    """

    float32: float
    float64: float
    memory: float
    sha256: float


@functools.cache
def measure_speed() -> Speed:
    """Measure once in a process, while the machine does whatever else it does."""

    def product(dtype: str) -> float:
        a = np.ones((SIZE, SIZE), dtype=dtype)
        return 2 * SIZE**3 / _seconds(lambda: a @ a)

    source, target = np.ones(COPIED, dtype=np.uint8), np.empty(COPIED, dtype=np.uint8)
    memory = 2 * COPIED / _seconds(lambda: np.copyto(target, source))
    hashed = bytes(HASHED)
    sha256 = HASHED / _seconds(lambda: hashlib.sha256(hashed).digest())
    return Speed(product("float32"), product("float64"), memory, sha256)


def _seconds(call: Callable[[], object]) -> float:
    """Return what a call takes, the second time."""
    call()
    start = time.perf_counter()
    call()
    return max(time.perf_counter() - start, 1e-6)
