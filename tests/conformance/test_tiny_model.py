"""The tiny model's formulas give the same at once, in chunks and token by token, with growing caches and buffers."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_deploy.conformance.formulas import FORMULAS, Array, exact
from lucid_deploy.conformance.tiny_model import LAYERS, Arithmetic, TinyModel, run_model

BY = Arithmetic(FORMULAS, exact, exact)
IDS = np.random.RandomState(1).randint(0, 5, (1, 12))  # few words, which repeat
MODELS = [TinyModel(), TinyModel(width=7, rope=False), TinyModel(width=4, groups=1)]


def caches(model: TinyModel, tokens: int) -> dict[str, Array]:
    empty = np.zeros((1, model.heads, tokens, model.width))
    return {f"past_key_values.{layer}.{kind}": empty for layer in range(LAYERS) for kind in ("key", "value")}


def feed(start: int, end: int) -> dict[str, Array]:
    return {
        "input_ids": IDS[:, start:end],
        "attention_mask": np.ones((1, end), np.int64),
        "position_ids": np.arange(start, end)[None],
    }


def past_of(found: dict[str, Array]) -> dict[str, Array]:
    return {name.replace("present", "past_key_values"): x for name, x in found.items() if name != "logits"}


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_chunks_and_tokens_give_what_the_whole_gives(model: TinyModel) -> None:
    weights = model.weights()
    whole = run_model(model, weights, {**feed(0, 12), **caches(model, 0)}, BY)["logits"]
    found = run_model(model, weights, {**feed(0, 5), **caches(model, 0)}, BY)
    logits = [found["logits"]]
    for start, end in ((5, 9), (9, 10), (10, 11), (11, 12)):
        found = run_model(model, weights, {**feed(start, end), **past_of(found)}, BY)
        logits.append(found["logits"])
    np.testing.assert_allclose(np.concatenate(logits, axis=1), whole, rtol=1e-9)


def test_buffers_give_what_a_growing_cache_gives() -> None:
    model, weights = TinyModel(), TinyModel().weights()
    found = run_model(model, weights, {**feed(0, 11), **caches(model, 0)}, BY)
    grown = run_model(model, weights, {**feed(11, 12), **past_of(found)}, BY)
    buffers = {
        name: np.pad(x, ((0, 0), (0, 0), (0, 4), (0, 0)), constant_values=9) for name, x in past_of(found).items()
    }
    static = {**feed(11, 12), **buffers, "cache_length": np.array([11]), "attention_mask": np.ones((1, 15), np.int64)}
    written = run_model(model, weights, static, BY)
    np.testing.assert_allclose(written["logits"], grown["logits"], rtol=1e-9)
    np.testing.assert_allclose(written["present.1.value"][:, :, :12], grown["present.1.value"], rtol=1e-9)
    assert (written["present.1.value"][:, :, 12:] == 9).all()
