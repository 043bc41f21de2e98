"""The tokens of a call in front of its padding, so that neighbours in the text are neighbours in the tensor.

A short convolution reads the tokens before a token, and padding is none of them, wherever it stands: a layer puts the
tokens of each row in front, computes, and puts the result back where the tokens stood.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenOrder:
    """Where the columns of a call go. B batch, N columns.

    Attributes:
        place: Where each column goes, int64 ``(B, N)``: tokens in front in their order, padding behind them.
        source: Which column comes to each place, int64 ``(B, N)``: the inverse.
        count: How many tokens a row has, int64 ``(B, 1)``.
        valid: Which places hold a token, bool ``(B, N)``.
    """

    place: Tensor
    source: Tensor
    count: Tensor
    valid: Tensor


def last_columns(mask: Tensor, count: int) -> Tensor:
    """Return the last columns of a mask ``(B, T)``, ``(B, count)``.

    They are picked by number: of a slice from T − N to T, TensorRT expects up to T columns.
    """
    return mask.index_select(1, mask.shape[1] - count + torch.arange(count, device=mask.device))


def token_order(new: Tensor) -> TokenOrder:
    """Return the order of new columns, bool ``(B, N)``, False at padding."""
    n = new.shape[1]
    number = new.to(torch.int64).cumsum(1)  # (B, N): tokens up to here
    count = number[:, -1:]  # (B, 1)
    column = torch.arange(n, device=new.device)
    place = torch.where(new, number - 1, count + column - number)  # (B, N)
    source = torch.zeros_like(place).scatter(1, place, column.expand(place.shape))
    return TokenOrder(place, source, count, column < count)


def take(rows: Tensor, index: Tensor) -> Tensor:
    """Pick rows of each batch row: ``(B, R, C)`` and int64 ``(B, M)`` to ``(B, M, C)``."""
    batch, held, width = rows.shape
    # Rows of one matrix, by number: ONNX's Gather. Of its GatherElements, runtimes have limits.
    first = torch.arange(batch, device=rows.device)[:, None] * held
    matrix, places = rows.reshape(batch * held, width), (first + index).reshape(batch * index.shape[1])
    return matrix.index_select(0, places).reshape(batch, index.shape[1], width)
