"""Causal attention as the PyTorch custom operator ``lucid::causal_attention``, which tracing keeps as one node.

Softmax attention of new tokens over all tokens: LUCID's if the values are preconditioned, else standard.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lucid_deploy.plugins.causal_attention.reference import visible_tokens
from lucid_deploy.plugins.shared.custom_operator import custom_operator
from lucid_deploy.plugins.table import CAUSAL_ATTENTION


def causal_attention(q: Tensor, k: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attend from the last N of T tokens to themselves and to all earlier tokens.

    Args:
        q: Queries of the new tokens, ``(B, H·G, N, D)``.
        k: Raw keys of all tokens, ``(B, H, T, D)``, T ≥ N; the new ones are the last N.
        y: Their preconditioned values (LUCID) or plain values (standard attention), ``(B, H, T, D)``.
        mask: ``(B, T)``, False at padding. A token always sees itself, so a padded row is finite. None: no padding.

    Returns:
        The heads' outputs, ``(B, H·G, N, D)`` in the type of ``q``. Differentiable.

    Raises:
        ValueError: The shapes do not fit together.
    """
    batch, heads, total, width = k.shape
    if y.shape != k.shape or q.shape[0] != batch or q.shape[1] % heads or q.shape[2] > total or q.shape[3] != width:
        raise ValueError(f"q {tuple(q.shape)}, k {tuple(k.shape)} and y {tuple(y.shape)} do not fit together")
    if mask is not None and mask.shape != (batch, total):
        raise ValueError(f"mask must be (batch, tokens) = {(batch, total)}, not {tuple(mask.shape)}")
    if torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, y)):
        return causal_attention_fused(q, k, y, mask)
    return causal_attention_operator(q, k, y, mask)


@custom_operator(CAUSAL_ATTENTION.torch_name, lambda q, *_: q.new_empty(q.shape))
def causal_attention_operator(q: Tensor, k: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
    """Compute :func:`causal_attention` as one node of a traced graph."""
    return causal_attention_fused(q, k, y, mask).contiguous()


def causal_attention_fused(q: Tensor, k: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
    """Run PyTorch's fused attention, with its built-in causal mask if there is neither a mask nor a past."""
    new, total = q.shape[2], k.shape[2]
    if mask is None and new == total:
        return F.scaled_dot_product_attention(q, k, y, is_causal=True, enable_gqa=True)
    visible = visible_tokens(new, total, mask, q.device)
    return F.scaled_dot_product_attention(q, k, y, attn_mask=visible, enable_gqa=True)
