"""OpenVINO's registry of devices, one for the process."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import openvino


@functools.cache
def core() -> openvino.Core:
    """Return it; it lives as long as the process.

    The CPU device gives the thread that first compiles a graph another stack for signal handlers, and frees it with
    itself, in whichever thread. With a Core for each session, the next signal after another thread had closed the last
    one was a segmentation fault (OpenVINO 2026.4).
    """
    import openvino

    return openvino.Core()
