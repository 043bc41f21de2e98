"""What runs inside of an interpreter's process: device functions that kernels share, on inputs that are hard."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.plugins.problems import keys, relative

ROWS, WIDTH, BLOCK, PADDED = 11, 20, 16, 32


def run_norms(dtype: str, epsilon: float) -> dict[str, Any]:
    """Load rows with NaN behind them; return what came out of each function, and what should."""
    from tests.plugins.shared.shared_kernels import norms_kernel

    memory = torch.full((BLOCK + 1, WIDTH), torch.nan, dtype=getattr(torch, dtype))
    memory[:ROWS] = keys(0.9, ROWS, WIDTH).to(memory.dtype)
    mask = torch.ones(BLOCK, dtype=torch.int8)
    mask[[2, 5]] = 0
    rows, tokens = torch.full((BLOCK, PADDED), torch.nan, dtype=memory.dtype), torch.full((BLOCK,), 9, dtype=torch.int8)
    norms = torch.full((BLOCK,), torch.nan)
    norms_kernel[(1,)](memory, mask, rows, tokens, norms, ROWS, WIDTH, epsilon, BLOCK=BLOCK, D=PADDED)
    exact = torch.rsqrt(memory[:ROWS].double().square().mean(-1) + epsilon)
    return {
        "rows": torch.equal(rows[:ROWS, :WIDTH], memory[:ROWS]),
        "beyond": bool((rows[ROWS:] == 0).all() and (rows[:, WIDTH:] == 0).all() and (norms[ROWS:] == 0).all()),
        "tokens": tokens.tolist(),
        "error": relative(norms[:ROWS], exact),
    }


def run_product(dtype: str) -> dict[str, float]:
    """Multiply weights of at most 1, most of them near 1, with values that cancel; return errors against float64."""
    from tests.plugins.shared.shared_kernels import product_kernel

    generator = torch.Generator().manual_seed(0)
    e = torch.exp(-0.3 * torch.rand(BLOCK, BLOCK, generator=generator))
    y = torch.randn(BLOCK, BLOCK, generator=generator).to(getattr(torch, dtype))
    acc, out = torch.randn(BLOCK, BLOCK, generator=generator), torch.full((BLOCK, BLOCK), torch.nan)
    product_kernel[(1,)](e, y, acc, out, BLOCK=BLOCK)
    exact = acc.double() + e.double() @ y.double()
    return {
        "error": relative(out, exact),
        "one part": relative(acc.double() + e.to(y.dtype).double() @ y.double(), exact),
        "float32": relative(acc + e @ y.float(), exact),
    }


def run_columns(first: int, count: int) -> bool:
    """Load some columns of rows with NaN behind them; return whether they came out, and zeros beyond."""
    from tests.plugins.shared.shared_kernels import columns_kernel

    memory = torch.full((BLOCK + 1, WIDTH), torch.nan)
    memory[:ROWS] = keys(0.9, ROWS, WIDTH).float()
    found = torch.full((BLOCK, count), torch.nan)
    columns_kernel[(1,)](memory, found, first, ROWS, WIDTH, BLOCK=BLOCK, D=count)
    wanted = torch.zeros(BLOCK, count)
    there = memory[:ROWS, first : first + count]
    wanted[:ROWS, : there.shape[1]] = there
    return torch.equal(found, wanted)


def run_parts() -> dict[str, torch.Tensor]:
    """Split numbers of all sizes into tf32 parts; return them, and (high, low, both as factors) of all ways."""
    from tests.plugins.faithful_interpreter import to_tf32
    from tests.plugins.shared.shared_kernels import parts_kernel

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1024, generator=generator) * 2.0 ** torch.randint(-60, 60, (1024,), generator=generator)
    x[:4] = torch.tensor([1.0, 0.0, -(2.0 - 2.0**-23), 1.0 + 2.0**-11])  # one that rounds up to a power, and a tie
    parts = {name: torch.full((2, 1024), torch.nan) for name in ("cut", "nearest", "rounded", "split")}
    parts_kernel[(1,)](x, *parts.values(), BLOCK=1024)
    factors = {
        name: torch.cat([part, torch.from_numpy(to_tf32(part.numpy()))]).double() for name, part in parts.items()
    }
    return {"x": x.double(), **factors}


def run_parts_of_no_numbers() -> torch.Tensor:
    """Split infinities, and NaN as GPUs write it, whose bits round to −0; return sums of two ways' parts."""
    from tests.plugins.shared.shared_kernels import parts_kernel

    x = torch.tensor([0x7F800000, -0x800000, 0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)
    parts = [torch.full((2, 4), torch.nan) for _ in range(4)]
    parts_kernel[(1,)](x, *parts, BLOCK=4)
    return torch.cat([parts[1].sum(0), parts[3].sum(0)])


def run_float16_parts() -> dict[str, torch.Tensor]:
    """Split numbers of all sizes up to 2¹⁵ into float16 parts."""
    from tests.plugins.shared.shared_kernels import float16_parts_kernel

    generator = torch.Generator().manual_seed(0)
    x = (1 + torch.rand(4096, generator=generator)) * 2.0 ** torch.randint(-30, 15, (4096,), generator=generator)
    x *= torch.randn(4096, generator=generator).sign()
    x[:3] = torch.tensor([0.0, 1.0 + 2.0**-11, -(2.0**15) * (1 - 2.0**-24)])
    parts = torch.full((2, 4096), torch.nan, dtype=torch.float16)
    float16_parts_kernel[(1,)](x, parts, BLOCK=4096)
    return {"x": x.double(), "high": parts[0].double(), "low": parts[1].double()}


def run_powers() -> dict[str, Tensor]:
    """Return largest numbers of rows, their powers and the inverses; 0, a tiny one, infinity and NaN come last."""
    from tests.plugins.shared.shared_kernels import powers_kernel

    largest = (1 + torch.rand(256, generator=torch.Generator().manual_seed(0))) * torch.logspace(-90, 127, 256, 2.0)
    largest[-4:] = torch.tensor([0.0, 1e-38, torch.inf, torch.nan])
    powers, inverses = torch.full((256,), torch.nan), torch.full((256,), torch.nan)
    powers_kernel[(1,)](largest, powers, inverses, BLOCK=256)
    return {"largest": largest.double(), "powers": powers.double(), "inverses": inverses.double()}
