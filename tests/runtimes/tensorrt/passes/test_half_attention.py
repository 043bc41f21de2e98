"""Attention gets half-precision tensors only where casts stand around it on all sides."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from lucid_deploy.runtimes.tensorrt.passes import half_attention

FLOAT, HALF, BFLOAT = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
SHAPE = [1, 2, 3, 8]


def graph(sources: tuple[int, int, int], target: int, shared: bool = False) -> ir.Model:
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


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("kind", [HALF, BFLOAT])
def test_the_casts_go_and_the_graph_keeps_its_types(kind: int) -> None:
    model = graph((kind, kind, kind), kind)
    assert half_attention(model) and kinds(model) == ["Attention", "Neg"]
    assert not half_attention(model)
    node = model.graph[0]
    assert [value.name for value in node.inputs if value is not None] == ["q", "k", "v"]
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    assert [(value.name, value.type.tensor_type.elem_type) for value in proto.graph.output] == [("y", kind)]


def test_a_cast_that_something_else_reads_stays() -> None:
    model = graph((HALF, HALF, HALF), HALF, shared=True)
    assert half_attention(model) and sorted(kinds(model)) == ["Attention", "Cast", "Neg", "Neg"]
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
