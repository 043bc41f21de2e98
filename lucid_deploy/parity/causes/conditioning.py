"""The conditioning of every head's solve, from the reference's keys: by how much L⁻¹ can amplify an error.

In float64 on at most ``TOKENS`` tokens, so that the dense matrices stay small; since L is triangular, its leading block
is the L of the leading tokens. With training's diagonal D it is D^-½ L D^-½ that is looked at, whose diagonal is 1: the
solve is that of it, with rows of V and of Y over the root of D.

Shapes: KV key/value heads, T tokens, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.description import LayerDescription
from lucid_deploy.parity.causes.solve_analysis import TOKENS, kernel, normalized, row_factors, substitute
from lucid_deploy.parity.measure import phases
from lucid_deploy.parity.measure.progress import CallCounter, Progress
from lucid_deploy.parity.measure.targets import Targets, explained_scenarios
from lucid_deploy.plugins.table import UNIT
from lucid_deploy.runtimes.session import Array

NORM_BOUND = 2.0  # ‖L⁻¹‖₂ never exceeds it, see docs/mathematics.md
RESIDUAL = 1e-9  # of a Ritz pair, relative to its value
CHECK_EVERY = 8  # steps between two looks at it


@dataclass(frozen=True)
class HeadStats:
    """The preconditioner of one key/value head, from the float64 reference.

    Attributes:
        scenario: Name of the token sequence.
        layer: Its layer.
        head: Its index among the key/value heads.
        tokens: Tokens that were looked at.
        largest_inverse: Largest ``|L⁻¹|`` off the diagonal (on it, L⁻¹ is 1).
        inverse_norm: ``‖L⁻¹‖₂``, at most 2.
        inverse_row_sum: ``‖L⁻¹‖_∞``, the largest sum of a row's absolute values.
        condition: ``‖L‖₂ ‖L⁻¹‖₂``.
        correlation_mean: Mean of ``k̂_i·k̂_j/D`` over pairs of different tokens.
        correlation_max: Its largest value; 1 for a repeated key.
    """

    scenario: str
    layer: int
    head: int
    tokens: int
    largest_inverse: float
    inverse_norm: float
    inverse_row_sum: float
    condition: float
    correlation_mean: float
    correlation_max: float


def conditioning(
    targets: Targets, config: LucidConfig, layers: Sequence[LayerDescription], progress: Progress | None = None
) -> Iterator[HeadStats]:
    """Measure every head's preconditioner on the reference's keys, in the scenarios worth a closer look.

    Args:
        targets: What the reference computed.
        config: The model's shape.
        layers: What its layers are; those without a solve have no preconditioner.
        progress: Called with (what runs, layers done, in all).
    """
    scenarios = explained_scenarios(targets)
    if not any(layer.solves for layer in layers):
        return  # a phase in which nothing runs would be announced
    meter = CallCounter(progress, phases.CONDITIONING, len(scenarios) * sum(layer.solves for layer in layers))
    for target in scenarios:
        for tensor, rows in target.reference.tensors.items():
            if tensor.is_keys and layers[tensor.layer].solves:
                keys = rows.values[0].reshape(-1, config.num_key_value_heads, config.head_dim).swapaxes(0, 1)
                diagonal = layers[tensor.layer].diagonal
                yield from head_stats(target.scenario.name, tensor.layer, keys, config.rms_norm_eps, diagonal)
                meter.tick()


def head_stats(scenario: str, layer: int, keys: Array, eps: float, diagonal: str = UNIT) -> list[HeadStats]:
    """Measure the preconditioner of every head of a layer.

    Args:
        scenario: Name of the token sequence.
        layer: Index of the layer.
        keys: The reference's raw keys, float64 ``(KV, T, D)``; the first ``TOKENS`` are looked at.
        eps: The model's ``rms_norm_eps``.
        diagonal: That of the layer's system.
    """
    keys = keys[:, :TOKENS]
    heads, tokens, width = keys.shape
    below, identity = np.tri(tokens, k=-1, dtype=bool), np.eye(tokens)
    root = np.sqrt(row_factors(keys, eps, diagonal))  # (KV, T, 1)
    unit, e = normalized(keys, eps), kernel(keys, keys, eps) * root * root.swapaxes(1, 2)  # (KV, T, D), (KV, T, T)
    inverses = substitute(e, np.broadcast_to(identity, e.shape))  # (KV, T, T)
    found = []
    for head in range(heads):
        inverse, lower = inverses[head], np.where(below, e[head], identity)
        norm = largest_singular_value(inverse)
        pairs = (unit[head] @ unit[head].T / width)[below] if tokens > 1 else np.zeros(1)
        found.append(
            HeadStats(
                scenario=scenario,
                layer=layer,
                head=head,
                tokens=tokens,
                largest_inverse=float(np.abs(np.where(below, inverse, 0.0)).max()),
                inverse_norm=norm,
                inverse_row_sum=float(np.abs(inverse).sum(axis=1).max()),
                condition=norm * largest_singular_value(lower),
                correlation_mean=float(pairs.mean()),
                correlation_max=float(pairs.max()),
            )
        )
    return found


def largest_singular_value(matrix: Array) -> float:
    """Return ``‖A‖₂`` of a square matrix ``(n, n)`` to a relative 1e-9, by the Lanczos method on ``AᵀA``.

    A full decomposition takes 8 to 20 times as long, on all cores, and a verification needs one number of each of
    hundreds of matrices. A Ritz value is within its residual of an eigenvalue of ``AᵀA``.
    """
    n = len(matrix)
    basis = np.zeros((n, n))
    basis[0] = np.random.default_rng(0).standard_normal(n)  # any start that is not orthogonal to the wanted vector
    basis[0] /= np.linalg.norm(basis[0])
    diagonal, beside = np.zeros(n), np.zeros(n)
    for step in range(n):
        w = matrix.T @ (matrix @ basis[step])  # (n,)
        diagonal[step] = w @ basis[step]
        for _ in range(2):  # once leaves what rounding lets through
            w -= basis[: step + 1].T @ (basis[: step + 1] @ w)
        beside[step] = np.linalg.norm(w)
        exact = step == n - 1 or beside[step] <= np.finfo(float).eps * diagonal[: step + 1].max()
        if exact or step % CHECK_EVERY == CHECK_EVERY - 1:
            between = beside[:step]
            small = np.diag(diagonal[: step + 1]) + np.diag(between, 1) + np.diag(between, -1)
            values, vectors = np.linalg.eigh(small)
            if exact or beside[step] * abs(vectors[-1, -1]) <= RESIDUAL * values[-1]:
                return math.sqrt(values[-1])
        basis[step + 1] = w / beside[step]
    raise AssertionError("the last step is exact")
