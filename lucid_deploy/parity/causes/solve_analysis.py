"""Where an error in Y comes from: exact solves in float64 with one factor at a time replaced.

All of it in float64 on at most ``TOKENS`` tokens, so that the dense matrices stay small; since L is triangular, its
leading block is the L of the leading tokens. The formulas are in docs/verification.md.

Shapes: KV key/value heads, P cached tokens, N new tokens, T = P + N, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lucid_deploy.parity.metrics import round_to
from lucid_deploy.plugins.table import UNIT
from lucid_deploy.runtimes.session import Array

TOKENS = 512  # of a sequence that are analysed: a head's dense matrices are 2 MiB each
EXCESS = 4.0  # multiple of what rounding explains from which on a solve is wrong, as in gates

Rounding = Callable[[Array], Array]


@dataclass(frozen=True)
class ErrorShares:
    """Where a layer's error in Y comes from; every error is a norm over all rows, relative to the reference's Y.

    Attributes:
        layer: The layer.
        feeding: How the tokens were fed.
        total: The candidate's Y against the reference's.
        keys: Exact solve with the candidate's K, the reference's V.
        values: Exact solve with the reference's K, the candidate's V.
        inputs: Exact solve with the candidate's K and V.
        solve: The candidate's Y against that exact solve on its own K and V.
        e_expected: What E (scores and exponential) computed in float32 costs on these K and V.
        y_expected: What rounding Y, and reading it again rounded, costs on them.
        inputs_share: Share of the total that the inputs explain; may leave 0 to 1 where the parts cancel.
        e_share: Share of E: what the solve adds is divided in the proportion of the two expected errors' squares.
        y_share: Share of Y.
        unexplained_share: Share of what the solve adds that is far beyond what rounding explains. The four sum to 1.
    """

    layer: int
    feeding: str
    total: float
    keys: float
    values: float
    inputs: float
    solve: float
    e_expected: float
    y_expected: float
    inputs_share: float
    e_share: float
    y_share: float
    unexplained_share: float

    @property
    def excess(self) -> float:
        """The solve's error in multiples of what float32 scores and a rounded Y explain; large: the solve is wrong."""
        return _excess(self.solve, self.e_expected, self.y_expected)


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


def substitute(e: Array, values: Array, past: Array | None = None, rounding: Rounding | None = None) -> Array:
    """Solve ``L Y = V`` row by row: ``Y_i = V_i − Σ_{j<i} E_ij Y_j``.

    Args:
        e: ``(KV, N, P + N)``; only what is left of the diagonal counts.
        values: V of the new tokens, ``(KV, N, F)``.
        past: Y of the cached tokens, ``(KV, P, F)``; None: P = 0.
        rounding: Applied to each row before later rows read it.

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
        row = values[:, i] - (e[:, i, None, :stop] @ y[:, :stop])[:, 0]  # (KV, F)
        y[:, stop] = row if rounding is None else rounding(row)
    return y[:, start:]


def error_shares(
    layer: int,
    feeding: str,
    reference: tuple[Array, Array, Array],
    candidate: tuple[Array, Array, Array],
    eps: float,
    store: Rounding,
    stored_each_row: bool,
    diagonal: str = UNIT,
) -> ErrorShares:
    """Split a layer's error in Y into what came in and what the solve added.

    Args:
        layer: Index of the layer.
        feeding: Name for reports.
        reference: Its K, V and Y in float64, each ``(KV, T, D)``; the first ``TOKENS`` are looked at.
        candidate: The candidate's, as computed and stored.
        eps: The model's ``rms_norm_eps``.
        store: Rounds rows of Y, ``(KV, n, D)``, as the cache does.
        stored_each_row: Whether every row was stored before the next read it (decoding), or the whole solve ran in
            float32 and was rounded at its end (one prefill).
        diagonal: That of the layer's system, as in its description.
    """
    k_ref, v_ref, y_ref = (array[:, :TOKENS].astype(np.float64) for array in reference)
    k, v, y = (array[:, :TOKENS].astype(np.float64) for array in candidate)
    with np.errstate(all="ignore"):  # a candidate with NaN gives NaN here, which reports show as such
        f_ref, f = (row_factors(keys, eps, diagonal) for keys in (k_ref, k))
        e_ref, e = kernel(k_ref, k_ref, eps) * f_ref, kernel(k, k, eps) * f
        exact = substitute(e, v * f)
        inputs, total = exact - y_ref, y - y_ref
        k32 = k.astype(np.float32)
        single = (kernel(k32, k32, eps) * row_factors(k32, eps, diagonal)).astype(np.float64)
        each = (lambda row: store(row[:, None])[:, 0]) if stored_each_row else (lambda row: round_to(row, "float32"))
        rounded = store(substitute(e, v * f, rounding=each))
        scale = np.linalg.norm(y_ref)
        size = {
            "total": total,
            "keys": substitute(e, v_ref * f) - y_ref,
            "values": substitute(e_ref, v * f_ref) - y_ref,
            "inputs": inputs,
            "solve": y - exact,
            "e_expected": substitute(single, v * f) - exact,
            "y_expected": rounded - exact,
        }
        relative = {name: float(np.linalg.norm(error) / scale) for name, error in size.items()}
        energy = float(np.vdot(total, total))
        share = float(np.vdot(inputs, total)) / energy if energy else 0.0
        squares = relative["e_expected"] ** 2, relative["y_expected"] ** 2
        of_e = squares[0] / sum(squares) if sum(squares) else 0.0
    rest = 1 - share if energy else 0.0
    excess = _excess(relative["solve"], relative["e_expected"], relative["y_expected"])
    explained = rest if excess <= EXCESS else rest / excess**2
    return ErrorShares(
        layer,
        feeding,
        **relative,
        inputs_share=share,
        e_share=explained * of_e,
        y_share=explained * (1 - of_e),
        unexplained_share=rest - explained,
    )


def _excess(solve: float, e_expected: float, y_expected: float) -> float:
    expected = math.hypot(e_expected, y_expected)
    return solve / expected if expected else (0.0 if solve == 0 else math.inf)
