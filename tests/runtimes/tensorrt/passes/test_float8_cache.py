"""An FP8 cache without casts: the same numbers, in the operators that TensorRT takes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from lucid_deploy.runtimes.tensorrt.passes import float8_cache

FLOAT, HALF, FLOAT8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.FLOAT8E4M3FN
E4M3 = helper.tensor_dtype_to_np_dtype(FLOAT8)


def graph(read_elsewhere: bool = False) -> onnx.ModelProto:
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
def test_every_number_is_as_it_was(past: int) -> None:
    model = graph()
    onnx.checker.check_model(model, full_check=True)
    after = changed(model)
    assert kinds(after) == ["Concat", "DequantizeLinear", "Neg", "QuantizeLinear"]
    for found, wanted in zip(run(after, past), run(model, past), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert [item.name for item in after.graph.output] == ["present", "read"]


def test_a_join_that_something_else_reads_stays_in_float16() -> None:
    after = changed(graph(read_elsewhere=True))
    assert "Cast" not in kinds(after) and kinds(after).count("DequantizeLinear") == 3
