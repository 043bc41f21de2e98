"""Whole tiny models' cases: prefill and decode, as an artifact's graphs are called."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lucid_deploy.conformance.formulas import FORMULAS, Array, exact
from lucid_deploy.conformance.plain import NUMPY
from lucid_deploy.conformance.tiny_model import LAYERS, VOCABULARY, Arithmetic, TinyModel, run_model

EXACT = Arithmetic(FORMULAS, exact, exact)


_ROTATED, _NO_ROPE = TinyModel(), TinyModel(width=7, rope=False)
_TEXT = "three words, no rotation, a width of 7"


@dataclass(frozen=True)
class ModelProblem:
    """One case of a whole model.

    Attributes:
        name: Of the case.
        text: What is special about it.
        stage: One of :data:`~lucid_deploy.conformance.tiny_graph.STAGES`.
        new: New tokens.
        past: Tokens of the cache, which an exact prefill made.
        room: Rows that a static cache's buffers hold, those behind the cache's tokens with other numbers.
        words: How many tokens there are to choose from: few of them repeat.
        padded: Whether the last batch row begins with padding.
        batch: ``B``.
        dtype: Of weights, arithmetic and cache.
        model: What the model is.
    """

    name: str
    text: str
    stage: str
    new: int = 1
    past: int = 0
    room: int = 0
    words: int = VOCABULARY
    padded: bool = False
    batch: int = 1
    dtype: str = "float32"
    model: TinyModel = _ROTATED


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
    """Return a problem's inputs by name, in the graph's order; the same ones every time."""
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
