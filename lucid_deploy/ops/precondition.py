"""The preconditioner: solve ``L Y = V`` for the values that LUCID attention averages (arXiv 2602.10410, eq. 8).

``L = tril(exp(K̂K̂ᵀ/√d − √d))`` with RMS-normalised keys K̂ and a diagonal of exactly 1. With a past, its rows are
known already, so only the new rows are solved:

    Y_new = L_new⁻¹ ( V_new − exp(K̂_new K̂_pastᵀ/√d − √d) Y_past )
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BLOCK = 128  # rows solved at once: E of one block row is BLOCK × (P + N), the only memory beyond the output
IMPLEMENTATIONS = ("reference", "blocked")


def precondition(
    k: Tensor,
    v: Tensor,
    k_past: Tensor | None = None,
    y_past: Tensor | None = None,
    mask: Tensor | None = None,
    eps: float = 1e-5,
    implementation: str = "blocked",
) -> Tensor:
    """Precondition the values of new tokens, given the cache of the tokens before them.

    Args:
        k: Raw keys of the new tokens, ``(B, H, N, D)``; rotary embedding, if any, already applied.
        v: Their values, ``(B, H, N, D)``.
        k_past: Raw keys of the cached tokens, ``(B, H, P, D)``; None is P = 0.
        y_past: Preconditioned values of the cached tokens, ``(B, H, P, D)``; given exactly when ``k_past`` is.
        mask: ``(B, P + N)``, False at padding: such a token takes no part and its own Y is its V. None: no padding.
        eps: Added to the mean square of a key before the root.
        implementation: ``reference`` (dense, O(N(P + N)) memory) or ``blocked`` (O(P + N) memory).

    Returns:
        Y of the new tokens, ``(B, H, N, D)``, in the type of ``v``. Half-precision inputs are computed in float32.
        Differentiable.

    Raises:
        ValueError: Shapes that do not fit, half a past, or an unknown implementation.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {IMPLEMENTATIONS}, not {implementation!r}")
    _check_shapes(k, v, k_past, y_past, mask)
    if k_past is None or y_past is None:
        k_past, y_past = k[:, :, :0], v[:, :, :0]
    if torch.is_grad_enabled() and any(t.requires_grad for t in (k, v, k_past, y_past)):
        return _IMPLEMENTATIONS[implementation](k, v, k_past, y_past, mask, eps)
    return torch.ops.lucid.precondition(k, v, k_past, y_past, mask, eps, implementation)


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


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type the operators compute in: float64 stays, everything else is float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def normalize_keys(k: Tensor, eps: float) -> Tensor:
    """Return K̂ = K / sqrt(mean(K²) + eps), shape and type of ``k``."""
    return k * torch.rsqrt(k.square().mean(-1, keepdim=True) + eps)


def precondition_reference(
    k: Tensor, v: Tensor, k_past: Tensor, y_past: Tensor, mask: Tensor | None, eps: float
) -> Tensor:
    """Solve the whole triangular system at once: the formula, as it stands on paper."""
    work = compute_dtype(v.dtype)
    n, past, root_d = k.shape[2], k_past.shape[2], math.sqrt(k.shape[3])
    k_hat = normalize_keys(torch.cat([k_past, k], dim=2).to(work), eps)  # (B, H, P+N, D)
    e = torch.exp(k_hat[:, :, past:] @ k_hat.mT / root_d - root_d)  # (B, H, N, P+N)
    if mask is not None:
        e = e * (mask[:, None, past:, None] & mask[:, None, None, :])
    rhs = v.to(work) - e[..., :past] @ y_past.to(work)  # (B, H, N, D)
    lower = e[..., past:].tril(-1) + torch.eye(n, dtype=work, device=k.device)  # (B, H, N, N), unit diagonal
    return torch.linalg.solve_triangular(lower, rhs, upper=False, unitriangular=True).to(v.dtype)


def precondition_blocked(
    k: Tensor, v: Tensor, k_past: Tensor, y_past: Tensor, mask: Tensor | None, eps: float
) -> Tensor:
    """Solve one block of rows after the other; E is made block row by block row and never kept.

    Y_i = L_ii⁻¹ ( V_i − Σ_{j<i} E_ij Y_j ), with the past as the blocks before the first.
    """
    work = compute_dtype(v.dtype)
    n, past, root_d = k.shape[2], k_past.shape[2], math.sqrt(k.shape[3])
    # Half of 1/√d on each side of the product: scores then come out of the matrix product ready for exp.
    k_hat = normalize_keys(torch.cat([k_past, k], dim=2).to(work), eps) / math.sqrt(root_d)  # (B, H, P+N, D)
    values = v.to(work)
    if mask is not None:
        # A key row of padding must neither send (its Y row is zeroed in y) nor receive (its row of E is dropped).
        token = mask[:, None, :, None].to(work)  # (B, 1, P+N, 1)
    y = [y_past.to(work) if mask is None else y_past.to(work) * token[:, :, :past]]
    out = [values[:, :, :0]]  # no new tokens, no rows
    for start in range(0, n, BLOCK):
        rows = slice(past + start, past + min(start + BLOCK, n))
        k_i = k_hat[:, :, rows]  # (B, H, b, D)
        before = torch.cat(y, dim=2) if len(y) > 1 else y[0]  # (B, H, P+start, D)
        y = [before]
        received = torch.exp(k_i @ k_hat[:, :, : rows.start].mT - root_d) @ before  # (B, H, b, D)
        diagonal = torch.exp(k_i @ k_i.mT - root_d).tril(-1)  # (B, H, b, b); the unit diagonal is implied
        if mask is not None:
            received = received * token[:, :, rows]
            diagonal = diagonal * (token[:, :, rows] * token[:, :, rows].mT)
        y_i = torch.linalg.solve_triangular(
            diagonal, values[:, :, start : start + BLOCK] - received, upper=False, unitriangular=True
        )
        out.append(y_i)
        y.append(y_i if mask is None else y_i * token[:, :, rows])
    return torch.cat(out, dim=2).to(v.dtype)


_IMPLEMENTATIONS = {"reference": precondition_reference, "blocked": precondition_blocked}


@torch.library.custom_op("lucid::precondition", mutates_args=())
def _precondition_op(
    k: Tensor, v: Tensor, k_past: Tensor, y_past: Tensor, mask: Tensor | None, eps: float, implementation: str
) -> Tensor:
    return _IMPLEMENTATIONS[implementation](k, v, k_past, y_past, mask, eps).contiguous()


@_precondition_op.register_fake
def _precondition_shape(
    k: Tensor, v: Tensor, k_past: Tensor, y_past: Tensor, mask: Tensor | None, eps: float, implementation: str
) -> Tensor:
    return v.new_empty(v.shape)
