"""A whole model of two layers, as its formulas say it: numpy alone, in any type, over any operators.

``tiny_graph.py`` writes the same model as prefill and decode graphs, whose tensors have an artifact's names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from lucid_deploy.conformance.formulas import Array, Compute
from lucid_deploy.conformance.problems import EPSILON
from lucid_deploy.plugins import table

LAYERS, HIDDEN, INNER, VOCABULARY = 2, 16, 24, 29


@dataclass(frozen=True)
class TinyModel:
    """What a tiny model is.

    Attributes:
        width: Of a head.
        rope: Whether queries and keys are rotated by their positions; the width is even then.
        heads: Key/value heads.
        groups: Query heads to each.
    """

    width: int = 6
    rope: bool = True
    heads: int = 2
    groups: int = 2

    def weights(self) -> dict[str, Array]:
        """Return the weights by name, float32; matrices are ``[in, out]``. Keys correlate, as trained ones do."""
        random = np.random.RandomState(7 + self.width)
        inner, outer = self.width * self.heads, self.width * self.heads * self.groups

        def matrix(rows: int, columns: int, size: float = 1.0) -> Array:
            return (size * random.standard_normal((rows, columns)) / np.sqrt(rows)).astype(np.float32)

        common = random.standard_normal(HIDDEN)
        found = {"embedding": (0.5 * random.standard_normal((VOCABULARY, HIDDEN)) + common).astype(np.float32)}
        for layer in range(LAYERS):
            found |= {
                f"{layer}.norm": (1 + 0.1 * random.standard_normal(HIDDEN)).astype(np.float32),
                f"{layer}.query": matrix(HIDDEN, outer, 2),
                f"{layer}.key": matrix(HIDDEN, inner, 2),
                f"{layer}.value": matrix(HIDDEN, inner, 2),
                f"{layer}.out": matrix(outer, HIDDEN),
                f"{layer}.mlp_norm": (1 + 0.1 * random.standard_normal(HIDDEN)).astype(np.float32),
                f"{layer}.gate": matrix(HIDDEN, INNER),
                f"{layer}.up": matrix(HIDDEN, INNER),
                f"{layer}.down": matrix(INNER, HIDDEN),
            }
        found |= {"norm": np.ones(HIDDEN, np.float32), "head": matrix(HIDDEN, VOCABULARY)}
        if self.rope:
            found["frequencies"] = (100.0 ** -(np.arange(0, self.width, 2) / self.width)).astype(np.float32)
        return found


@dataclass(frozen=True)
class Arithmetic:
    """In what a model is computed.

    Attributes:
        operators: Our operators by name.
        stored: Rounds a tensor to the type it is stored in.
        norm: Rounds what a norm, a rotation and the logits are computed in.
    """

    operators: Mapping[str, Compute]
    stored: Callable[[Array], Array]
    norm: Callable[[Array], Array]


def run_model(
    model: TinyModel, weights: Mapping[str, Array], feed: Mapping[str, Array], by: Arithmetic
) -> dict[str, Array]:
    """Run a graph's inputs through the model.

    Args:
        model: What it is.
        weights: See :meth:`TinyModel.weights`.
        feed: The inputs by name, as an artifact's graphs have them; with ``cache_length`` the caches are buffers.
        by: The arithmetic.

    Returns:
        ``logits`` ``(B, N, vocabulary)`` of all tokens, and the present keys and values by name.
    """
    found: dict[str, Array] = {}
    at = {name: by.stored(array) for name, array in weights.items()}
    x = at["embedding"][feed["input_ids"]]  # (B, N, hidden)
    for layer in range(LAYERS):
        h = _norm(x, at[f"{layer}.norm"], by)
        q, k, v = (
            _heads(by.stored(h @ at[f"{layer}.{name}"]), model.width) for name in ("query", "key", "value")
        )  # (B, heads, N, D)
        if model.rope:
            q, k = (_rotated(t, feed["position_ids"], weights["frequencies"], by) for t in (q, k))
        o = _attention(layer, (q, k, v), feed, found, by)
        x = by.stored(x + by.stored(o.swapaxes(1, 2).reshape(*x.shape[:2], -1) @ at[f"{layer}.out"]))
        h = _norm(x, at[f"{layer}.mlp_norm"], by)
        gate = by.stored(h @ at[f"{layer}.gate"])
        gate = by.stored(gate * by.stored(1 / (1 + np.exp(-gate))))
        x = by.stored(x + by.stored(by.stored(gate * by.stored(h @ at[f"{layer}.up"])) @ at[f"{layer}.down"]))
    return {"logits": by.norm(_norm(x, at["norm"], by)) @ by.norm(weights["head"]), **found}


def visible(feed: Mapping[str, Array]) -> Array:
    """Return the operators' mask, bool: of a buffer's rows those before its length, and the new token."""
    mask = feed["attention_mask"] != 0
    if "cache_length" not in feed:
        return np.asarray(mask)
    mask = mask & (np.arange(mask.shape[1]) < feed["cache_length"][:, None])
    return np.concatenate([mask, np.ones((len(mask), 1), bool)], axis=1)


def _attention(
    layer: int, new: tuple[Array, Array, Array], feed: Mapping[str, Array], found: dict[str, Array], by: Arithmetic
) -> Array:
    q, k, v = new
    past = [feed[f"past_key_values.{layer}.{kind}"] for kind in ("key", "value")]
    mask, names = visible(feed), (f"present.{layer}.key", f"present.{layer}.value")
    if k.shape[2] > 1 or ("cache_length" not in feed and past[0].shape[2] == 0):
        (y,) = by.operators[table.PRECONDITION.name](k, v, *past, mask, epsilon=EPSILON)
        for name, before, rows in zip(names, past, (k, y), strict=True):
            found[name] = np.concatenate([before, rows], axis=2)
        return by.operators[table.CAUSAL_ATTENTION.name](q, found[names[0]], found[names[1]], mask)[0]
    o, y = by.operators[table.DECODE_ATTENTION.name](q, k, v, *past, mask, epsilon=EPSILON)
    for name, before, row in zip(names, past, (k, y), strict=True):
        if "cache_length" in feed:
            (found[name],) = by.operators[table.SCATTER_ROW.name](before, row, feed["cache_length"])
        else:
            found[name] = np.concatenate([before, row], axis=2)
    return o


def _norm(x: Array, weight: Array, by: Arithmetic) -> Array:
    x = by.norm(x)
    return by.stored(by.stored(x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON)) * weight)


def _heads(x: Array, width: int) -> Array:
    return x.reshape(*x.shape[:2], -1, width).swapaxes(1, 2)


def _rotated(x: Array, positions: Array, frequencies: Array, by: Arithmetic) -> Array:
    angle = by.norm(positions[:, None, :, None]) * by.norm(frequencies)  # (B, 1, N, D/2)
    cos, sin = by.stored(np.cos(angle)), by.stored(np.sin(angle))
    first, second = np.split(x, 2, axis=-1)
    rotated = (
        by.stored(by.stored(first * cos) - by.stored(second * sin)),
        by.stored(by.stored(second * cos) + by.stored(first * sin)),
    )
    return np.concatenate(rotated, axis=-1)
