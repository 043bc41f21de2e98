"""The conditioning of every head's solve, from the reference's keys: by how much L⁻¹ can amplify an error.

In float64 on at most ``TOKENS`` tokens, so that the dense matrices stay small; since L is triangular, its leading block
is the L of the leading tokens. With training's diagonal D the matrix is D^-½ L D^-½, whose diagonal is 1: it is the one
that is solved, with rows of V and of Y over the root of D.

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
from lucid_deploy.parity.targets import CallCounter, Progress, Targets, explained_scenarios
from lucid_deploy.plugins.table import UNIT
from lucid_deploy.runtimes.session import Array

NORM_BOUND = 2.0  # ‖L⁻¹‖₂ never exceeds it, see docs/mathematics.md


@dataclass(frozen=True)
class HeadStats:
    """The solve of one key/value head, from the float64 reference.

    Attributes:
        scenario: Name of the token sequence.
        layer: Its layer.
        head: Its index among the key/value heads.
        tokens: Tokens that were analysed.
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
    """Measure every head's L on the reference's keys, in the scenarios that causes are looked for in."""
    solving = sum(layer.solves for layer in layers)
    if not solving:
        return
    scenarios = explained_scenarios(targets)
    meter = CallCounter(progress, "Conditioning of the solves", len(scenarios) * solving)
    for target in scenarios:
        for tensor, rows in target.reference.tensors.items():
            if tensor.is_keys and layers[tensor.layer].solves:
                keys = rows.values[0].reshape(-1, config.num_key_value_heads, config.head_dim).swapaxes(0, 1)
                diagonal = layers[tensor.layer].diagonal
                yield from head_stats(target.scenario.name, tensor.layer, keys, config.rms_norm_eps, diagonal)
                meter.tick()


def head_stats(scenario: str, layer: int, keys: Array, eps: float, diagonal: str = UNIT) -> list[HeadStats]:
    """Measure every head of a layer on its raw keys, float64 ``(KV, T, D)``; the first ``TOKENS`` count."""
    keys = keys[:, :TOKENS]
    heads, tokens, width = keys.shape
    below, identity = np.tri(tokens, k=-1, dtype=bool), np.eye(tokens)
    root = np.sqrt(row_factors(keys, eps, diagonal))  # (KV, T, 1)
    unit, e = normalized(keys, eps), kernel(keys, keys, eps) * root * root.swapaxes(1, 2)  # (KV, T, D), (KV, T, T)
    inverses = substitute(e, np.broadcast_to(identity, e.shape))  # (KV, T, T)
    found = []
    for head in range(heads):
        inverse, lower = inverses[head], np.where(below, e[head], identity)
        norm = _spectral_norm(inverse)
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
                condition=norm * _spectral_norm(lower),
                correlation_mean=float(pairs.mean()),
                correlation_max=float(pairs.max()),
            )
        )
    return found


def _spectral_norm(matrix: Array) -> float:
    """Return ``‖A‖₂``, from the eigenvalues of ``AᵀA``: several times as fast as singular values."""
    return math.sqrt(np.linalg.eigvalsh(matrix.T @ matrix)[-1])
