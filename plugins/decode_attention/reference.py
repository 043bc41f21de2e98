"""Reference implementation of decode attention, in float64 for float64 inputs."""

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
    """Return softmax attention over (K, Y), new tokens included, and the N new rows of Y."""
    work = compute_dtype(q.dtype)
    y_new = precondition_reference(k_new.to(work), v_new.to(work), k, y, mask, eps, training_diagonal)  # (B, H, N, D)
    groups, n, past = q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
    keys = torch.cat([k.to(work), k_new.to(work)], dim=2).repeat_interleave(groups, dim=1)  # (B, H·G, P+N, D)
    values = torch.cat([y.to(work), y_new], dim=2).repeat_interleave(groups, dim=1)  # (B, H·G, P+N, D)
    scores = q.to(work) @ keys.mT / math.sqrt(q.shape[3])  # (B, H·G, N, P+N)
    row, column = torch.arange(past, past + n, device=q.device)[:, None], torch.arange(past + n, device=q.device)
    visible = row > column  # (N, P+N)
    if mask is not None:
        visible = visible & mask[:, None, None, :]
    visible = visible | (row == column)  # a token always sees itself, so that no row of the softmax is empty
    scores = scores.masked_fill(~visible, -torch.inf)
    return (scores.softmax(-1) @ values).to(q.dtype), y_new.to(q.dtype)
