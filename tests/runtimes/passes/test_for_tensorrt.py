"""Graphs that were changed for TensorRT compute the same as before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from lucid_deploy.artifact import Artifact
from lucid_deploy.runtimes.tensorrt.passes.attention_forms import (
    explicit_attention,
    half_attention,
    standard_attention,
)
from lucid_deploy.runtimes.tensorrt.passes.cache_forms import float8_cache
from lucid_deploy.runtimes.tensorrt.passes.plugin_nodes import name_plugins
from tests.runtimes.tensorrt.graphs import LLAMA, inputs, load, open_model

Exported = Callable[..., tuple[Path, Artifact]]


@pytest.mark.parametrize("changes", [{}, LLAMA], ids=str)
@pytest.mark.parametrize(("past", "new"), [(0, 5), (300, 290)])
def test_standard_attention_computes_the_same(
    changes: dict[str, Any], past: int, new: int, exported: Exported, tmp_path: Path
) -> None:
    """Past lengths of zero and more, more rows than a block of the operator's own body, padding before and between."""
    artifact = exported(**changes)[1]
    model = load(artifact, "prefill")
    assert standard_attention(model) and not standard_attention(model)
    operators = [node.op_type for node in model.graph.all_nodes()]
    assert "CausalAttention" not in operators and operators.count("Attention") == 2
    assert operators.count("Range") <= 4, "the mask is made once for all layers; picking the last token takes two"
    feed = inputs(artifact, "prefill", past, new)
    expected = ort.InferenceSession(str(artifact.graph_path("prefill"))).run(None, feed)
    for got, wanted in zip(open_model(model, artifact, tmp_path).run(None, feed), expected, strict=True):
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "stage", "past", "new"),
    [({}, "prefill", 7, 30), (LLAMA, "decode", 9, 1)],
    ids=str,
)
def test_explicit_attention_computes_the_same(
    changes: dict[str, Any], stage: str, past: int, new: int, exported: Exported, tmp_path: Path
) -> None:
    """Two query heads share each key head; in the decode graph each key head is a batch row of its own; padding."""
    artifact = exported(**changes)[1]
    model = load(artifact, stage)
    standard_attention(model)
    assert explicit_attention(model) and not explicit_attention(model)
    operators = [node.op_type for node in model.graph.all_nodes()]
    assert "Attention" not in operators and "Loop" not in operators and operators.count("Softmax") == 2
    feed = inputs(artifact, stage, past, new)
    expected = ort.InferenceSession(str(artifact.graph_path(stage))).run(None, feed)
    for got, wanted in zip(open_model(model, artifact, tmp_path).run(None, feed), expected, strict=True):
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5)


def test_attention_without_a_mask_is_refused(exported: Exported) -> None:
    model = load(exported()[1], "prefill")
    standard_attention(model)
    [node, *_] = [node for node in model.graph if node.op_type == "Attention"]
    node.resize_inputs(3)
    with pytest.raises(ValueError, match=f"{node.name}: an Attention of another form"):
        explicit_attention(model)


def test_attention_with_heads_of_unknown_number_is_refused(exported: Exported) -> None:
    model = load(exported()[1], "prefill")
    standard_attention(model)
    [node, *_] = [node for node in model.graph if node.op_type == "Attention"]
    assert node.inputs[1] is not None
    node.inputs[1].shape = None
    with pytest.raises(ValueError, match="heads of unknown number"):
        explicit_attention(model)


FLOAT, HALF, BFLOAT = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16


SHAPE = [1, 2, 3, 8]


def attention_in_float32(sources: tuple[int, int, int], target: int, shared: bool = False) -> ir.Model:
    """Attention in float32 between casts from some types and to another; ``shared``: a cast has another reader."""
    inputs = [helper.make_tensor_value_info(name, kind, SHAPE) for name, kind in zip("qkv", sources, strict=True)]
    nodes = [helper.make_node("Cast", [name], [f"{name}_float"], to=FLOAT) for name in "qkv"]
    nodes.append(helper.make_node("Attention", [f"{name}_float" for name in "qkv"], ["y_float"]))
    nodes.append(helper.make_node("Cast", ["y_float"], ["y_cast"], to=target))
    nodes.append(helper.make_node("Neg", ["y_cast"], ["y"]))
    outputs = [helper.make_tensor_value_info("y", target, SHAPE)]
    if shared:
        nodes.append(helper.make_node("Neg", ["k_float"], ["z"]))
        outputs.append(helper.make_tensor_value_info("z", FLOAT, SHAPE))
    made = helper.make_model(
        helper.make_graph(nodes, "attention", inputs, outputs),
        opset_imports=[helper.make_opsetid("", 23)],
        ir_version=10,
    )
    onnx.checker.check_model(made, full_check=True)
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(made))


