"""Decode attention in PyTorch, one pass over the cache.

The new token's row of ``L Y = V`` is only a subtraction, ``y = v − Σ_j exp(k̂·k̂_j/√d − √d) y_j``. Its weights come
from the same keys, and its sum runs over the same Y, as the query heads' softmax: the new key rides along as one more
query row, and K and Y are read once.
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
    """Score G query rows and the new key in one product, then average and subtract in another."""
    work = compute_dtype(q.dtype)
    batch, heads, past, width = k.shape
    groups, root_d = q.shape[1] // heads, math.sqrt(width)
    keys, values, new_value = k.to(work), y.to(work), v_new.to(work)
    q_rows = q.to(work).reshape(batch, heads, groups, width) / root_d  # (B, H, G, D)
    new_row = normalize_keys(k_new.to(work), eps) / root_d  # (B, H, 1, D)
    scores = torch.cat([q_rows, new_row], dim=2) @ keys.mT  # (B, H, G+1, P): the one pass over K
    key_norm = torch.rsqrt(keys.square().mean(-1) + eps)[:, :, None, :]  # (B, H, 1, P)
    s_query, s_new = scores[:, :, :groups], scores[:, :, groups:]
    shift: float | Tensor = root_d
    if training_diagonal:  # the rows of E and V, over L_ii
        row_log = log_row_factors(k_new.to(work), eps)  # (B, H, 1, 1)
        row_log = row_log if mask is None else row_log * mask[:, None, None, past:]
        shift, new_value = shift - row_log, new_value * row_log.exp()
    e = torch.exp(s_new * key_norm - shift)  # (B, H, 1, P)
    if mask is not None:
        s_query = s_query.masked_fill(~mask[:, None, None, :past], -torch.inf)
        e = e * (mask[:, None, None, :past] & mask[:, None, None, past:])
    s_self = q_rows @ k_new.to(work).mT  # (B, H, G, 1)
    peak = torch.cat([s_query, s_self], dim=-1).amax(-1, keepdim=True)  # (B, H, G, 1)
    p, p_self = torch.exp(s_query - peak), torch.exp(s_self - peak)
    sums = torch.cat([p, e], dim=2) @ values  # (B, H, G+1, D): the one pass over Y
    y_new = new_value - sums[:, :, groups:]  # (B, H, 1, D)
    out = (sums[:, :, :groups] + p_self * y_new) / (p.sum(-1, keepdim=True) + p_self)  # (B, H, G, D)
    return out.reshape(q.shape).to(q.dtype), y_new.to(q.dtype)
