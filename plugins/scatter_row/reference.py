"""Writing rows into a cache buffer: the reference, which is all that PyTorch needs."""

from __future__ import annotations

from torch import Tensor


def scatter_row_reference(cache: Tensor, row: Tensor, index: Tensor) -> Tensor:
    """Copy the buffer ``(B, H, M, D)`` with ``row`` ``(B, H, 1, D)`` at ``index`` ``(B,)``."""
    return cache.scatter(2, index[:, None, None, None].expand_as(row), row)
