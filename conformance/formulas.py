"""The operators as formulas: dense, row by row, in float64, with numpy.

The code under test shares only ``plugins/table.py`` with this module; arguments are named as the inputs there. In
shapes, ``B`` is the batch, ``H`` key/value heads, ``G`` query heads per key/value head, ``N`` new tokens, ``P`` past
ones, ``T`` all, ``D`` the width of a head. :func:`expert_matmul` explains the letters of its own shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lucid_deploy.plugins import table

Array = np.ndarray[Any, np.dtype[Any]]
Compute = Callable[..., tuple[Array, ...]]


def precondition(
    K: Array, V: Array, K_past: Array, Y_past: Array, mask: Array, epsilon: float, diagonal: float = 0.0
) -> tuple[Array]:
    """Solve L Y = V row by row; L = tril(exp(K̂K̂ᵀ/√d − √d)) with a diagonal of exactly 1 by default.

    Args:
        K: Raw keys of the new tokens, ``(B, H, N, D)``.
        V: Their values, ``(B, H, N, D)``.
        K_past: Raw keys of the cache, ``(B, H, P, D)``.
        Y_past: Its preconditioned values, ``(B, H, P, D)``.
        mask: ``(B, P + N)``, false at padding, which no token's solve reads and whose Y is its V.
        epsilon: Added to the mean square of a key.
        diagonal: If 1, L keeps the formula's diagonal, which is below 1 because of epsilon; at padding it is 1.

    Returns:
        Y of the new tokens, float64 ``(B, H, N, D)``.
    """
    keys = normalized(np.concatenate([exact(K_past), exact(K)], axis=2), epsilon)
    past, root = K_past.shape[2], np.sqrt(K.shape[3])
    y = np.concatenate([exact(Y_past), exact(V)], axis=2)
    for row in range(past, past + K.shape[2]):
        weights = np.exp((keys[:, :, :row] * keys[:, :, row : row + 1]).sum(-1) / root - root)  # (B, H, row)
        weights = weights * (mask[:, None, :row] & mask[:, None, row : row + 1])
        y[:, :, row] -= (weights[..., None] * y[:, :, :row]).sum(2)
        if diagonal:
            own = np.exp((keys[:, :, row] * keys[:, :, row]).sum(-1) / root - root)  # (B, H)
            y[:, :, row] /= np.where(mask[:, row, None], own, 1)[..., None]
    return (y[:, :, past:],)


def causal_attention(Q: Array, K: Array, Y: Array, mask: Array) -> tuple[Array]:
    """Return O = softmax(Q Kᵀ/√d) Y over each query's own token and the tokens before it that are not padding.

    Args:
        Q: Queries of the last N tokens, ``(B, H·G, N, D)``; G neighbouring heads share a key/value head.
        K: Raw keys of all tokens, ``(B, H, T, D)``.
        Y: Their preconditioned values, ``(B, H, T, D)``.
        mask: ``(B, T)``, false at padding; a query sees its own token even there.

    Returns:
        O, float64 ``(B, H·G, N, D)``.
    """
    groups, new, total = Q.shape[1] // K.shape[1], Q.shape[2], K.shape[2]
    out = np.zeros(Q.shape)
    for head in range(Q.shape[1]):
        for row in range(new):
            place = total - new + row
            keys, values = (exact(x[:, head // groups, : place + 1]) for x in (K, Y))  # (B, place + 1, D)
            scores = (keys * exact(Q[:, head, row, None])).sum(-1) / np.sqrt(Q.shape[3])
            seen = mask[:, : place + 1].copy()
            seen[:, place] = True
            scores = np.where(seen, scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, head, row] = ((weights / weights.sum(-1, keepdims=True))[..., None] * values).sum(1)
    return (out,)


def decode_attention(
    Q: Array,
    K_new: Array,
    V_new: Array,
    K: Array,
    Y: Array,
    mask: Array,
    epsilon: float,
    diagonal: float = 0.0,
) -> tuple[Array, Array]:
    """Return the attention of new tokens' queries over the cache and the new tokens, and Y of the new tokens.

    Args:
        Q: Queries, ``(B, H·G, N, D)``; N is 1 in the decode graphs of artifacts.
        K_new: Raw keys of the new tokens, ``(B, H, N, D)``.
        V_new: Their values, ``(B, H, N, D)``.
        K: Raw keys of the cache, ``(B, H, P, D)``.
        Y: Its preconditioned values, ``(B, H, P, D)``.
        mask: ``(B, P + N)``, false at padding.
        epsilon: Added to the mean square of a key.
        diagonal: See :func:`precondition`.

    Returns:
        O ``(B, H·G, N, D)`` and Y of the new tokens ``(B, H, N, D)``, float64.
    """
    (y_new,) = precondition(K_new, V_new, K, Y, mask, epsilon, diagonal)
    keys, values = np.concatenate([exact(K), exact(K_new)], axis=2), np.concatenate([exact(Y), y_new], axis=2)
    return (*causal_attention(Q, keys, values, mask), y_new)


def decode_attention_scaled(
    Q: Array,
    K_new: Array,
    V_new: Array,
    K: Array,
    Y: Array,
    K_scale: Array,
    Y_scale: Array,
    mask: Array,
    epsilon: float,
    diagonal: float = 0.0,
) -> tuple[Array, Array]:
    """Return :func:`decode_attention` over K and Y multiplied by the scales of their rows, ``(B, H, P, 1)``."""
    keys, values = exact(K) * exact(K_scale), exact(Y) * exact(Y_scale)
    return decode_attention(Q, K_new, V_new, keys, values, mask, epsilon, diagonal)


def delta_rule(
    query: Array, key: Array, value: Array, log_decay: Array, beta: Array, state: Array, scale: float
) -> tuple[Array, Array]:
    """Compute S_t = α_t S_{t−1} + β_t k_t (v_t − α_t S_{t−1}ᵀ k_t)ᵀ and o_t = scale · S_tᵀ q_t, token by token.

    Args:
        query: Queries q, ``(B, H, N, D)``.
        key: Keys k of unit length, ``(B, H, N, D)``.
        value: Values v, ``(B, H, N, E)``.
        log_decay: log α, ``(B, H, N)``.
        beta: β, ``(B, H, N)``.
        state: S_0, ``(B, H, D, E)``.
        scale: Factor of the outputs.

    Returns:
        The outputs ``(B, H, N, E)`` and S_N ``(B, H, D, E)``, float64.
    """
    s, out = exact(state).copy(), np.zeros(value.shape)
    for t in range(key.shape[2]):
        k, q, v = (exact(x[:, :, t]) for x in (key, query, value))
        s *= np.exp(exact(log_decay[:, :, t]))[..., None, None]
        missing = v - (s * k[..., None]).sum(2)  # (B, H, E)
        s += exact(beta[:, :, t])[..., None, None] * k[..., None] * missing[:, :, None]
        out[:, :, t] = scale * (s * q[..., None]).sum(2)
    return out, s


def expert_matmul(X: Array, expert: Array, W: Array) -> tuple[Array]:
    """Return O_i = W_e X_i for each row i and its expert e.

    Args:
        X: R rows of width K, ``(R, K)``.
        expert: Each row's expert, ``(R,)``.
        W: The matrices of E experts, each with N rows, ``(E, N, K)``.

    Returns:
        O, ``(R, N)``, float64.
    """
    return (np.stack([exact(W[e]) @ exact(row) for row, e in zip(X, expert, strict=True)]),)


def quantized_expert_matmul(X: Array, expert: Array, W: Array, scales: Array) -> tuple[Array]:
    """Return :func:`expert_matmul`; W ``(E, N, blocks, bytes)`` holds packed 4- or 8-bit numbers, a scale per block."""
    bits = 8 * W.shape[2] * W.shape[3] // X.shape[1]
    numbers = W if bits == 8 else np.stack([W & 15, W >> 4], axis=-1).reshape(*W.shape[:3], -1)
    weights = (exact(numbers) - (1 << (bits - 1))) * exact(scales)[..., None]
    return expert_matmul(X, expert, weights.reshape(*W.shape[:2], -1))


def scatter_row(cache: Array, row: Array, index: Array) -> tuple[Array]:
    """Return ``cache`` ``(B, H, M, D)`` with ``row`` ``(B, H, 1, D)`` at the places ``index`` ``(B,)``, float64."""
    present = exact(cache).copy()
    for batch, place in enumerate(index):
        present[batch, :, place] = row[batch, :, 0]
    return (present,)


def normalized(keys: Array, epsilon: float) -> Array:
    """Return K̂ = K / sqrt(mean(K²) + eps)."""
    return keys / np.sqrt((keys * keys).mean(-1, keepdims=True) + epsilon)


def exact(array: Array) -> Array:
    """Return an array's values in float64."""
    return np.asarray(array).astype(np.float64)


FORMULAS: Mapping[str, Compute] = {
    table.PRECONDITION.name: precondition,
    table.CAUSAL_ATTENTION.name: causal_attention,
    table.DECODE_ATTENTION.name: decode_attention,
    table.DECODE_ATTENTION_FLOAT16.name: decode_attention,
    table.DECODE_ATTENTION_INT8.name: decode_attention_scaled,
    table.DECODE_ATTENTION_FLOAT8.name: decode_attention_scaled,
    table.DELTA_RULE.name: delta_rule,
    table.EXPERT_MATMUL.name: expert_matmul,
    table.QUANTIZED_EXPERT_MATMUL.name: quantized_expert_matmul,
    table.SCATTER_ROW.name: scatter_row,
}
