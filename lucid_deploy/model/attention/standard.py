"""Standard softmax attention, the baseline: O = softmax(Q Kᵀ/√d, causal) · V. The cache holds keys and values."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lucid_deploy.model.attention.grouped_query import GroupedQueryAttention
from lucid_deploy.model.mixer import LayerCache, Step
from lucid_deploy.plugins.causal_attention.reference import visible_tokens
from lucid_deploy.plugins.causal_attention.torch_operator import causal_attention
from lucid_deploy.plugins.scatter_row.torch_operator import scatter_row
from lucid_deploy.plugins.shared.keys import compute_dtype


class StandardAttention(GroupedQueryAttention):
    """Grouped-query softmax attention."""

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, k_past: Tensor, v_past: Tensor, step: Step
    ) -> tuple[Tensor, Tensor, Tensor]:
        values = torch.cat([v_past, v], dim=2)  # (B, KV, T, D)
        if self.config.softcap is not None or self.sinks is not None:
            seen = visible_tokens(q.shape[2], keys.shape[2], step.mask, q.device)
            return masked_attention(q, keys, values, seen, self.config.softcap, self.sinks), v, values
        attend = attend_from_last if step.decode and q.shape[2] == 1 else causal_attention
        return attend(q, keys, values, step.mask), v, values

    def attend_static(
        self, q: Tensor, k: Tensor, v: Tensor, past: LayerCache, mask: Tensor | None, cache_length: Tensor
    ) -> tuple[Tensor, LayerCache]:
        assert mask is not None
        keys, values = self.codec.decode(past, q.dtype)  # (B, KV, M, D)
        stored = zip(past, self.codec.encode(k, v), strict=True)
        present = tuple(scatter_row(buffer, row, cache_length) for buffer, row in stored)
        own = torch.arange(keys.shape[2], device=q.device) == cache_length[:, None]  # (B, M)
        if self.codec.exact:
            keys, values = present
        else:  # attend to the new row before it is rounded
            keys, values = scatter_row(keys, k, cache_length), scatter_row(values, v, cache_length)
        seen = mask[:, :-1].logical_or(own)
        return attend_from_last(q, keys, values, seen, self.config.softcap, self.sinks), present


def attend_from_last(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attend with q ``(B, H, 1, D)`` to k, v ``(B, KV, T, D)`` where ``visible`` ``(B, T)`` is True; None: to all."""
    return masked_attention(q, k, v, None if visible is None else visible[:, None, None, :], softcap, sinks)


def masked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attend with q ``(B, H, N, D)`` to k, v ``(B, KV, T, D)`` where mask ``([B, 1,] N, T)`` is True; None: to all."""
    work = compute_dtype(q.dtype)  # float32 at least
    if softcap is not None or sinks is not None:
        assert mask is not None  # callers with a soft cap or sinks always give one
        return _scored_attention(q.to(work), k.to(work), v.to(work), mask, softcap, sinks).to(q.dtype)
    grouped = q.shape[1] != k.shape[1]  # PyTorch's exporter rejects enable_gqa where heads are not grouped
    attended = F.scaled_dot_product_attention(q.to(work), k.to(work), v.to(work), attn_mask=mask, enable_gqa=grouped)
    return attended.to(q.dtype)


def _scored_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """Attend with a soft cap, softcap · tanh(score / softcap), or sinks, which PyTorch's fused attention lacks."""
    batch, heads, n, width = q.shape
    grouped = q.reshape(batch, k.shape[1], -1, n, width)  # (B, KV, G, N, D)
    scores = grouped @ k[:, :, None].transpose(-1, -2) / math.sqrt(width)  # (B, KV, G, N, T)
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    scores = scores.masked_fill(mask.logical_not().unsqueeze(-3), torch.finfo(q.dtype).min)
    if sinks is not None:  # one more column of the softmax, without a value
        column = sinks.to(q.dtype).reshape(1, k.shape[1], -1, 1, 1).expand(batch, k.shape[1], -1, n, 1)
        scores = torch.cat([scores, column], dim=-1)
    weights = scores.softmax(-1)[..., : k.shape[2]]
    return (weights @ v[:, :, None]).reshape(batch, heads, n, width)
