"""Decode attention in PyTorch, with one product with K and one with Y.

A new token's row of ``L Y = V`` is solved by a subtraction, ``y = v − Σ_j exp(k̂·k̂_j/√d − √d) y_j``. It needs the same
products with K and Y as the query heads' softmax. So the new keys are added as extra query rows of these products. For
N new tokens an N × N unit lower triangular system remains to be solved.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lucid_deploy.plugins.shared.keys import compute_dtype, log_row_factors, normalize_keys


def decode_attention_fused(
    q: Tensor,
    k_new: Tensor,
    v_new: Tensor,
    k: Tensor,
    y: Tensor,
    mask: Tensor | None,
    eps: float,
    training_diagonal: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return O and Y of the new tokens: one product gives scores of queries and new keys, another their sums over Y."""
    work = compute_dtype(q.dtype)
    batch, heads, past, width = k.shape
    groups, n, root_d = q.shape[1] // heads, q.shape[2], math.sqrt(width)
    keys, values, new_value = k.to(work), y.to(work), v_new.to(work)
    q_rows = q.to(work).reshape(batch, heads, groups * n, width) / root_d  # (B, H, G·N, D)
    new_rows = normalize_keys(k_new.to(work), eps) / root_d  # (B, H, N, D)
    scores = torch.cat([q_rows, new_rows], dim=2) @ keys.mT  # (B, H, (G+1)·N, P): the one product with K
    key_norm = torch.rsqrt(keys.square().mean(-1) + eps)[:, :, None, :]  # (B, H, 1, P)
    s_query, s_new = scores[:, :, : groups * n], scores[:, :, groups * n :]
    shift: float | Tensor = root_d
    if training_diagonal:  # divide each new row of L and of V by L_ii
        row_log = log_row_factors(k_new.to(work), eps)  # (B, H, N, 1)
        row_log = row_log if mask is None else row_log * mask[:, None, past:, None]
        shift, new_value = shift - row_log, new_value * row_log.exp()
    e = torch.exp(s_new * key_norm - shift)  # (B, H, N, P)
    within = torch.exp(new_rows @ normalize_keys(k_new.to(work), eps).mT - shift).tril(-1)  # (B, H, N, N)
    earlier = torch.ones(n, n, dtype=torch.bool, device=q.device).tril(-1)
    own = torch.eye(n, dtype=torch.bool, device=q.device)
    if mask is not None:
        s_query = s_query.masked_fill(~mask[:, None, None, :past], -torch.inf)
        e = e * (mask[:, None, None, :past] & mask[:, None, past:, None])
        within = within * (mask[:, None, None, past:] & mask[:, None, past:, None])
        earlier = earlier & mask[:, None, None, None, past:]
    s_self = (q_rows @ k_new.to(work).mT).view(batch, heads, groups, n, n)
    s_self = s_self.masked_fill(~(earlier | own), -torch.inf).reshape(batch, heads, groups * n, n)
    peak = torch.cat([s_query, s_self], dim=-1).amax(-1, keepdim=True)  # (B, H, G·N, 1)
    p, p_self = torch.exp(s_query - peak), torch.exp(s_self - peak)
    sums = torch.cat([p, e], dim=2) @ values  # (B, H, (G+1)·N, D): the one product with Y
    y_new = torch.linalg.solve_triangular(
        within, new_value - sums[:, :, groups * n :], upper=False, unitriangular=True
    )  # (B, H, N, D)
    total = p.sum(-1, keepdim=True) + p_self.sum(-1, keepdim=True)
    out = (sums[:, :, : groups * n] + p_self @ y_new) / total  # (B, H, G·N, D)
    return out.reshape(q.shape).to(q.dtype), y_new.to(q.dtype)
