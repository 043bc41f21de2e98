"""The library's attention that grows the cache: where it goes, and that sessions decode with it as without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from lucid_deploy.plugins.table import DECODE_ATTENTION, DECODE_ATTENTION_GROWING
from lucid_deploy.runtimes import RuntimeOptions
from lucid_deploy.runtimes.onnxruntime.growing_attention import use_growing_attention
from lucid_deploy.runtimes.onnxruntime.session import OrtSession
from tests.runtimes.onnxruntime.loaded_graphs import copied, operators

PLAIN, GROWING = DECODE_ATTENTION.name, DECODE_ATTENTION_GROWING.name


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_layer_of_a_decode_graph_is_changed(exported, dtype: str) -> None:
    artifact = exported(dtype=dtype)[1]
    model = copied(artifact)
    before, outputs = operators(model), [output.name for output in model.graph.output]
    assert use_growing_attention(model)
    after = operators(model)
    assert (after[GROWING], after[PLAIN], after["Concat"]) == (2, 0, before["Concat"] - 4)
    made = {name for node in model.graph.node for name in node.output}
    assert outputs == [output.name for output in model.graph.output] and made >= set(outputs)


@pytest.mark.parametrize("settings", [{"cache": "static"}, {"cache_dtype": "int8"}, {"attention_type": "llama"}])
def test_other_caches_and_attentions_stay(exported, settings: dict[str, str]) -> None:
    model = copied(exported(**settings)[1])
    before = model.SerializeToString()
    assert not use_growing_attention(model)
    assert model.SerializeToString() == before


def test_what_others_read_stays(exported) -> None:
    artifact = exported()[1]
    for name in ("present.0.key", "new Y"):
        model = copied(artifact)
        read = next(node for node in model.graph.node if node.op_type == PLAIN).output[1] if name == "new Y" else name
        model.graph.node.append(helper.make_node("Identity", [read], ["seen"]))
        assert use_growing_attention(model)
        assert operators(model)[GROWING] == operators(model)[PLAIN] == 1  # the other layer's alone


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_tokens_are_decoded_as_without_it(exported, built_library: Path, monkeypatch, dtype: str) -> None:
    """To the bit: logits, and the caches of rows of two lengths, of which the shorter one has padding."""
    artifact = exported(dtype=dtype)[1]
    ids = np.random.default_rng(0).integers(2, 97, (2, 24))
    mask = np.ones((2, 16), dtype=np.int64)
    mask[1, :5] = 0

    def decoded() -> list[bytes]:
        session = OrtSession(artifact, RuntimeOptions(kernels="library"))
        cache = session.empty_cache(2)
        given = [session.prefill(ids[:, :16], cache, mask)]
        given += [session.decode(ids[:, at : at + 1], cache) for at in range(16, 20)]
        given.append(session.decode_several(ids[:, 20:], cache))
        return [array.tobytes() for array in (*given, *(x for layer in session.layer_arrays(cache) for x in layer))]

    growing = decoded()
    place = "lucid_deploy.runtimes.onnxruntime.growing_attention.use_growing_attention"
    monkeypatch.setattr(place, lambda model: False)
    assert decoded() == growing
