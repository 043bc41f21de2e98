"""What runs inside of an interpreter's process: the yardstick, on correlated keys."""

from __future__ import annotations

import math
from typing import Any

import torch

from tests.plugins.problems import keys, relative

TOKENS, WIDTH, TILE = 48, 20, 16


def run_yardstick(dtype: str) -> dict[str, Any]:
    """Attend to all tiles before one's own; return the error, and that of float32 rounded to the type."""
    from tools.gpu.yardstick import causal_attention_kernel

    kind = getattr(torch, dtype)
    q, k, v = (keys(0.9, TOKENS, WIDTH, seed=seed).to(kind) for seed in range(3))
    out = torch.full_like(q, torch.nan)
    scale = math.log2(math.e) / math.sqrt(WIDTH)
    grid = (TOKENS // TILE, 1)
    causal_attention_kernel[grid](
        q, k, v, out, TOKENS, WIDTH // 4, scale, BLOCK_M=TILE, BLOCK_N=TILE, BLOCK_D=32, WIDTH_UNIT=4
    )
    tile = torch.arange(TOKENS) // TILE
    seen = tile[:, None] > tile[None, :]
    rows = slice(TILE, None)  # the first tile sees nothing

    def attend(work: torch.dtype) -> torch.Tensor:
        scores = (q.to(work) @ k.to(work).mT / math.sqrt(WIDTH)).masked_fill(~seen, -torch.inf)
        return scores[rows].softmax(-1) @ v.to(work)

    exact, plain = attend(torch.float64), attend(torch.float32).to(kind)
    return {"error": relative(out[rows], exact), "baseline": relative(plain, exact)}
