"""Reference implementation of the products of a mixture of experts, one expert at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def expert_matmul_reference(x: Tensor, expert: Tensor, weight: Tensor) -> Tensor:
    """Return O, ``(R, N)``, with O[i] = W[expert[i]] · X[i]; only the matrices of experts that have rows are read."""
    output = x.new_zeros(x.shape[0], weight.shape[1])  # (R, N)
    for chosen in expert.unique().tolist():
        rows = (expert == chosen).nonzero()[:, 0]
        output[rows] = x[rows] @ weight[chosen].mT
    return output


def dequantized_experts(packed: Tensor, scales: Tensor, depth: int) -> Tensor:
    """Dequantize bytes ``(E, N, B, bytes)`` to matrices ``(E, N, depth)`` in the dtype of the scales ``(E, N, B)``."""
    bits = 8 * packed.shape[2] * packed.shape[3] // depth
    numbers = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2) if bits == 4 else packed  # (E, N, B, block)
    return ((numbers.to(scales.dtype) - (1 << (bits - 1))) * scales[..., None]).flatten(-2)
