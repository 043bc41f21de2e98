"""Experts' products as the PyTorch custom operator ``lucid::expert_matmul``, which stays one node in a traced graph."""

from __future__ import annotations

import torch
from torch import Tensor

from lucid_deploy.plugins.expert_matmul.reference import expert_matmul_reference
from lucid_deploy.plugins.shared.custom_operator import custom_operator
from lucid_deploy.plugins.table import EXPERT_MATMUL


def expert_matmul(x: Tensor, expert: Tensor, weight: Tensor) -> Tensor:
    """Multiply each row by the matrix of its expert.

    Args:
        x: Rows, ``(R, K)``.
        expert: Int64 ``(R,)``: the expert of each row, 0 to E − 1.
        weight: The experts' matrices, ``(E, N, K)``.

    Returns:
        ``(R, N)`` in the dtype of ``x``. Differentiable.

    Raises:
        ValueError: The shapes do not match.
    """
    if x.dim() != 2 or weight.dim() != 3 or expert.shape != x.shape[:1] or weight.shape[2] != x.shape[1]:
        shapes = f"x {tuple(x.shape)}, expert {tuple(expert.shape)} and weight {tuple(weight.shape)}"
        raise ValueError(f"{shapes} do not fit together")
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return expert_matmul_reference(x, expert, weight)
    return expert_matmul_operator(x, expert, weight)


@custom_operator(EXPERT_MATMUL.torch_name, lambda x, expert, w: x.new_empty(x.shape[0], w.shape[1]))
def expert_matmul_operator(x: Tensor, expert: Tensor, w: Tensor) -> Tensor:
    """Compute :func:`expert_matmul` as one node of a traced graph."""
    return expert_matmul_reference(x, expert, w)
