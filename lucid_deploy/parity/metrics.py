"""Measure the error of a tensor against its reference, in float64 with numpy alone.

Every tensor has one row per position: ``(B, T, F)``, B batch rows, T positions, F features. A reference has one batch
row, with which every batch row of the other tensor is compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lucid_deploy.runtimes.session import Array


@dataclass(frozen=True)
class TensorMetrics:
    """Errors of one tensor, each from the worst batch row."""

    max_abs: float  # largest absolute difference of an element
    relative_l2: float  # norm of the difference over the norm of the reference, both of the whole tensor
    worst_position_error: float  # largest relative L2 error of a position
    worst_position: int  # index of that position among the rows; in a Comparison, position in the sequence


@dataclass(frozen=True)
class LogitMetrics:
    """Differences of distributions over the vocabulary, counted over positions and batch rows."""

    kl_mean: float  # Kullback-Leibler divergence KL(reference ‖ tensor), in nats
    kl_max: float
    positions: int
    agreed: int  # positions with the same most likely token
    near_ties: int  # positions with another token, whose reference logit is within tie_margin of the largest
    disagreed: int  # all other positions with another token: beyond tie_margin, or with logits that are not finite


def position_errors(actual: Array, reference: Array, accumulated: bool = False) -> Array:
    """Return the relative L2 error of every position, ``‖actual − reference‖ / scale``.

    The scale is the norm of the reference at that position. For tensors that are ``accumulated`` it is the largest norm
    at that position or any before it. Y is such a tensor: ``Y_i = V_i − Σ_{j<i} L_ij Y_j`` with ``0 ≤ L_ij ≤ 1``. Where
    a token repeats without position encoding, the terms cancel almost entirely, and Y_i consists of the rounding errors
    of V_i and Y_j in every precision, float64 included. Attention's output is a weighted sum of rows Y_j, to which so
    small a row adds almost nothing, so its error is measured against the largest row so far.

    Returns:
        Float64 ``(T,)``, the maximum over the batch rows. NaN where a value is NaN; where the scale is zero, 0 if the
        actual row is zero too, else infinity.
    """
    return _errors(actual.astype(np.float64) - reference, reference, accumulated)


def _errors(difference: Array, reference: Array, accumulated: bool) -> Array:
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        distance = _norms(difference)  # (B, T)
        scale = _norms(reference.astype(np.float64))  # (1, T)
        if accumulated:
            scale = np.maximum.accumulate(scale, axis=-1)
        errors = np.where((scale == 0) & (distance == 0), 0.0, distance / scale)
    return np.asarray(errors.max(axis=0))  # max keeps NaN


def _norms(rows: Array) -> Array:
    """Return the L2 norms over the last axis without allocating another array of the rows' size."""
    return np.asarray(np.sqrt(np.einsum("...f,...f->...", rows, rows)))


def zero_errors(reference: Array, accumulated: bool = False) -> Array:
    """Return the :func:`position_errors` of a tensor of zeros: float64 ``(T,)``, 0 where the reference is zero."""
    norms = _norms(reference[0].astype(np.float64))  # (T,)
    scale = np.maximum.accumulate(norms) if accumulated else norms
    return np.divide(norms, scale, out=np.zeros_like(norms), where=scale > 0)


def tensor_metrics(actual: Array, reference: Array, accumulated: bool = False) -> tuple[TensorMetrics, Array]:
    """Return the errors of a whole tensor, and the relative L2 error of each of its positions, float64 ``(T,)``."""
    actual, reference = actual.astype(np.float64), reference.astype(np.float64)
    flat, target = actual.reshape(actual.shape[0], -1), reference.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        off = flat - target
        difference, norm = _norms(off), _norms(target)
        relative = np.where((norm == 0) & (difference == 0), 0.0, difference / norm)
        max_abs = np.abs(off).max()
    errors = _errors(off.reshape(actual.shape), reference, accumulated)
    worst = int(np.argmax(np.where(np.isnan(errors), np.inf, errors)))
    metrics = TensorMetrics(
        max_abs=float(max_abs),
        relative_l2=float(relative.max()),
        worst_position_error=float(errors[worst]),
        worst_position=worst,
    )
    return metrics, errors


def kl_divergence(actual: Array, reference: Array) -> Array:
    """Return the KL divergence ``Σ p·(log p − log q)`` in nats over the last axis, in float64.

    p is the softmax of the reference, q that of the actual logits. Clipped at zero, since rounding may give −1e-17.
    """
    log_q, log_p = log_softmax(actual), log_softmax(reference)
    with np.errstate(invalid="ignore"):
        return np.maximum((np.exp(log_p) * (log_p - log_q)).sum(axis=-1), 0.0)


def log_softmax(logits: Array) -> Array:
    """Return the log-softmax of logits over the last axis, in float64."""
    with np.errstate(invalid="ignore"):
        shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def tie_margin(reference: Array, gate: float) -> float:
    """Return the largest difference of two logits ``(vocab,)`` whose order an error within the gate may reverse.

    If the logits' error e has norm ``‖e‖ ≤ gate·‖reference‖``, it changes the difference of two logits by at most
    ``|e_a − e_b| ≤ √2·‖e‖``.
    """
    return math.sqrt(2.0) * gate * float(np.linalg.norm(reference.astype(np.float64)))


def logit_metrics(actual: Array, reference: Array, gate: float) -> LogitMetrics:
    """Compare logits ``(B, T, vocab)`` with those of the reference ``(1, T, vocab)``.

    The gate, the largest allowed relative L2 error of a position, decides which differing tokens are near-ties.
    """
    divergence = kl_divergence(actual, reference)  # (B, T)
    chosen, wanted = np.argmax(actual, axis=-1), np.argmax(reference[0], axis=-1)  # (B, T), (T,)
    # argmax of logits with NaN points at the NaN, which must not count as a tie.
    finite = np.all(np.isfinite(actual), axis=(0, 2)).tolist()  # (T,)
    differing = np.argwhere(np.not_equal(chosen, wanted))
    ties = 0
    for b, t in differing:
        row = reference[0, t]
        margin = float(row[wanted[t]]) - float(row[chosen[b, t]])
        ties += finite[t] and margin <= tie_margin(row, gate)
    return LogitMetrics(
        kl_mean=float(divergence.mean()),
        kl_max=float(divergence.max()),
        positions=int(chosen.size),
        agreed=int(chosen.size) - len(differing),
        near_ties=ties,
        disagreed=len(differing) - ties,
    )
