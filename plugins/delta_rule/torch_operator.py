"""The delta rule as the PyTorch custom operator ``lucid::delta_rule``, which stays one node in a traced graph.

S_t = α_t S_{t−1} + β_t k_t (v_t − α_t S_{t−1}ᵀ k_t)ᵀ,      o_t = scale · S_tᵀ q_t    (arXiv 2406.06484, 2412.06464)
"""

from __future__ import annotations

import torch
from torch import Tensor

from lucid_deploy.plugins.delta_rule.blocked import delta_rule_blocked
from lucid_deploy.plugins.delta_rule.reference import delta_rule_reference
from lucid_deploy.plugins.shared.custom_operator import custom_operator
from lucid_deploy.plugins.table import DELTA_RULE

IMPLEMENTATIONS = {"reference": delta_rule_reference, "blocked": delta_rule_blocked}


def delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    state: Tensor,
    scale: float,
    implementation: str = "blocked",
) -> tuple[Tensor, Tensor]:
    """Apply the delta rule to new tokens: each one updates the state, then multiplies its query by it.

    Args:
        query: Queries of the new tokens, ``(B, H, N, D)``.
        key: Their keys, ``(B, H, N, D)``, of unit length or 0.
        value: Their values, ``(B, H, N, E)``.
        log_decay: log α, from −∞ to 0, ``(B, H, N)``; zeros for the plain rule.
        beta: β, 0 to 2, ``(B, H, N)``. A padding token has β = 0 and log α = 0, so it does not change the state.
        state: S before the first new token, ``(B, H, D, E)``.
        scale: Factor of the outputs.
        implementation: ``reference`` (token by token) or ``blocked`` (chunks of 64 tokens; for CUDA tensors the Triton
            kernels, under the same conditions as ``precondition`` and if ``log_decay`` and ``state`` are float32).

    Returns:
        The outputs ``(B, H, N, E)`` in the dtype of ``value``, and S after the last token ``(B, H, D, E)`` in the dtype
        of ``state``. Computed in float64 if ``value`` is float64, else in float32. Differentiable.

    Raises:
        ValueError: The shapes do not match, or ``implementation`` is unknown.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {tuple(IMPLEMENTATIONS)}, not {implementation!r}")
    tensors = (query, key, value, log_decay, beta, state)
    _check_shapes(*tensors)
    if torch.is_grad_enabled() and any(each.requires_grad for each in tensors):
        return IMPLEMENTATIONS[implementation](*tensors, scale)
    return delta_rule_operator(*tensors, scale, implementation)


def _check_shapes(query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor) -> None:
    if key.dim() != 4 or query.shape != key.shape:
        raise ValueError(
            f"query and key must both be (batch, heads, tokens, width), not {tuple(query.shape)}, {tuple(key.shape)}"
        )
    batch, heads, tokens, width = key.shape
    if value.dim() != 4 or value.shape[:3] != (batch, heads, tokens):
        raise ValueError(f"value must have shape {(batch, heads, tokens)} + (width,), not {tuple(value.shape)}")
    for name, gate in (("log_decay", log_decay), ("beta", beta)):
        if gate.shape != (batch, heads, tokens):
            raise ValueError(
                f"{name} must be (batch, heads, tokens) = {(batch, heads, tokens)}, not {tuple(gate.shape)}"
            )
    wanted = (batch, heads, width, value.shape[3])
    if state.shape != wanted:
        raise ValueError(f"state must be (batch, heads, key width, value width) = {wanted}, not {tuple(state.shape)}")


@custom_operator(
    DELTA_RULE.torch_name,
    lambda query, key, value, log_decay, beta, state, *_: (value.new_empty(value.shape), state.new_empty(state.shape)),
)
def delta_rule_operator(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    state: Tensor,
    scale: float,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    """Compute :func:`delta_rule` as one node of a traced graph."""
    return compute(query, key, value, log_decay, beta, state, scale, implementation)


def compute(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    state: Tensor,
    scale: float,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    """Return the outputs and the new state as new tensors, since operators may not return an input or a view of one."""
    output, new_state = IMPLEMENTATIONS[implementation](query, key, value, log_decay, beta, state, scale)
    return output.contiguous(), new_state.clone() if new_state is state else new_state.contiguous()
