"""Ablations: the same weights in a model without one of its parts.

An ablated model is another configuration, with layers of other kinds: standard attention, or LUCID attention without
the normalization of keys (dense formulas, growing caches only):

    O = softmax(Q Kᵀ/√d, causal) · Y,      L Y = V,      L_ij = exp((k_i·k_j − k_i·k_i)/√d),  j ≤ i

That is tril(exp(K Kᵀ/√d)) with each row divided by its diagonal entry, so that a single token keeps its value. With
keys of mean square 1 it is LUCID's system. Keys of unequal length have entries above 1: ‖L⁻¹‖ has no bound.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from lucid_deploy.errors import LucidError
from lucid_deploy.model.attention.grouped_query import GroupedQueryAttention
from lucid_deploy.model.config import LUCID, STANDARD, LucidConfig
from lucid_deploy.model.description import LayerDescription
from lucid_deploy.model.layers import LayerKind, register_layer_kind
from lucid_deploy.model.layers.attention import projection_names, rows_layout
from lucid_deploy.model.mixer import LayerCache, Mixer, Step
from lucid_deploy.plugins.causal_attention.torch_operator import causal_attention

RAW_KEYS = "lucid_raw_keys"
ABLATIONS = {"preconditioner": STANDARD, "keys": RAW_KEYS}


class RawKeys(LayerKind):
    """LUCID attention whose solve uses keys without normalization."""

    name = RAW_KEYS

    def describe(self, config: LucidConfig, index: int, cache_dtype: str) -> LayerDescription:
        return LayerDescription(  # solves stays False: its system is not LUCID's
            kind=self.name,
            cache=rows_layout(config, index, cache_dtype),
            weights=projection_names(config, index, self.attribute),
            eviction="what is cached for the later tokens was computed from their keys and values",
        )

    def words(self, config: LucidConfig) -> str:
        return "LUCID {} without normalized keys"

    def mixer(self, config: LucidConfig, index: int, implementation: str) -> Mixer:
        return RawKeyAttention(config.of_layer(index), implementation)


def ablated(config: LucidConfig, part: str) -> LucidConfig:
    """Return a model's configuration without one part of its LUCID layers; other layers stay as they are.

    Args:
        config: The model.
        part: ``preconditioner``: Y = V, which is standard attention with the same weights. ``keys``: the solve takes
            keys that are not normalized.

    Raises:
        LucidError: Another part, or a model without LUCID layers.
    """
    if part not in ABLATIONS:
        raise LucidError(f"There is no ablation of {part!r}; there are {', '.join(ABLATIONS)}.")
    if LUCID not in config.kinds:
        raise LucidError(f"The model has no LUCID layers, so it can't be run without their {part}.")
    register_layer_kind(RawKeys())
    return replace(config, layer_kinds=tuple(ABLATIONS[part] if kind == LUCID else kind for kind in config.kinds))


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