def operators_of(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("kind", [HALF, BFLOAT])
def test_casts_around_attention_are_removed_and_the_output_keeps_its_type(kind: int) -> None:
    model = attention_in_float32((kind, kind, kind), kind)
    assert half_attention(model) and operators_of(model) == ["Attention", "Neg"]
    assert not half_attention(model)
    node = model.graph[0]
    assert [value.name for value in node.inputs if value is not None] == ["q", "k", "v"]
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    assert [(value.name, value.type.tensor_type.elem_type) for value in proto.graph.output] == [("y", kind)]


def test_only_plugin_nodes_get_the_plugins_attributes(exported: Exported) -> None:
    model = load(exported()[1], "prefill")
    assert name_plugins(model) == 2
    named = [node.op_type for node in model.graph if "plugin_namespace" in node.attributes]
    assert named == ["Precondition", "Precondition"]
    [node, *_] = [node for node in model.graph if node.op_type == "Precondition"]
    assert node.attributes["plugin_namespace"].as_string() == "ai.lucid"
    assert node.attributes["plugin_version"].as_string() == "1"
    assert node.attributes["diagonal"].as_float() == 0.0, "TensorRT's parser warns about an attribute that is left out"


@pytest.mark.tensorrt
def test_tensorrt_uses_the_plugin_instead_of_the_function(exported: Exported, plugin: Path) -> None:
    """Without the attributes the parser uses the function body, or fails at it."""
    trt = pytest.importorskip("tensorrt_rtx", reason='needs TensorRT-RTX: pip install -e ".[rtx]"')
    from lucid_deploy.plugins.hosts.tensorrt.registry import register_plugins

    register_plugins(plugin, trt)
    artifact = exported()[1]
    taken = {}
    for named in (False, True):
        model = load(artifact, "decode")
        explicit_attention(model)
        if named:
            assert name_plugins(model) == 2
        network = trt.Builder(trt.Logger(trt.Logger.ERROR)).create_network(0)
        parser = trt.OnnxParser(network, trt.Logger(trt.Logger.INTERNAL_ERROR))
        parser.parse(ir.serde.serialize_model(model).SerializeToString(), str(artifact.graph_path("decode")))
        layers = [network.get_layer(index).type for index in range(network.num_layers)]
        taken[named] = layers.count(trt.LayerType.PLUGIN_V3)
    assert taken == {False: 0, True: 2}


FLOAT, HALF, FLOAT8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.FLOAT8E4M3FN


E4M3 = helper.tensor_dtype_to_np_dtype(FLOAT8)


def joined_cache(read_elsewhere: bool = False) -> onnx.ModelProto:
    """Rows that are rounded and joined to a past by way of float16; the past is read in float32."""
    nodes = [
        helper.make_node("Cast", ["row"], ["row_8"], to=FLOAT8),
        helper.make_node("Cast", ["past"], ["past_16"], to=HALF),
        helper.make_node("Cast", ["row_8"], ["row_16"], to=HALF),
        helper.make_node("Concat", ["past_16", "row_16"], ["joined"], axis=0),
        helper.make_node("Cast", ["joined"], ["present"], to=FLOAT8),
        helper.make_node("Cast", ["past"], ["past_32"], to=FLOAT),
        helper.make_node("Neg", ["past_32"], ["read"]),
    ]
    inputs = [
        helper.make_tensor_value_info("past", FLOAT8, ["p", 4]),
        helper.make_tensor_value_info("row", FLOAT, [1, 4]),
    ]
    outputs = [
        helper.make_tensor_value_info("present", FLOAT8, ["t", 4]),
        helper.make_tensor_value_info("read", FLOAT, ["p", 4]),
    ]
    if read_elsewhere:
        nodes.append(helper.make_node("Neg", ["joined"], ["more"]))
        outputs.append(helper.make_tensor_value_info("more", HALF, ["t", 4]))
    made = helper.make_graph(nodes, "cache", inputs, outputs)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def changed(model: onnx.ModelProto) -> onnx.ModelProto:
    loaded = ir.serde.deserialize_model(model)
    assert float8_cache(loaded) and not float8_cache(loaded)
    return ir.serde.serialize_model(loaded)


def kinds(model: onnx.ModelProto) -> list[str]:
    return sorted(node.op_type for node in model.graph.node)


def run(model: onnx.ModelProto, past: int) -> list[np.ndarray]:
    numbers = np.arange(1, 1 + 4 * past, dtype=np.uint8).reshape(past, 4).view(E4M3)
    row = np.array([[0.3, -448, 1e-3, 17.1]], np.float32)
    found = ReferenceEvaluator(model).run(None, {"past": numbers, "row": row})
    return [array.view(np.uint8) if array.dtype == E4M3 else array for array in map(np.asarray, found)]


@pytest.mark.parametrize("past", [1, 5])
def test_float8_cache_changes_no_number(past: int) -> None:
    model = joined_cache()
    onnx.checker.check_model(model, full_check=True)
    after = changed(model)
    assert kinds(after) == ["Concat", "DequantizeLinear", "Neg", "QuantizeLinear"]
    for found, wanted in zip(run(after, past), run(model, past), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert [item.name for item in after.graph.output] == ["present", "read"]
