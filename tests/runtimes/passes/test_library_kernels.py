"""Nodes are replaced by those of our library of CPU kernels: which nodes are, and that results stay the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lucid_deploy.plugins.table import (
    CACHED_ATTENTION,
    DECODE_ATTENTION,
    DECODE_ATTENTION_GROWING,
    DOMAIN,
    QUANTIZED_MATMUL,
    QUANTIZED_MATMUL_OFFSETS,
    QUANTIZED_MATMUL_ZERO_POINTS,
    WEIGHT_MATMUL,
    WEIGHT_MATMUL_FLOAT16,
)
from lucid_deploy.runtimes import RuntimeOptions, open_session
from lucid_deploy.runtimes.layers import NewTokens
from lucid_deploy.runtimes.onnxruntime.layers import OrtLayers
from lucid_deploy.runtimes.onnxruntime.session import OrtSession
from lucid_deploy.runtimes.passes.library_kernels import (
    use_cached_attention,
    use_growing_attention,
    use_quantized_matmul,
    use_weight_matmul,
)
from tests.runtimes.passes.loaded_graphs import copied, decoded, operators

PLAIN, GROWING = DECODE_ATTENTION.name, DECODE_ATTENTION_GROWING.name


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_growing_attention_replaces_decode_attention_in_every_layer(exported, dtype: str) -> None:
    artifact = exported(dtype=dtype)[1]
    model = copied(artifact)
    before, outputs = operators(model), [output.name for output in model.graph.output]
    assert use_growing_attention(model)
    after = operators(model)
    assert (after[GROWING], after[PLAIN], after["Concat"]) == (2, 0, before["Concat"] - 4)
    made = {name for node in model.graph.node for name in node.output}
    assert outputs == [output.name for output in model.graph.output] and made >= set(outputs)


@pytest.mark.parametrize("settings", [{"cache": "static"}, {"cache_dtype": "int8"}, {"attention_type": "llama"}])
def test_growing_attention_leaves_other_caches_and_attention_unchanged(exported, settings: dict[str, str]) -> None:
    model = copied(exported(**settings)[1])
    before = model.SerializeToString()
    assert not use_growing_attention(model)
    assert model.SerializeToString() == before


def test_decode_attention_stays_where_other_nodes_read_its_cache(exported) -> None:
    artifact = exported()[1]
    for name in ("present.0.key", "new Y"):
        model = copied(artifact)
        read = next(node for node in model.graph.node if node.op_type == PLAIN).output[1] if name == "new Y" else name
        model.graph.node.append(helper.make_node("Identity", [read], ["seen"]))
        assert use_growing_attention(model)
        assert operators(model)[GROWING] == operators(model)[PLAIN] == 1  # only the other layer's node is changed


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_growing_attention_gives_the_same_bits(exported, built_library: Path, monkeypatch, dtype: str) -> None:
    """Logits and caches are compared, of two rows of unequal length with padding."""
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
    place = "lucid_deploy.runtimes.passes.library_kernels.use_growing_attention"
    monkeypatch.setattr(place, lambda model: False)
    assert decoded() == growing


def graph(
    *nodes: onnx.NodeProto, outputs: tuple[str, ...] = ("o",), depth: int = 4, **weights: np.ndarray
) -> onnx.ModelProto:
    """Return a graph of ``x`` (3, depth) in float32, with weights."""
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, [3, depth])],
        [value(name, TensorProto.FLOAT, None) for name in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)])


W = np.ones((4, 4), dtype=np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_matmul_by_a_weight_in_a_decode_graph_is_replaced(exported, dtype: str) -> None:
    artifact = exported(dtype=dtype)[1]
    model = copied(artifact, "decode")
    before = operators(model)
    assert use_weight_matmul(model)
    after = operators(model)
    # The head's weight is stored in the model's type and cast: its logits are float32.
    assert after[WEIGHT_MATMUL_FLOAT16.name] == (1 if dtype == "float16" else 0)
    assert after[WEIGHT_MATMUL.name] + after[WEIGHT_MATMUL_FLOAT16.name] == before["MatMul"] == 15
    assert after["MatMul"] == 0 and after["Cast"] == before["Cast"] - after[WEIGHT_MATMUL_FLOAT16.name]


def test_matmuls_of_activations_and_of_3d_weights_stay() -> None:
    three = np.ones((2, 4, 4), dtype=np.float32)
    model = graph(
        helper.make_node("Transpose", ["x"], ["t"]),
        helper.make_node("MatMul", ["x", "t"], ["a"]),
        helper.make_node("MatMul", ["w", "t"], ["b"]),
        helper.make_node("MatMul", ["x", "three"], ["c"]),
        helper.make_node("MatMul", ["x", "w"], ["d"], domain="somebody"),
        outputs=("a", "b", "c", "d"),
        w=W,
        three=three,
    )
    before = model.SerializeToString()
    assert not use_weight_matmul(model)
    assert model.SerializeToString() == before


def test_decode_and_verify_use_the_librarys_matmul_and_prefill_does_not(
    exported, built_library: Path, loaded: list[Counter[str]]
) -> None:
    artifact = exported()[1]

    def products() -> list[tuple[int, int]]:
        """Return how many products are onnxruntime's and how many the library's, for each graph loaded since."""
        found = [(each["MatMul"], each[WEIGHT_MATMUL.name]) for each in loaded]
        loaded.clear()
        return found

    session = OrtSession(artifact, RuntimeOptions(kernels="library"))
    whole = [*loaded]
    assert products() == [(15, 0), (0, 15)]  # prefill, decode
    session.prepare_several()
    assert products() == [(0, 15)]  # the graph that verifies drafts
    layers = OrtLayers(session)
    for decode, wanted in ((False, (15, 0)), (True, (0, 15))):
        layers.run(NewTokens.after(np.array([[5]])), layers.empty_past(), decode=decode)
        assert {*(loaded[0] - whole[decode])} == {"Identity"} and not whole[decode] - loaded[0]
        assert products() == [wanted]
    OrtSession(artifact, RuntimeOptions(kernels="functions"))
    assert products() == [(15, 0), (15, 0)]


HAS_DOTS = "lucid_deploy.plugins.hosts.onnxruntime.build.has_dots"


WEIGHTS = {
    "w": np.ones((5, 2, 16), np.uint8),
    "scales": np.ones((5, 2), np.float32),
    "long": np.ones((1, 1, 32768), np.uint8),
    "one": np.ones((1, 1), np.float32),
    "zeros": np.ones((5, 1), np.uint8),
    "doubles": np.ones((5, 2), np.float64),
}


ATTRIBUTES = {"K": 64, "N": 5, "bits": 4, "block_size": 32, "accuracy_level": 4}


def quantized_graph(inputs: list[str], domain: str = "com.microsoft", **changes: Any) -> onnx.ModelProto:
    """Return a graph of one ``MatMulNBits``."""
    node = helper.make_node("MatMulNBits", ["x", *inputs], ["o"], domain=domain, **{**ATTRIBUTES, **changes})
    value = helper.make_tensor_value_info
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in WEIGHTS.items()]
    made = helper.make_graph(
        [node], "g", [value("x", TensorProto.FLOAT, [3, 64])], [value("o", TensorProto.FLOAT, None)], weights
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 23), helper.make_opsetid(domain, 1)])


@pytest.mark.parametrize(
    ("inputs", "operator"),
    [
        (["w", "scales"], QUANTIZED_MATMUL),
        (["w", "scales", "zeros"], QUANTIZED_MATMUL_ZERO_POINTS),
    ],
)
def test_matmulnbits_that_rounds_its_inputs_is_replaced(inputs: list[str], operator: Any) -> None:
    model = quantized_graph(inputs)
    assert use_quantized_matmul(model)
    (node,) = model.graph.node
    assert (node.op_type, node.domain, len(node.attribute)) == (operator.name, DOMAIN, 0)
    assert list(node.input) == ["x", *inputs]
    assert DOMAIN in [item.domain for item in model.opset_import]
    assert not use_quantized_matmul(model)


@pytest.mark.parametrize(
    ("inputs", "changes"),
    [
        (["w", "scales"], {"accuracy_level": 0}),
        (["w", "scales"], {"K": 60}),
        (["w", "scales"], {"block_size": 8}),
        (["w", "scales"], {"domain": "somebody"}),
        (["long", "one"], {"K": 65536, "N": 1, "block_size": 65536}),
        (["w", "doubles"], {}),
    ],
)
def test_other_matmulnbits_nodes_stay(inputs: list[str], changes: dict[str, Any]) -> None:
    model = quantized_graph(inputs, **changes)
    before = model.SerializeToString()
    assert not use_quantized_matmul(model)
    assert model.SerializeToString() == before


def test_all_graphs_use_the_librarys_quantized_matmul(
    quantized, built_library: Path, loaded: list[Counter[str]], monkeypatch
) -> None:
    """On any processor: without the instructions for it, the library's kernel is only slower.

    Two of eight weights end within a block, which onnxruntime pads: their nodes stay.
    """
    artifact = quantized("int4")[1]

    def products() -> list[tuple[int, int]]:
        """Return how many products are onnxruntime's and how many the library's, for each graph loaded since."""
        found = [(each["MatMulNBits"], each[QUANTIZED_MATMUL.name]) for each in loaded]
        loaded.clear()
        return found

    monkeypatch.setattr(HAS_DOTS, lambda library: True)
    session = OrtSession(artifact, RuntimeOptions(kernels="library"))
    assert products() == [(2, 6), (2, 6)]  # prefill, decode
    session.prepare_several()
    assert products() == [(2, 6)]  # the graph that verifies drafts
    layers = OrtLayers(session)
    for decode in (False, True):
        layers.run(NewTokens.after(np.array([[5]])), layers.empty_past(), decode=decode)
        assert products() == [(2, 6)]
    OrtSession(artifact, RuntimeOptions(kernels="functions"))
    assert products() == [(8, 0), (8, 0)]
    monkeypatch.setattr(HAS_DOTS, lambda library: False)
    OrtSession(artifact, RuntimeOptions(kernels="library"))
    assert products() == [(8, 0), (8, 0)]


def test_the_librarys_quantized_matmul_adds_the_blocks_offsets(quantized, built_library: Path, monkeypatch) -> None:
    """The sums over X's blocks are removed, and scales and offsets are read in float16."""
    monkeypatch.setattr(HAS_DOTS, lambda library: True)
    artifact = quantized("int4", method="hqq", block_size=16)[1]  # no weight ends within a block
    model = copied(artifact)
    before = operators(model)
    assert use_quantized_matmul(model)
    after = operators(model)
    count = after[QUANTIZED_MATMUL_OFFSETS.name]
    assert count and before["ReduceSum"] and not after["ReduceSum"]
    assert before["Add"] - after["Add"] == before["MatMul"] - after["MatMul"] == count
    stored = {each.name: each.data_type for each in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == QUANTIZED_MATMUL_OFFSETS.name:
            assert [stored[name] for name in node.input[2:]] == [TensorProto.FLOAT16] * 2
    found, plain = (
        decoded(
            OrtSession(artifact, RuntimeOptions(kernels=kernels)), np.random.default_rng(1).integers(2, 97, (3, 20))
        )
        for kernels in ("library", "functions")
    )
    assert np.abs(found - plain).max() <= 1e-2 * np.abs(plain).max()


@pytest.mark.parametrize(
    ("cache", "dtype", "stored", "opset"),
    [
        ("growing", "float32", "auto", None),
        ("static", "float16", "auto", None),
        ("static", "float32", "auto", 23),
        ("static", "float32", "int8", None),
        ("growing", "float32", "float16", None),
        (None, "float32", "int8", None),  # the static form, made from the growing one
    ],
)
def test_standard_attention_decodes_in_the_library(
    exported, built_library: Path, cache: str | None, dtype: str, stored: str, opset: int | None
) -> None:
    """Rows of unequal length, over caches in other types too, give what onnxruntime's own operator gives."""
    artifact = exported(attention_type="llama", cache=cache, dtype=dtype, cache_dtype=stored, opset=opset)[1]
    artifact = artifact.form("static") if cache is None else artifact
    model = copied(artifact)
    assert use_cached_attention(model)
    assert (operators(model)[CACHED_ATTENTION.name], operators(model)["Attention"]) == (2, 0)
    ids, mask = np.random.default_rng(0).integers(2, 97, (3, 40)), np.ones((3, 40), bool)
    mask[1, :30] = False
    found = []
    for kernels in ("library", "functions"):
        session = open_session(artifact, kernels=kernels)
        assert session.reads_stored_cache == (kernels == "library" or stored == "auto")
        cache_of = session.empty_cache(3)
        session.prefill(ids, cache_of, mask)
        found.append(np.stack([session.decode(ids[:, at : at + 1], cache_of) for at in range(4)]))
    assert np.abs(found[0] - found[1]).max() <= (4e-3 if dtype == "float16" else 4e-6) * np.abs(found[1]).max()


@pytest.mark.parametrize("changes", [{"softcap": 5.0}, {"scale": 0.5}, {"is_causal": 1}])
def test_attention_with_other_attributes_stays(exported, changes: dict[str, float]) -> None:
    model = copied(exported(attention_type="llama")[1])
    for node in model.graph.node:
        if node.op_type == "Attention":
            kept = [each for each in node.attribute if each.name not in changes]
            del node.attribute[:]
            node.attribute.extend([*kept, *(helper.make_attribute(*item) for item in changes.items())])
    before = model.SerializeToString()
    assert not use_cached_attention(model) and model.SerializeToString() == before


def test_attention_with_wider_values_stays(exported) -> None:
    model = copied(exported(attention_type="llama")[1])
    for info in model.graph.output:
        if info.name.endswith(".value"):
            info.type.tensor_type.shape.dim[3].dim_value += 8
    before = model.SerializeToString()
    assert not use_cached_attention(model) and model.SerializeToString() == before
