"""Reference implementation of the preconditioner: dense, in float64 for float64 inputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lucid_deploy.plugins.shared.keys import compute_dtype, normalize_keys


def precondition_reference(
    k: Tensor,
    v: Tensor,
    k_past: Tensor,
    y_past: Tensor,
    mask: Tensor | None,
    eps: float,
    training_diagonal: bool = False,
) -> Tensor:
    """Build L and solve ``L Y = V`` for all new rows at once."""
    work = compute_dtype(v.dtype)
    n, past, root_d = k.shape[2], k_past.shape[2], math.sqrt(k.shape[3])
    k_hat = normalize_keys(torch.cat([k_past, k], dim=2).to(work), eps)  # (B, H, P+N, D)
    e = torch.exp(k_hat[:, :, past:] @ k_hat.mT / root_d - root_d)  # (B, H, N, P+N)
    if mask is not None:
        e = e * (mask[:, None, past:, None] & mask[:, None, None, :])
    rhs = v.to(work) - e[..., :past] @ y_past.to(work)  # (B, H, N, D)
    diagonal = torch.ones(n, dtype=work, device=k.device)
    if training_diagonal:
        diagonal = e[..., past:].diagonal(dim1=-2, dim2=-1)  # (B, H, N)
        if mask is not None:
            diagonal = diagonal.where(mask[:, None, past:], 1)
    lower = e[..., past:].tril(-1) + diagonal.diag_embed()  # (B, H, N, N)
    return torch.linalg.solve_triangular(lower, rhs, upper=False).to(v.dtype)
