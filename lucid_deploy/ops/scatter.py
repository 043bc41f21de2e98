"""Write one new row per batch row into a cache buffer of fixed size."""

from __future__ import annotations

import torch
from torch import Tensor


def scatter_row(cache: Tensor, row: Tensor, index: Tensor) -> Tensor:
    """Return the buffer with one row replaced; ONNX's ``TensorScatter``, which runtimes do in place.

    Args:
        cache: ``(B, H, M, D)``, M rows of room.
        row: ``(B, H, 1, D)``.
        index: Int64 ``(B,)``: where the row goes, below M.

    Raises:
        ValueError: Shapes that do not fit.
    """
    batch, heads, _, width = cache.shape
    if row.shape != (batch, heads, 1, width) or index.shape != (batch,):
        raise ValueError(
            f"cache {tuple(cache.shape)}, row {tuple(row.shape)} and index {tuple(index.shape)} do not fit together"
        )
    return torch.ops.lucid.scatter_row(cache, row, index)


@torch.library.custom_op("lucid::scatter_row", mutates_args=())
def _scatter_row_op(cache: Tensor, row: Tensor, index: Tensor) -> Tensor:
    return cache.scatter(2, index[:, None, None, None].expand_as(row), row)


@_scatter_row_op.register_fake
def _scatter_row_shape(cache: Tensor, row: Tensor, index: Tensor) -> Tensor:
    return cache.new_empty(cache.shape)
