"""Memory is counted as the kernel counts it."""

from __future__ import annotations

import mmap
import resource
from pathlib import Path

import numpy as np
import pytest

from lucid_deploy.bench.memory import reset_peak, resident_bytes
from lucid_deploy.errors import LucidError


def test_memory_is_the_kernels() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    assert abs(resident_bytes("VmRSS") - pages * resource.getpagesize()) < 1 << 24 < resident_bytes("VmHWM")
    with pytest.raises(LucidError, match="has no VmNothing; memory is measured on Linux only"):
        resident_bytes("VmNothing")


def test_a_peak_holds_what_was_given_back_until_it_is_reset() -> None:
    size = 1 << 27
    with mmap.mmap(-1, size) as block:  # of the kernel's: malloc may keep what is freed, for libraries that ask it to
        np.frombuffer(block, np.uint8)[:] = 1
    peak = resident_bytes("VmHWM")
    reset_peak()
    assert resident_bytes("VmHWM") < peak - size // 2
