"""Merging inverses as it stands on paper: the readable reference, float64-capable."""

from __future__ import annotations

import torch
from torch import Tensor


def invert_unit_lower(x: Tensor) -> Tensor:
    """Return ``(I + X)⁻¹`` for strictly lower triangular X.

    From T = I, for s = 1, 2, 4, … : T ← T − T (M_s ∘ X) T. After each step T holds the inverses of the 2s-blocks.

    Args:
        x: ``(…, b, b)``, b a power of two, zero on and above the diagonal.
    """
    size = x.shape[-1]
    inverse = torch.eye(size, dtype=x.dtype, device=x.device).expand_as(x)
    for mask in merge_masks(size).to(x.device):
        inverse = inverse - inverse @ (mask * x) @ inverse
    return inverse


def merge_masks(size: int) -> Tensor:
    """Return M_s for s = 1, 2, 4, … below ``size``, bool ``(log₂ size, size, size)``.

    M_s is true where row and column lie in the same 2s-block, the row in its lower and the column in its upper half.
    """
    index = torch.arange(size)
    halves = [1 << level for level in range(size.bit_length() - 1)]
    blocks = [index // half for half in halves]
    return torch.stack([(block[:, None] // 2 == block // 2) & (block[:, None] > block) for block in blocks])
