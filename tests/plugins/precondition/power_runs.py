"""What runs inside of an interpreter's process: the powers of two for float32."""

from __future__ import annotations

import torch
from torch import Tensor


def run_keys() -> dict[str, Tensor]:
    """Return inverse norms, what keys are multiplied by, and what is left; 0, infinity and NaN come last."""
    from tests.plugins.precondition.power_kernels import keys_kernel

    norms = torch.rand(256, generator=torch.Generator().manual_seed(1)) * torch.logspace(-18, 18, 256) + 1e-19
    norms[-3:] = torch.tensor([0.0, torch.inf, torch.nan])
    powers, factors = torch.empty(256), torch.empty(256)
    keys_kernel[(1,)](norms, powers, factors, BLOCK=256)
    return {"norms": norms, "powers": powers, "factors": factors}


def run_rows(values: list[float]) -> tuple[float, float, float]:
    """Return the largest finite value, its power of two, and the factor of sums, of a block that holds these values."""
    from tests.plugins.precondition.power_kernels import rows_kernel

    block, out = torch.zeros(16, 16), torch.empty(3)
    block.view(-1)[: 7 * len(values) : 7] = torch.tensor(values)
    rows_kernel[(1,)](block, out, M=16, D=16)
    return tuple(out.tolist())


def run_places(heads: int, past: int, rows: int) -> list[float]:
    """Return the memory of powers with each head's first places marked."""
    from tests.plugins.precondition.power_kernels import places_kernel

    memory = torch.zeros(heads * (-(-past // 64) + rows))
    places_kernel[(heads,)](memory, heads, past, rows)
    return memory.tolist()
