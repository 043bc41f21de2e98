"""Attention of one new token over the cache, and its own preconditioned value, together.

The new token's row of ``L Y = V`` is only a subtraction, ``y = v − Σ_j exp(k̂·k̂_j/√d − √d) y_j``. Its weights come
from the same keys, and its sum runs over the same Y, as the query heads' softmax: the new key rides along as one more
query row, and K and Y are read once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lucid_deploy.ops.precondition import compute_dtype, normalize_keys, precondition_reference

IMPLEMENTATIONS = ("reference", "fused")


def decode_attention(
    q: Tensor,
    k_new: Tensor,
    v_new: Tensor,
    k: Tensor,
    y: Tensor,
    mask: Tensor | None = None,
    eps: float = 1e-5,
    implementation: str = "fused",
) -> tuple[Tensor, Tensor]:
    """Attend from one new token to the cache and itself.

    Args:
        q: Queries of the new token, ``(B, H·G, 1, D)``.
        k_new: Its raw key, ``(B, H, 1, D)``.
        v_new: Its value, ``(B, H, 1, D)``.
        k: Cached raw keys, ``(B, H, P, D)``.
        y: Cached preconditioned values, ``(B, H, P, D)``.
        mask: ``(B, P + 1)``, False at padding; the last column is the new token. None: no padding.
        eps: Added to the mean square of a key before the root.
        implementation: ``reference`` (the two formulas one after the other) or ``fused`` (one pass over the cache).

    Returns:
        The heads' outputs ``(B, H·G, 1, D)`` and Y of the new token ``(B, H, 1, D)``, in the type of ``q``.

    Raises:
        ValueError: Shapes that do not fit, or an unknown implementation.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {IMPLEMENTATIONS}, not {implementation!r}")
    _check_shapes(q, k_new, v_new, k, y, mask)
    return torch.ops.lucid.decode_attention(q, k_new, v_new, k, y, mask, eps, implementation)


def _check_shapes(q: Tensor, k_new: Tensor, v_new: Tensor, k: Tensor, y: Tensor, mask: Tensor | None) -> None:
    batch, heads, past, width = k.shape
    if y.shape != k.shape:
        raise ValueError(f"k and y must have one shape, not {tuple(k.shape)} and {tuple(y.shape)}")
    if k_new.shape != (batch, heads, 1, width) or v_new.shape != k_new.shape:
        raise ValueError(f"k_new and v_new must be {(batch, heads, 1, width)}, one new token")
    if q.shape[0] != batch or q.shape[1] % heads or q.shape[2:] != (1, width):
        raise ValueError(f"q must be (batch, a multiple of {heads}, 1, {width}), not {tuple(q.shape)}")
    if mask is not None and mask.shape != (batch, past + 1):
        raise ValueError(f"mask must be (batch, past + 1) = {(batch, past + 1)}, not {tuple(mask.shape)}")


def decode_attention_reference(
    q: Tensor, k_new: Tensor, v_new: Tensor, k: Tensor, y: Tensor, mask: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Precondition the one new value, then ordinary attention over (K, Y): the formulas as they stand on paper."""
    work = compute_dtype(q.dtype)
    y_new = precondition_reference(k_new.to(work), v_new.to(work), k, y, mask, eps)  # (B, H, 1, D)
    groups = q.shape[1] // k.shape[1]
    keys = torch.cat([k.to(work), k_new.to(work)], dim=2).repeat_interleave(groups, dim=1)  # (B, H·G, P+1, D)
    values = torch.cat([y.to(work), y_new], dim=2).repeat_interleave(groups, dim=1)  # (B, H·G, P+1, D)
    scores = q.to(work) @ keys.mT / math.sqrt(q.shape[3])  # (B, H·G, 1, P+1)
    if mask is not None:
        visible = mask.clone()
        visible[:, -1] = True  # a token always sees itself, so that no row of the softmax is empty
        scores = scores.masked_fill(~visible[:, None, None, :], -torch.inf)
    return (scores.softmax(-1) @ values).to(q.dtype), y_new.to(q.dtype)


def decode_attention_fused(
    q: Tensor, k_new: Tensor, v_new: Tensor, k: Tensor, y: Tensor, mask: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Score G query rows and the new key in one product, then average and subtract in another."""
    work = compute_dtype(q.dtype)
    batch, heads, past, width = k.shape
    groups, root_d = q.shape[1] // heads, math.sqrt(width)
    keys, values, new_value = k.to(work), y.to(work), v_new.to(work)
    q_rows = q.to(work).reshape(batch, heads, groups, width) / root_d  # (B, H, G, D)
    new_row = normalize_keys(k_new.to(work), eps) / root_d  # (B, H, 1, D)
    scores = torch.cat([q_rows, new_row], dim=2) @ keys.mT  # (B, H, G+1, P): the one pass over K
    key_norm = torch.rsqrt(keys.square().mean(-1) + eps)[:, :, None, :]  # (B, H, 1, P)
    s_query, s_new = scores[:, :, :groups], scores[:, :, groups:]
    e = torch.exp(s_new * key_norm - root_d)  # (B, H, 1, P)
    if mask is not None:
        s_query = s_query.masked_fill(~mask[:, None, None, :past], -torch.inf)
        e = e * (mask[:, None, None, :past] & mask[:, None, None, past:])
    s_self = q_rows @ k_new.to(work).mT  # (B, H, G, 1)
    peak = torch.cat([s_query, s_self], dim=-1).amax(-1, keepdim=True)  # (B, H, G, 1)
    p, p_self = torch.exp(s_query - peak), torch.exp(s_self - peak)
    sums = torch.cat([p, e], dim=2) @ values  # (B, H, G+1, D): the one pass over Y
    y_new = new_value - sums[:, :, groups:]  # (B, H, 1, D)
    out = (sums[:, :, :groups] + p_self * y_new) / (p.sum(-1, keepdim=True) + p_self)  # (B, H, G, D)
    return out.reshape(q.shape).to(q.dtype), y_new.to(q.dtype)


_IMPLEMENTATIONS = {"reference": decode_attention_reference, "fused": decode_attention_fused}


@torch.library.custom_op("lucid::decode_attention", mutates_args=())
def _decode_attention_op(
    q: Tensor, k_new: Tensor, v_new: Tensor, k: Tensor, y: Tensor, mask: Tensor | None, eps: float, implementation: str
) -> tuple[Tensor, Tensor]:
    return _IMPLEMENTATIONS[implementation](q, k_new, v_new, k, y, mask, eps)


@_decode_attention_op.register_fake
def _decode_attention_shape(
    q: Tensor, k_new: Tensor, v_new: Tensor, k: Tensor, y: Tensor, mask: Tensor | None, eps: float, implementation: str
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(v_new.shape)
