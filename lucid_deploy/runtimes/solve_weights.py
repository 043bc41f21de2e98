"""The triangular system that a LUCID layer solves over a text, in float64, from the keys in its cache."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lucid_deploy.cache.storage import decoded_layout
from lucid_deploy.errors import LucidError
from lucid_deploy.plugins.table import TRAINING
from lucid_deploy.runtimes.session import Array, Session


class PlaceError(LucidError):
    """There is no such layer or head, or the layer solves no system."""

    def __init__(self, message: str, argument: str) -> None:
        super().__init__(message)
        self.argument = argument  # which of both is wrong: layer or head


@dataclass(frozen=True)
class SolveWeights:
    """L Y = V of one key/value head over N tokens, so that Y_i = (V_i − Σ_{j<i} L_ij Y_j) / L_ii; all float64."""

    subtracted: Array  # (N, N), L below its diagonal: how much of Y_j token i subtracts
    diagonal: Array  # (N,), L_ii; 1 unless the artifact has the diagonal that training divides by
    coefficients: Array  # (N, N), L⁻¹, lower triangular: how much of V_j is in Y_i


def solving_layers(session: Session[Any]) -> dict[int, int]:
    """Return the layers that solve a system, each with the number of its key/value heads."""
    heads = {}
    for index, layer in enumerate(session.layers):
        if layer.solves:
            heads[index] = next(tensor for tensor in layer.cache if tensor.name == "key").shape[0]
    return heads


def solve_weights(
    session: Session[Any], ids: list[int], layer: int, head: int, adapter: str | None = None
) -> SolveWeights:
    """Run a text, with an adapter if one is named, and return what one head of one layer solves over it."""
    heads = solving_layers(session)
    if layer not in heads:
        raise PlaceError(_no_such_layer(session, layer, list(heads)), "layer")
    if not 0 <= head < heads[layer]:
        raise PlaceError(f"Layer {layer} has key/value heads 0 to {heads[layer] - 1}, not {head}.", "head")
    cache = session.empty_cache(1, np.array([session.adapter_id(adapter)], np.int64))
    session.prefill(np.array([ids], dtype=np.int64), cache)
    names = [tensor.name for tensor in decoded_layout(session.layout[layer])]
    keys = session.layer_arrays(cache)[layer][names.index("key")][0, head]  # (N, D)
    training = session.layers[layer].diagonal == TRAINING
    return system_of(keys[: len(ids)], session.config.rms_norm_eps, training)


def system_of(keys: Array, eps: float, training_diagonal: bool = False) -> SolveWeights:
    """Return the system over raw keys ``(N, D)``: L = tril(exp(K̂K̂ᵀ/√D − √D)), K̂ = K / sqrt(mean(K²) + eps).

    L_ii is 1, or with ``training_diagonal`` what the formula gives, slightly below.
    """
    raw = keys.astype(np.float64)
    root = math.sqrt(raw.shape[1])
    normed = raw / np.sqrt(np.square(raw).mean(axis=1, keepdims=True) + eps)
    system = np.tril(np.exp(normed @ normed.T / root - root))
    diagonal = system.diagonal().copy() if training_diagonal else np.ones(len(raw))
    np.fill_diagonal(system, 0.0)
    inverse = np.tril(np.linalg.inv(system + np.diag(diagonal)))
    return SolveWeights(system, diagonal, inverse)


def _no_such_layer(session: Session[Any], layer: int, solving: list[int]) -> str:
    named = f"Layers that solve a system: {', '.join(map(str, solving))}."
    if not solving:
        named = "No layer of this model solves a system."
    if 0 <= layer < len(session.layers):
        return f"Layer {layer} is of the kind {session.layers[layer].kind!r}, which solves no system. {named}"
    return f"The model has layers 0 to {len(session.layers) - 1}, not {layer}. {named}"
