"""The preconditioner as the PyTorch custom operator ``lucid::precondition``, which tracing keeps as one node.

    L Y = V,      L = tril(exp(K̂K̂ᵀ/√d − √d))        (arXiv 2602.10410, eq. 8)

K̂ are the RMS-normalised keys. The diagonal of L is set to exactly 1, or, as in the authors' training, keeps the
formula's value, which eps makes smaller than 1. Y of past tokens is known, so only the new rows are solved:

    Y_new = L_new⁻¹ ( V_new − exp(K̂_new K̂_pastᵀ/√d − √d) Y_past )
"""

from __future__ import annotations

import torch
from torch import Tensor

from lucid_deploy.plugins.precondition.blocked import precondition_blocked
from lucid_deploy.plugins.precondition.reference import precondition_reference
from lucid_deploy.plugins.shared.custom_operator import custom_operator
from lucid_deploy.plugins.table import PRECONDITION

IMPLEMENTATIONS = {"reference": precondition_reference, "blocked": precondition_blocked}


def precondition(
    k: Tensor,
    v: Tensor,
    k_past: Tensor | None = None,
    y_past: Tensor | None = None,
    mask: Tensor | None = None,
    eps: float = 1e-5,
    implementation: str = "blocked",
    training_diagonal: bool = False,
) -> Tensor:
    """Precondition the values of new tokens, given the cache of the tokens before them.

    Args:
        k: Raw keys of the new tokens, ``(B, H, N, D)``; rotary embedding, if any, already applied.
        v: Their values, ``(B, H, N, D)``.
        k_past: Raw keys of the cached tokens, ``(B, H, P, D)``; None: no cached tokens.
        y_past: Preconditioned values of the cached tokens, ``(B, H, P, D)``; required if ``k_past`` is given.
        mask: ``(B, P + N)``, False at padding: a padded token affects no other, and its Y is its V. None: no padding.
        eps: Added to the mean square of a key before the square root.
        implementation: ``reference`` (dense, O(N(P + N)) memory) or ``blocked`` (O(P + N) memory). With ``blocked``,
            CUDA tensors run the Triton kernel if it supports them, no gradient is needed, and
            :mod:`lucid_deploy.plugins.hosts.triton.torch_kernels` was imported, as ``lucid_deploy.model.lucid`` does.
        training_diagonal: Set L_ii to exp(√D(m/(m + eps) − 1)), where m is the mean square of key i, instead of 1.

    Returns:
        Y of the new tokens, ``(B, H, N, D)``, in the type of ``v``. The PyTorch implementations compute half-precision
        inputs in float32. Differentiable.

    Raises:
        ValueError: The shapes do not match, only one of ``k_past`` and ``y_past`` is given, or
            ``implementation`` is unknown.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {tuple(IMPLEMENTATIONS)}, not {implementation!r}")
    _check_shapes(k, v, k_past, y_past, mask)
    if k_past is None or y_past is None:
        k_past, y_past = k[:, :, :0], v[:, :, :0]
    if torch.is_grad_enabled() and any(t.requires_grad for t in (k, v, k_past, y_past)):
        return IMPLEMENTATIONS[implementation](k, v, k_past, y_past, mask, eps, training_diagonal)
    return precondition_operator(k, v, k_past, y_past, mask, eps, implementation, training_diagonal)


def _check_shapes(k: Tensor, v: Tensor, k_past: Tensor | None, y_past: Tensor | None, mask: Tensor | None) -> None:
    if k.dim() != 4 or k.shape != v.shape:
        raise ValueError(f"k and v must both be (batch, heads, tokens, width), not {tuple(k.shape)}, {tuple(v.shape)}")
    if (k_past is None) != (y_past is None):
        raise ValueError("k_past and y_past go together: give both or neither")
    past = 0
    if k_past is not None and y_past is not None:
        past = k_past.shape[2]
        wanted = (k.shape[0], k.shape[1], past, k.shape[3])
        if k_past.shape != wanted or y_past.shape != wanted:
            raise ValueError(f"k_past {tuple(k_past.shape)} and y_past {tuple(y_past.shape)} must both be {wanted}")
    if mask is not None and mask.shape != (k.shape[0], past + k.shape[2]):
        raise ValueError(
            f"mask must be (batch, past + new) = {(k.shape[0], past + k.shape[2])}, not {tuple(mask.shape)}"
        )


@custom_operator(PRECONDITION.torch_name, lambda k, v, *_: v.new_empty(v.shape))
def precondition_operator(
    k: Tensor,
    v: Tensor,
    k_past: Tensor,
    y_past: Tensor,
    mask: Tensor | None,
    eps: float,
    implementation: str,
    training_diagonal: bool = False,
) -> Tensor:
    """Compute :func:`precondition` as one node of a traced graph."""
    return IMPLEMENTATIONS[implementation](k, v, k_past, y_past, mask, eps, training_diagonal).contiguous()
