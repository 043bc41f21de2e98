"""A whole model of two layers as formulas in numpy, for any type and any operators, and the cases made of it.

``tiny_graph.py`` writes the same model as prefill and decode graphs, whose tensors have an artifact's names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from lucid_deploy.conformance.formulas import FORMULAS, Array, Compute, exact
from lucid_deploy.conformance.problems import EPSILON, NUMPY
from lucid_deploy.plugins import table

LAYERS, HIDDEN, INNER, VOCABULARY = 2, 16, 24, 29


@dataclass(frozen=True)
class TinyModel:
    """The shape and layers of a tiny model."""

    width: int = 6  # of a head
    rope: bool = True  # whether queries and keys are rotated by their positions, which needs an even width
    heads: int = 2  # key/value heads
    groups: int = 2  # query heads per key/value head

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
    """The type and the operators that a model is computed with."""

    operators: Mapping[str, Compute]  # our operators by name
    stored: Callable[[Array], Array]  # rounds a tensor to the type it is stored in
    norm: Callable[[Array], Array]  # rounds to the type in which norms, rotation angles and logits are computed


def run_model(
    model: TinyModel, weights: Mapping[str, Array], feed: Mapping[str, Array], by: Arithmetic
) -> dict[str, Array]:
    """Run the model on the inputs of a graph.

    Args:
        model: The model's shape.
        weights: See :meth:`TinyModel.weights`.
        feed: The inputs by name, as an artifact's graphs have them; with ``cache_length`` the caches are buffers.
        by: The type and the operators to compute with.

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
    """Return the operators' bool mask; with buffers, False at rows from ``cache_length`` on, True at the new token."""
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


EXACT = Arithmetic(FORMULAS, exact, exact)
_ROTATED, _NO_ROPE = TinyModel(), TinyModel(width=7, rope=False)
_TEXT = "three words, no rotation, a width of 7"


@dataclass(frozen=True)
class ModelProblem:
    """One case of a whole model."""

    name: str  # of the case
    text: str  # what is special about it
    stage: str  # prefill, decode or decode_static
    new: int = 1  # new tokens
    past: int = 0  # tokens of the cache, which an exact prefill made
    room: int = 0  # rows of a static cache's buffers; those after the cache's tokens hold random numbers
    words: int = VOCABULARY  # size of the vocabulary to draw from; a small one repeats tokens
    padded: bool = False  # whether the last batch row begins with padding
    batch: int = 1  # B
    dtype: str = "float32"  # of weights, arithmetic and cache; exceptions: see tiny_graph
    model: TinyModel = _ROTATED  # shape of the model


MODEL_PROBLEMS = (
    ModelProblem("prefill", "a prompt over a boundary of 32 tokens", "prefill", new=37),
    ModelProblem("prefill_one_token", "a prompt of one token", "prefill"),
    ModelProblem("prefill_past_padded", "a second chunk, padding on the left", "prefill", 9, 6, padded=True, batch=2),
    ModelProblem("prefill_repeated", _TEXT, "prefill", 34, words=3, model=_NO_ROPE),
    ModelProblem("prefill_ungrouped", "no grouped heads", "prefill", 12, model=TinyModel(width=4, groups=1)),
    ModelProblem("prefill_float16", "a second chunk in float16", "prefill", 20, 4, dtype="float16"),
    ModelProblem("prefill_bfloat16", "a second chunk in bfloat16", "prefill", 20, 4, dtype="bfloat16"),
    ModelProblem("decode", "a token after a prompt", "decode", past=21),
    ModelProblem("decode_padded", "padding on the left", "decode", past=14, padded=True, batch=2),
    ModelProblem("decode_repeated", _TEXT, "decode", past=19, words=3, model=_NO_ROPE),
    ModelProblem("decode_float16", "a token in float16", "decode", past=12, dtype="float16"),
    ModelProblem("decode_static", "buffers that are not full", "decode_static", past=9, room=14, batch=2, padded=True),
)


def model_inputs(problem: ModelProblem, weights: dict[str, Array]) -> dict[str, Array]:
    """Return a problem's inputs by name, in the graph's order; they are the same every time."""
    random = np.random.RandomState(len(problem.name) + 100 * problem.past + problem.new)
    total, batch = problem.past + problem.new, problem.batch
    ids = random.randint(0, problem.words, (batch, total)).astype(np.int64)
    mask = np.ones((batch, total), np.int64)
    if problem.padded:
        mask[-1, :3] = 0
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    empty = np.zeros((batch, problem.model.heads, 0, problem.model.width), NUMPY[problem.dtype])
    caches = {f"past_key_values.{layer}.{kind}": empty for layer in range(LAYERS) for kind in ("key", "value")}
    if problem.past:
        before = slice(0, problem.past)
        first = {"input_ids": ids[:, before], "attention_mask": mask[:, before], "position_ids": positions[:, before]}
        made = run_model(problem.model, weights, {**first, **caches}, EXACT)
        caches = {
            name: np.ascontiguousarray(made[name.replace("past_key_values", "present")].astype(empty.dtype))
            for name in caches
        }
    feed = {"input_ids": ids[:, problem.past :], "attention_mask": mask}
    if problem.model.rope:
        feed["position_ids"] = positions[:, problem.past :]
    if problem.stage == "decode_static":
        feed["attention_mask"] = np.ones((batch, problem.room), np.int64)
        feed["attention_mask"][:, : problem.past] = mask[:, : problem.past]
        caches = {name: _buffer(rows, problem.room, random) for name, rows in caches.items()}
        caches["cache_length"] = np.full(batch, problem.past, np.int64)
    return {name: np.ascontiguousarray(array) for name, array in {**feed, **caches}.items()}


def _buffer(rows: Array, room: int, random: np.random.RandomState) -> Array:
    shape = (*rows.shape[:2], room - rows.shape[2], rows.shape[3])
    return np.concatenate([rows, random.standard_normal(shape).astype(rows.dtype)], axis=2)
