"""What runs inside of an interpreter's process: squares of keys in E4M3 and the half types, numbers of Y in E4M3."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ROWS, WIDTH = 16, 32


def every_number() -> Tensor:
    """Return what E4M3 has, without its two NaN, which are 0 here: 256 rows with one number each."""
    rows = torch.zeros(256, WIDTH, dtype=torch.uint8)
    rows[:, 0] = torch.arange(256)
    rows[[127, 255]] = 0
    return rows.view(torch.float8_e4m3fn)


def numbers_of_bfloat16() -> Tensor:
    """Return 256 rows with one number each: every size, 0, and at the end what has no square in float32."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.zeros(256, WIDTH)
    rows[:, 0] = torch.ldexp(1 + torch.rand(256, generator=generator), torch.arange(256) % 118 - 55)
    rows[1::2] *= -1
    rows[0] = 0.0
    rows[-4:, 0] = torch.tensor([3e19, -1e38, -torch.inf, torch.nan])
    return rows.bfloat16()


def numbers_of_float16() -> Tensor:
    """Return 256 rows with one number each: every size, the smallest and the largest among them, and 0."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.zeros(256, WIDTH)
    rows[:, 0] = torch.ldexp(1 + torch.rand(256, generator=generator), torch.arange(256) % 40 - 24)
    rows[1::2] *= -1
    rows[:3, 0] = torch.tensor([0.0, 2.0**-24, -65504.0])
    return rows.half()


def run_squares(dtype: str, add: bool, keys: Callable[[], Tensor] = every_number) -> Tensor:
    """Return the squares ``(1 or ROWS, 256)``."""
    from tests.plugins.decode_attention.tile_kernels import squares_kernel

    q = torch.randn(ROWS, WIDTH).to(getattr(torch, dtype))
    squares = torch.full((ROWS if add else 1, 256), torch.nan)
    squares_kernel[(1,)](q, keys(), squares, ROWS=ROWS, BLOCK=256, D=WIDTH, ADD=add)
    return squares


def run_own_squares(parts: int, keys: Callable[[], Tensor]) -> Tensor:
    """Return the squares ``(256,)`` of keys that are dealt to so many parts."""
    from tests.plugins.decode_attention.tile_kernels import own_squares_kernel

    squares = torch.full((256,), torch.nan)
    own_squares_kernel[(1,)](keys(), squares, PARTS=parts, TOKENS=256 // parts, D=WIDTH)
    return squares


def run_unpack(pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Return what is in the low and in the high bytes of int16, whose number is a power of two."""
    from tests.plugins.decode_attention.tile_kernels import unpack_kernel

    low, high = torch.full(pairs.shape, torch.nan).half(), torch.full(pairs.shape, torch.nan).half()
    unpack_kernel[(1,)](pairs, low, high, SIZE=pairs.numel())
    return low, high


def run_power(largest: Tensor) -> Tensor:
    """Return the powers for the largest scales."""
    from tests.plugins.decode_attention.tile_kernels import power_kernel

    power = torch.full(largest.shape, torch.nan)
    power_kernel[(1,)](largest, power, SIZE=largest.numel())
    return power
