"""The preconditioner in PyTorch, one block of rows at a time: memory is linear in the number of tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lucid_deploy.plugins.shared.keys import compute_dtype, log_row_factors, normalize_keys

BLOCK = 128  # rows solved at once, so that a head's E takes only BLOCK × (P + N) elements


def precondition_blocked(
    k: Tensor,
    v: Tensor,
    k_past: Tensor,
    y_past: Tensor,
    mask: Tensor | None,
    eps: float,
    training_diagonal: bool = False,
) -> Tensor:
    """Solve ``L Y = V`` one block of rows at a time, and compute E for that block only.

    Block i is Y_i = L_ii⁻¹ ( V_i − Σ_{j<i} E_ij Y_j ); the past tokens come before the first block. With the training
    diagonal, rows of E and V are divided by it first, so that each solve has a diagonal of 1.
    """
    work = compute_dtype(v.dtype)
    n, past, root_d = k.shape[2], k_past.shape[2], math.sqrt(k.shape[3])
    # Scale keys by d^-1/4, so that their product is already divided by √d.
    k_hat = normalize_keys(torch.cat([k_past, k], dim=2).to(work), eps) / math.sqrt(root_d)  # (B, H, P+N, D)
    values = v.to(work)
    if mask is not None:
        # Padded tokens must neither affect others (their rows of y are zeroed) nor change (their rows of E are zeroed).
        token = mask[:, None, :, None].to(work)  # (B, 1, P+N, 1)
    row_log = values.new_zeros(()).expand(*values.shape[:3], 1)  # −log L_ii, (B, H, N, 1)
    if training_diagonal:
        row_log = log_row_factors(k.to(work), eps)
        row_log = row_log if mask is None else row_log * token[:, :, past:]
        values = values * row_log.exp()
    y = [y_past.to(work) if mask is None else y_past.to(work) * token[:, :, :past]]
    out = [values[:, :, :0]]  # the result if there are no new tokens
    for start in range(0, n, BLOCK):
        rows = slice(past + start, past + min(start + BLOCK, n))
        k_i = k_hat[:, :, rows]  # (B, H, b, D)
        shift = root_d - row_log[:, :, start : start + BLOCK]  # (B, H, b, 1)
        before = torch.cat(y, dim=2) if len(y) > 1 else y[0]  # (B, H, P+start, D)
        y = [before]
        received = torch.exp(k_i @ k_hat[:, :, : rows.start].mT - shift) @ before  # (B, H, b, D)
        diagonal = torch.exp(k_i @ k_i.mT - shift).tril(-1)  # (B, H, b, b); the unit diagonal is implied
        if mask is not None:
            received = received * token[:, :, rows]
            diagonal = diagonal * (token[:, :, rows] * token[:, :, rows].mT)
        y_i = torch.linalg.solve_triangular(
            diagonal, values[:, :, start : start + BLOCK] - received, upper=False, unitriangular=True
        )
        out.append(y_i)
        y.append(y_i if mask is None else y_i * token[:, :, rows])
    return torch.cat(out, dim=2).to(v.dtype)
