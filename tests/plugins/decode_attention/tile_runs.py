"""What runs inside of an interpreter's process: sums of squares of all numbers of E4M3."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS, WIDTH = 16, 32


def every_number() -> Tensor:
    """Return what E4M3 has, without its two NaN, which are 0 here: 256 rows with one number each."""
    rows = torch.zeros(256, WIDTH, dtype=torch.uint8)
    rows[:, 0] = torch.arange(256)
    rows[[127, 255]] = 0
    return rows.view(torch.float8_e4m3fn)


def run_squares(dtype: str, add: bool) -> Tensor:
    """Return the squares ``(1 or ROWS, 256)``."""
    from tests.plugins.decode_attention.tile_kernels import squares_kernel

    q = torch.randn(ROWS, WIDTH).to(getattr(torch, dtype))
    squares = torch.full((ROWS if add else 1, 256), torch.nan)
    squares_kernel[(1,)](q, every_number(), squares, ROWS=ROWS, BLOCK=256, D=WIDTH, ADD=add)
    return squares
