"""Reference implementation of the delta rule: token by token, in float64 if the values are float64."""

from __future__ import annotations

import torch
from torch import Tensor

from lucid_deploy.plugins.shared.keys import compute_dtype


def delta_rule_reference(
    query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """For each token, compute S ← α S + β k (v − α Sᵀk)ᵀ and o = scale · Sᵀq; return all o and the last S."""
    work = compute_dtype(value.dtype)
    q, k, v, g, b, s = (each.to(work) for each in (query, key, value, log_decay, beta, state))
    outputs = [v[:, :, :0]]  # the result if there are no new tokens
    for t in range(k.shape[2]):
        k_t = k[:, :, t, :, None]  # (B, H, D, 1)
        s = s * g[:, :, t, None, None].exp()  # (B, H, D, E)
        missing = v[:, :, t, None] - k_t.mT @ s  # (B, H, 1, E): error of the value predicted by S
        s = s + k_t @ (b[:, :, t, None, None] * missing)
        outputs.append(scale * q[:, :, t, None] @ s)  # (B, H, 1, E)
    return torch.cat(outputs, dim=2).to(value.dtype), s.to(state.dtype)
