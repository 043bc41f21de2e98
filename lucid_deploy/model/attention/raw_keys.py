"""LUCID attention without the normalization of keys, for ablations: dense formulas, growing caches only.

    O = softmax(Q Kᵀ/√d, causal) · Y,      L Y = V,      L_ij = exp((k_i·k_j − k_i·k_i)/√d),  j ≤ i

That is tril(exp(K Kᵀ/√d)) with each row divided by its diagonal entry, so that a single token keeps its value. With
keys of mean square 1 it is LUCID's system. Keys of unequal length have entries above 1: ‖L⁻¹‖ has no bound.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lucid_deploy.model.attention.grouped_query import GroupedQueryAttention
from lucid_deploy.model.mixer import LayerCache, Step
from lucid_deploy.plugins.causal_attention.torch_operator import causal_attention


class RawKeyAttention(GroupedQueryAttention):
    """Grouped-query attention whose values are preconditioned by keys without normalization."""

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, k_past: Tensor, v_past: Tensor, step: Step
    ) -> tuple[Tensor, Tensor, Tensor]:
        y = solve_with_raw_keys(k, v, k_past, v_past, step.mask)
        values = torch.cat([v_past, y], dim=2)  # (B, KV, T, D)
        return causal_attention(q, keys, values, step.mask), y, values

    def attend_static(
        self, q: Tensor, k: Tensor, v: Tensor, past: LayerCache, mask: Tensor | None, cache_length: Tensor
    ) -> tuple[Tensor, LayerCache]:
        raise NotImplementedError("ablated layers have growing caches only")


def solve_with_raw_keys(k: Tensor, v: Tensor, k_past: Tensor, y_past: Tensor, mask: Tensor | None) -> Tensor:
    """Return Y of new tokens, computed in float64.

    Args:
        k: New keys ``(B, KV, N, D)``.
        v: New values ``(B, KV, N, D)``.
        k_past: Cached keys ``(B, KV, P, D)``.
        y_past: Cached Y ``(B, KV, P, D)``.
        mask: Bool ``(B, P + N)``: which are tokens; None: all.

    Returns:
        Y ``(B, KV, N, D)`` in the values' type.
    """
    past, root_d = k_past.shape[2], math.sqrt(k.shape[3])
    new, every = k.double(), torch.cat([k_past, k], dim=2).double()  # (B, KV, N, D), (B, KV, T, D)
    own = new.square().sum(-1, keepdim=True)  # (B, KV, N, 1)
    e = torch.exp((new @ every.mT - own) / root_d)  # (B, KV, N, T)
    if mask is not None:
        e = e * (mask[:, None, past:, None] & mask[:, None, None, :])
    rhs = v.double() - e[..., :past] @ y_past.double()  # (B, KV, N, D)
    lower = e[..., past:].tril(-1)  # (B, KV, N, N); its diagonal is taken as 1
    return torch.linalg.solve_triangular(lower, rhs, upper=False, unitriangular=True).to(v.dtype)
