"""A process in which Triton interprets kernels on the CPU.

Triton reads TRITON_INTERPRET on import, for the whole process. So kernel tests send their cases to separate processes,
which import this module too, and other tests are not affected.
"""

from __future__ import annotations

import os

import torch


def start() -> None:
    """Make this process an interpreter of kernels that rounds as a GPU does."""
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    from tests.plugins.faithful_interpreter import patch_once_a_launch, round_like_a_gpu

    round_like_a_gpu()
    patch_once_a_launch()
