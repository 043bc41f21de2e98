"""What runs inside of an interpreter's process: the functions for E in bfloat16 and int8."""

from __future__ import annotations

from typing import Any

import torch

BLOCK, WIDTH, CHUNK = 32, 64, 32
STEPS = 127.0 * 512.0


def run_parts() -> dict[str, torch.Tensor]:
    """Split weights from 0 to 1, of all sizes, and a little more than 1."""
    from tests.plugins.precondition.int8_kernels import parts_kernel

    generator = torch.Generator().manual_seed(3)
    e = torch.exp(-12 * torch.rand(4096, generator=generator).square())
    e[:4] = torch.tensor([0.0, 1.0, 1.0 + 2.0**-20, 1.0 - 2.0**-9])
    high, low = torch.empty(4096, dtype=torch.bfloat16), torch.empty(4096, dtype=torch.int8)
    parts_kernel[(1,)](e, high, low, BLOCK=4096)
    return {"e": e.double(), "high": high.double(), "low": low.double() / STEPS}


def run_order() -> tuple[list[int], list[int]]:
    """Return where each token's byte stands, and what stands where."""
    from tests.plugins.precondition.int8_kernels import order_kernel

    places, moved = torch.empty(BLOCK, dtype=torch.int32), torch.empty((2, BLOCK), dtype=torch.int32)
    order_kernel[(1,)](places, moved, BLOCK=BLOCK)
    assert moved[0].equal(moved[1])
    return places.tolist(), moved[0].tolist()


def run_tile() -> dict[str, Any]:
    """Multiply with a tile whose columns have sizes of their own, one of zeros, with NaN where there is no token."""
    from tests.plugins.precondition.int8_kernels import tile_kernel

    generator = torch.Generator().manual_seed(4)
    e = torch.exp(-0.5 * torch.rand(BLOCK, BLOCK, generator=generator))
    y = torch.randn(BLOCK, WIDTH, generator=generator) * torch.logspace(-6, 6, WIDTH)
    y[:, 5] = 0
    y = y.to(torch.bfloat16)
    tokens = torch.ones(BLOCK, dtype=torch.int8)
    tokens[[3, 17]] = 0
    y[tokens == 0] = torch.nan
    scales, data = torch.full((3, WIDTH), torch.nan), torch.full((3, WIDTH, BLOCK), 99, dtype=torch.int8)
    acc = torch.zeros(BLOCK, WIDTH)
    tile_kernel[(1,)](e, y, tokens, scales, data, acc, 1, BLOCK=BLOCK, D=WIDTH, CHUNK=CHUNK)
    there = y.double().where(tokens[:, None] != 0, 0.0)
    columns = there.abs().amax(0).clamp_min(1e-30)
    return {
        "error": (acc.double() - e.double() @ there) / columns,
        "one part": (e.to(torch.bfloat16).double() @ there - e.double() @ there) / columns,
        "others": bool(scales[[0, 2]].isnan().all() and (data[[0, 2]] == 99).all()),
        "bytes": data[1].double() * scales[1, :, None].double() * STEPS,
        "rows": there,
    }
