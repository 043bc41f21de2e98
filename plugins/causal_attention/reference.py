"""Reference implementation of causal attention: dense, in float64 for float64 inputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lucid_deploy.plugins.shared.keys import compute_dtype


def causal_attention_reference(q: Tensor, k: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
    """Compute O = softmax(Q Kᵀ/√d) Y with all scores at once, masked by a causal mask and by ``mask``."""
    work, groups = compute_dtype(q.dtype), q.shape[1] // k.shape[1]
    keys, values = (x.to(work).repeat_interleave(groups, dim=1) for x in (k, y))  # (B, H·G, T, D)
    scores = q.to(work) @ keys.transpose(-1, -2) / math.sqrt(q.shape[3])  # (B, H·G, N, T)
    scores = scores.masked_fill(~visible_tokens(q.shape[2], k.shape[2], mask, q.device), -torch.inf)
    return (scores.softmax(-1) @ values).to(q.dtype)


def visible_tokens(new: int, total: int, mask: Tensor | None, device: torch.device) -> Tensor:
    """Return which of ``total`` tokens each of the last ``new`` sees: bool ``(N, T)``; with a mask ``(B, 1, N, T)``.

    A token sees all earlier tokens that are not padding, and always itself, so that no row of the softmax is empty.
    """
    position = torch.arange(total, device=device)
    age = position[total - new :, None] - position  # (N, T)
    if mask is None:
        return age >= 0
    seen = torch.logical_and(age >= 0, mask[:, None, None, :])  # torch.onnx cannot translate `&` and would trace again
    return torch.logical_or(seen, age == 0)  # (B, 1, N, T)
