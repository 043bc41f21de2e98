"""Decode attention as it stands on paper: the readable reference, float64-capable."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lucid_deploy.plugins.precondition.reference import precondition_reference
from lucid_deploy.plugins.shared.keys import compute_dtype


def decode_attention_reference(
    q: Tensor,
    k_new: Tensor,
    v_new: Tensor,
    k: Tensor,
    y: Tensor,
    mask: Tensor | None,
    eps: float,
    training_diagonal: bool = False,
) -> tuple[Tensor, Tensor]:
    """Precondition the one new value, then ordinary attention over (K, Y): the formulas as they stand on paper."""
    work = compute_dtype(q.dtype)
    y_new = precondition_reference(k_new.to(work), v_new.to(work), k, y, mask, eps, training_diagonal)  # (B, H, 1, D)
    groups = q.shape[1] // k.shape[1]
    keys = torch.cat([k.to(work), k_new.to(work)], dim=2).repeat_interleave(groups, dim=1)  # (B, H·G, P+1, D)
    values = torch.cat([y.to(work), y_new], dim=2).repeat_interleave(groups, dim=1)  # (B, H·G, P+1, D)
    scores = q.to(work) @ keys.mT / math.sqrt(q.shape[3])  # (B, H·G, 1, P+1)
    if mask is not None:
        visible = mask.clone()
        visible[:, -1] = True  # a token always sees itself, so that no row of the softmax is empty
        scores = scores.masked_fill(~visible[:, None, None, :], -torch.inf)
    return (scores.softmax(-1) @ values).to(q.dtype), y_new.to(q.dtype)
