"""LUCID attention: softmax attention whose values are preconditioned by the keys (arXiv 2602.10410).

    O = softmax(Q Kᵀ/√d, causal) · Y,      L Y = V,      L = tril(exp(K̂ K̂ᵀ/√d − √d))

The cache holds the raw keys K and the preconditioned values Y; a row of Y never changes once it is written.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.description import LayerDescription
from lucid_deploy.model.layers import LayerKind
from lucid_deploy.model.layers.grouped_query import GroupedQueryAttention, projection_names, rows_layout
from lucid_deploy.model.mixer import LayerCache, Mixer, Step
from lucid_deploy.plugins.causal_attention import causal_attention
from lucid_deploy.plugins.decode_attention import decode_attention
from lucid_deploy.plugins.precondition import precondition
from lucid_deploy.plugins.scatter_row import scatter_row
from lucid_deploy.plugins.table import CAUSAL_ATTENTION, DECODE_ATTENTION, PRECONDITION


class LucidAttention(GroupedQueryAttention):
    """Grouped-query attention whose values are preconditioned once per key/value head."""

    def __init__(self, config: LucidConfig, implementation: str) -> None:
        super().__init__(config, implementation)
        self.decode_implementation = "reference" if implementation == "reference" else "fused"

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, k_past: Tensor, v_past: Tensor, step: Step
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`GroupedQueryAttention.attend`; values are Y."""
        mask, eps = step.mask, self.config.rms_norm_eps
        if step.decode:
            o, y = decode_attention(q, k, v, k_past, v_past, mask, eps, self.decode_implementation)
            return o, y, torch.cat([v_past, y], dim=2)
        y = precondition(k, v, k_past, v_past, mask, eps, self.implementation)
        values = torch.cat([v_past, y], dim=2)  # (B, KV, T, D)
        return causal_attention(q, keys, values, mask), y, values

    def attend_static(
        self, q: Tensor, k: Tensor, v: Tensor, past: LayerCache, mask: Tensor | None, cache_length: Tensor
    ) -> tuple[Tensor, LayerCache]:
        """See :meth:`GroupedQueryAttention.attend_static`."""
        keys, values = self.codec.decode(past, q.dtype)  # (B, KV, M, D)
        o, y = decode_attention(q, k, v, keys, values, mask, self.config.rms_norm_eps, self.decode_implementation)
        stored = zip(past, self.codec.encode(k, y), strict=True)
        return o, tuple(scatter_row(buffer, row, cache_length) for buffer, row in stored)


class _Lucid(LayerKind):
    name = "lucid"

    def describe(self, config: LucidConfig, index: int, cache_dtype: str) -> LayerDescription:
        """See :meth:`LayerKind.describe`."""
        return LayerDescription(
            kind=self.name,
            cache=rows_layout(config, cache_dtype),
            operators={"prefill": (PRECONDITION.name, CAUSAL_ATTENTION.name), "decode": (DECODE_ATTENTION.name,)},
            weights=projection_names(config, self.attribute),
            solves=True,
            eviction="with LUCID attention, Y of every later token was computed from their keys and values, so the "
            "rest would not be the cache of the remaining text",
        )

    def words(self, config: LucidConfig) -> str:
        """See :meth:`LayerKind.words`."""
        return "LUCID {}"

    def mixer(self, config: LucidConfig, index: int, implementation: str) -> Mixer:
        """See :meth:`LayerKind.mixer`."""
        return LucidAttention(config, implementation)


KIND = _Lucid()
