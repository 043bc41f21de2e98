"""Decode attention as the PyTorch custom operator ``lucid::decode_attention``, which tracing keeps as one node."""

from __future__ import annotations

from torch import Tensor

from lucid_deploy.plugins.decode_attention.fused import decode_attention_fused
from lucid_deploy.plugins.decode_attention.reference import decode_attention_reference
from lucid_deploy.plugins.shared.custom_operator import custom_operator
from lucid_deploy.plugins.table import DECODE_ATTENTION

IMPLEMENTATIONS = {"reference": decode_attention_reference, "fused": decode_attention_fused}


def decode_attention(
    q: Tensor,
    k_new: Tensor,
    v_new: Tensor,
    k: Tensor,
    y: Tensor,
    mask: Tensor | None = None,
    eps: float = 1e-5,
    implementation: str = "fused",
    training_diagonal: bool = False,
) -> tuple[Tensor, Tensor]:
    """Attend from one or a few new tokens to the cache and to themselves, and precondition their values.

    Args:
        q: Queries of the new tokens, ``(B, H·G, N, D)``.
        k_new: Their raw keys, ``(B, H, N, D)``.
        v_new: Their values, ``(B, H, N, D)``.
        k: Cached raw keys, ``(B, H, P, D)``.
        y: Cached preconditioned values, ``(B, H, P, D)``.
        mask: ``(B, P + N)``, False at padding; the last columns are the new tokens. None: no padding.
        eps: Added to the mean square of a key before the square root.
        implementation: ``reference`` (solve, then attention) or ``fused`` (one product with K, one with Y; on CUDA the
            Triton kernels for up to 16 new tokens, under the conditions of ``precondition``).
        training_diagonal: As for ``precondition``: divide a new token's row by the training L_ii instead of 1.

    Returns:
        The heads' outputs ``(B, H·G, N, D)`` and the new Y ``(B, H, N, D)``, in the type of ``q``. Not differentiable.

    Raises:
        ValueError: The shapes do not match, or ``implementation`` is unknown.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {tuple(IMPLEMENTATIONS)}, not {implementation!r}")
    _check_shapes(q, k_new, v_new, k, y, mask)
    return decode_attention_operator(q, k_new, v_new, k, y, mask, eps, implementation, training_diagonal)


def _check_shapes(q: Tensor, k_new: Tensor, v_new: Tensor, k: Tensor, y: Tensor, mask: Tensor | None) -> None:
    (batch, heads, past, width), n = k.shape, q.shape[2]
    if y.shape != k.shape:
        raise ValueError(f"k and y must have the same shape, not {tuple(k.shape)} and {tuple(y.shape)}")
    if k_new.shape != (batch, heads, n, width) or v_new.shape != k_new.shape:
        raise ValueError(f"k_new and v_new must be {(batch, heads, n, width)}, as many new tokens as q has")
    if q.shape[0] != batch or q.shape[1] % heads or n < 1 or q.shape[3] != width:
        raise ValueError(f"q must be (batch, a multiple of {heads}, 1 or more, {width}), not {tuple(q.shape)}")
    if mask is not None and mask.shape != (batch, past + n):
        raise ValueError(f"mask must be (batch, past + new) = {(batch, past + n)}, not {tuple(mask.shape)}")


@custom_operator(
    DECODE_ATTENTION.torch_name, lambda q, k_new, v_new, *_: (q.new_empty(q.shape), q.new_empty(v_new.shape))
)
def decode_attention_operator(
    q: Tensor,
    k_new: Tensor,
    v_new: Tensor,
    k: Tensor,
    y: Tensor,
    mask: Tensor | None,
    eps: float,
    implementation: str,
    training_diagonal: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute :func:`decode_attention` as one node of a traced graph."""
    out, y_new = IMPLEMENTATIONS[implementation](q, k_new, v_new, k, y, mask, eps, training_diagonal)
    return out.contiguous(), y_new.contiguous()  # solve_triangular returns column-major tensors
