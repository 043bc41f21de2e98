"""LUCID attention: softmax attention whose values are preconditioned by the keys (arXiv 2602.10410).

    O = softmax(Q Kᵀ/√d, causal) · Y,      L Y = V,      L = tril(exp(K̂ K̂ᵀ/√d − √d))

K̂ is K after an RMS norm. The diagonal of L is set to 1, or follows the formula, see :attr:`LucidConfig.diagonal`. The
cache holds the raw keys K and the values Y; a row of Y never changes once written.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lucid_deploy.model.attention.grouped_query import GroupedQueryAttention
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.mixer import LayerCache, Step
from lucid_deploy.plugins.causal_attention.torch_operator import causal_attention
from lucid_deploy.plugins.decode_attention.torch_operator import decode_attention
from lucid_deploy.plugins.precondition.torch_operator import precondition
from lucid_deploy.plugins.scatter_row.torch_operator import scatter_row
from lucid_deploy.plugins.table import TRAINING


class LucidAttention(GroupedQueryAttention):
    """Grouped-query attention whose values are preconditioned once per key/value head."""

    def __init__(self, config: LucidConfig, implementation: str) -> None:
        super().__init__(config, implementation)
        training = config.diagonal == TRAINING
        self.solve_options = config.rms_norm_eps, implementation, training
        self.decode_options = config.rms_norm_eps, "reference" if implementation == "reference" else "fused", training

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, k_past: Tensor, y_past: Tensor, step: Step
    ) -> tuple[Tensor, Tensor, Tensor]:
        mask = step.mask
        if step.decode:
            o, y = decode_attention(q, k, v, k_past, y_past, mask, *self.decode_options)
            return o, y, torch.cat([y_past, y], dim=2)
        y = precondition(k, v, k_past, y_past, mask, *self.solve_options)
        values = torch.cat([y_past, y], dim=2)  # (B, KV, T, D)
        return causal_attention(q, keys, values, mask), y, values

    def attend_static(
        self, q: Tensor, k: Tensor, v: Tensor, past: LayerCache, mask: Tensor | None, cache_length: Tensor
    ) -> tuple[Tensor, LayerCache]:
        keys, values = self.codec.decode(past, q.dtype)  # (B, KV, M, D)
        o, y = decode_attention(q, k, v, keys, values, mask, *self.decode_options)
        stored = zip(past, self.codec.encode(k, y), strict=True)
        return o, tuple(scatter_row(buffer, row, cache_length) for buffer, row in stored)
