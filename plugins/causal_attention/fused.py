"""Causal attention in PyTorch, by its own fused attention."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lucid_deploy.plugins.causal_attention.reference import visible_tokens


def causal_attention_fused(q: Tensor, k: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
    """Leave the masking to ``scaled_dot_product_attention`` where nothing is padded and nothing is past."""
    new, total = q.shape[2], k.shape[2]
    if mask is None and new == total:
        return F.scaled_dot_product_attention(q, k, y, is_causal=True, enable_gqa=True)
    visible = visible_tokens(new, total, mask, q.device)
    return F.scaled_dot_product_attention(q, k, y, attn_mask=visible, enable_gqa=True)
