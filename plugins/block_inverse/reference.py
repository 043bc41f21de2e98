"""Reference: invert unit lower-triangular matrices by merging inverses of diagonal blocks, in any float type."""

from __future__ import annotations

import torch
from torch import Tensor


def invert_unit_lower(x: Tensor) -> Tensor:
    """Return ``(I + X)⁻¹`` for strictly lower triangular X, with the masks M_s of :func:`merge_masks`.

    From T = I, for s = 1, 2, 4, …: T ← T − T (M_s ∘ X) T. Each step leaves the inverses of 2s-wide diagonal blocks.

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

    M_s is true where row and column are in the same 2s-block, the row in its lower half, the column in its upper half.
    """
    halves = 2 ** torch.arange(size.bit_length() - 1)  # (log₂ size,)
    block = torch.arange(size) // halves[:, None]  # (log₂ size, size): the s-block of each index
    row, column = block[:, :, None], block[:, None, :]
    return (row // 2 == column // 2) & (row > column)
