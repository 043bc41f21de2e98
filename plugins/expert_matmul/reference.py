"""Reference implementation of the product of each row with the matrix of its expert, one expert at a time."""

from __future__ import annotations

from torch import Tensor


def expert_matmul_reference(x: Tensor, expert: Tensor, weight: Tensor) -> Tensor:
    """O[i] = W[expert[i]] · X[i]; only experts that a row chose are read."""
    output = x.new_zeros(x.shape[0], weight.shape[1])  # (R, N)
    for chosen in expert.unique().tolist():
        rows = (expert == chosen).nonzero()[:, 0]
        output[rows] = x[rows] @ weight[chosen].mT
    return output
