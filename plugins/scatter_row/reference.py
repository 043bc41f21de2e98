"""Reference implementation of writing rows into a cache buffer; it is the only PyTorch implementation."""

from __future__ import annotations

import torch
from torch import Tensor


def scatter_row_reference(cache: Tensor, row: Tensor, index: Tensor) -> Tensor:
    """Return a copy of the buffer ``(B, H, M, D)`` with ``row`` ``(B, H, N, D)`` written at ``index`` ``(B,)``."""
    places = index[:, None] + torch.arange(row.shape[2], device=index.device)  # (B, N)
    return cache.scatter(2, places[:, None, :, None].expand_as(row), row)
