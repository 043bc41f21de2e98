"""The delta rule in PyTorch, computed in chunks of 64 tokens by matrix products instead of token by token."""

from __future__ import annotations

import torch
from torch import Tensor

from lucid_deploy.plugins.block_inverse.reference import invert_unit_lower
from lucid_deploy.plugins.delta_rule.reference import delta_rule_reference
from lucid_deploy.plugins.shared.keys import compute_dtype

CHUNK = 64  # tokens per chunk
LOWEST_LOG = -1e4  # log α is clamped to it: its exponential is 0 in every dtype, while −∞ times a mask's 0 would be NaN


def delta_rule_blocked(
    query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Apply the delta rule chunk by chunk; each chunk solves for the corrections of all its tokens at once.

    With γ_i = α_1 ⋯ α_i, Γ_ij = γ_i/γ_j for i ≥ j, else 0, T = (I + tril(diag(β)(Γ ∘ KKᵀ), −1))⁻¹ diag(β): corrections
    R = T (V − (γ ∘ K) S), outputs scale · ((γ ∘ Q) S + (Γ ∘ QKᵀ) R), next state γ_C S + ((γ_C/γ) ∘ K)ᵀ R.
    """
    new = key.shape[2]
    if new < 2:
        return delta_rule_reference(query, key, value, log_decay, beta, state, scale)
    work = compute_dtype(value.dtype)
    q, k, v = (_chunks(each.to(work)) for each in (query.to(work) * scale, key, value))  # (B, H, m, C, D or E)
    g, b = (_chunks(each.to(work)[..., None]) for each in (log_decay, beta))  # (B, H, m, C, 1)
    g = g.clamp_min(LOWEST_LOG)

    # Sum log α over tokens j+1 … i directly: subtracting two cumulative sums would cancel where α is small.
    ones = torch.ones(CHUNK, CHUNK, dtype=work, device=key.device)
    between = (g * ones.tril(-1)).cumsum(-2)  # (B, H, m, C, C): row i, column j is log γ_i/γ_j, and 0 for i < j
    gamma = between.exp().tril()
    from_start = g.cumsum(-2)  # (B, H, m, C, 1): log γ
    to_end = between[..., -1:, :].mT.exp()  # (B, H, m, C, 1): γ_C/γ

    solve = invert_unit_lower((b * gamma * (k @ k.mT)).tril(-1)) * b.mT  # T, (B, H, m, C, C)
    attended = gamma * (q @ k.mT)  # (B, H, m, C, C)
    k_start, q_start, k_end = k * from_start.exp(), q * from_start.exp(), (k * to_end).mT
    decay = from_start[..., -1:, :].exp()  # (B, H, m, 1, 1): γ_C

    s, outputs = state.to(work), []
    for i in range(k.shape[2]):
        corrections = solve[:, :, i] @ (v[:, :, i] - k_start[:, :, i] @ s)  # R, (B, H, C, E)
        outputs.append(q_start[:, :, i] @ s + attended[:, :, i] @ corrections)
        s = decay[:, :, i] * s + k_end[:, :, i] @ corrections
    return torch.cat(outputs, dim=2)[:, :, :new].to(value.dtype), s.to(state.dtype)


def _chunks(x: Tensor) -> Tensor:
    """Split ``(B, H, N, W)`` into chunks ``(B, H, m, C, W)``; pad the last one with zeros, which have no effect."""
    padded = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[2] % CHUNK))
    return padded.unflatten(2, (-1, CHUNK))
