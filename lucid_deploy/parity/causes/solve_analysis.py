"""The solve in plain numpy: what guesses at a cause, and the conditioning, are computed with.

On at most ``TOKENS`` tokens, so that the dense matrices stay small; since L is triangular, its leading block is the L
of the leading tokens.

Shapes: KV key/value heads, P cached tokens, N new tokens, T = P + N, D head width.
"""

from __future__ import annotations

import math

import numpy as np

from lucid_deploy.parity.metrics import round_to
from lucid_deploy.plugins.table import UNIT
from lucid_deploy.runtimes.session import Array

TOKENS = 512  # of a sequence that are analysed: a head's dense matrices are 2 MiB each


def normalized(keys: Array, eps: float) -> Array:
    """Return K̂ in the type of the keys ``(…, D)``."""
    return np.asarray(keys / np.sqrt(np.mean(np.square(keys), axis=-1, keepdims=True) + keys.dtype.type(eps)))


def kernel(rows: Array, columns: Array, eps: float, unit_type: str = "float64") -> Array:
    """Return ``E = exp(K̂K̂ᵀ/√D − √D)`` of some keys against others, in their type, ``(KV, N, T)``.

    Args:
        rows: Raw keys, ``(KV, N, D)``.
        columns: Raw keys, ``(KV, T, D)``.
        eps: Added to the mean square of a key.
        unit_type: Normalised keys are rounded to it.
    """
    root_d = rows.dtype.type(math.sqrt(rows.shape[-1]))
    left, right = normalized(rows, eps), normalized(columns, eps)
    if unit_type != "float64":
        left, right = round_to(left, unit_type), round_to(right, unit_type)
    return np.asarray(np.exp(left @ right.swapaxes(-1, -2) / root_d - root_d))


def row_factors(keys: Array, eps: float, diagonal: str) -> Array:
    """Return what rows of E and V are multiplied by: 1/L_ii, ``(KV, N, 1)`` in the type of the keys ``(KV, N, D)``.

    Args:
        keys: Raw keys.
        eps: Added to the mean square of a key.
        diagonal: ``unit`` or ``training``, as :attr:`~lucid_deploy.model.config.LucidConfig.diagonal`.
    """
    if diagonal == UNIT:
        return np.ones_like(keys[..., :1])
    added = keys.dtype.type(eps)
    ratio = added / (np.mean(np.square(keys), axis=-1, keepdims=True) + added)
    return np.asarray(np.exp(keys.dtype.type(math.sqrt(keys.shape[-1])) * ratio))


def substitute(e: Array, values: Array, past: Array | None = None) -> Array:
    """Solve ``L Y = V`` row by row: ``Y_i = V_i − Σ_{j<i} E_ij Y_j``.

    Args:
        e: ``(KV, N, P + N)``; only what is left of the diagonal counts.
        values: V of the new tokens, ``(KV, N, F)``.
        past: Y of the cached tokens, ``(KV, P, F)``; None: P = 0.

    Returns:
        Y of the new tokens, float64 ``(KV, N, F)``.
    """
    heads, n, width = values.shape
    start = e.shape[2] - n
    y = np.empty((heads, start + n, width))
    if past is not None:
        y[:, :start] = past
    for i in range(n):
        stop = start + i
        y[:, stop] = values[:, i] - (e[:, i, None, :stop] @ y[:, :stop])[:, 0]  # (KV, F)
    return y[:, start:]
