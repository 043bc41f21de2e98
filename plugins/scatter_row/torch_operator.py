"""The PyTorch custom operator ``lucid::scatter_row``: write rows into a cache buffer, as one node in a traced graph."""

from __future__ import annotations

from torch import Tensor

from lucid_deploy.plugins.scatter_row.reference import scatter_row_reference
from lucid_deploy.plugins.shared.custom_operator import custom_operator
from lucid_deploy.plugins.table import SCATTER_ROW


def scatter_row(cache: Tensor, row: Tensor, index: Tensor) -> Tensor:
    """Write new rows into a copy of a buffer; exported as ``TensorScatter`` or, at opset 23, ``ScatterElements``.

    Args:
        cache: The buffer, ``(B, H, M, D)``.
        row: The new rows, ``(B, H, N, D)``; exports at opset 23 have N = 1.
        index: Int64 ``(B,)``: the position of the first new row, at most M − N.

    Raises:
        ValueError: The shapes do not match.
    """
    batch, heads, _, width = cache.shape
    if (row.shape[0], row.shape[1], row.shape[3]) != (batch, heads, width) or index.shape != (batch,):
        raise ValueError(
            f"cache {tuple(cache.shape)}, row {tuple(row.shape)} and index {tuple(index.shape)} do not fit together"
        )
    return scatter_row_operator(cache, row, index)


@custom_operator(SCATTER_ROW.torch_name, lambda cache, *_: cache.new_empty(cache.shape))
def scatter_row_operator(cache: Tensor, row: Tensor, index: Tensor) -> Tensor:
    """Compute :func:`scatter_row` as one node of a traced graph."""
    return scatter_row_reference(cache, row, index)
