"""Small graphs for the passes, before and after."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper

from lucid_deploy.plugins.table import DOMAIN, VERSION

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[Any]]],
    outputs: dict[str, tuple[int, list[Any] | None]],
    opset: int = 23,
) -> ir.Model:
    """Return a model of these nodes; inputs and outputs by name, with type and shape."""
    infos = [
        [helper.make_tensor_value_info(name, *facts) for name, facts in values.items()] for values in (inputs, outputs)
    ]
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)]
    made = helper.make_model(helper.make_graph(nodes, "graph", *infos), opset_imports=opsets, ir_version=10)
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(made))


def weight_of(graph: ir.Graph, name: str) -> ir.Value:
    """Turn an input into an initializer without data, which is what a weight is while passes run."""
    value = next(value for value in graph.inputs if value.name == name)
    graph.inputs.remove(value)
    graph.initializers[name] = value
    return value


def run(made: ir.Model, feed: dict[str, np.ndarray], weights: dict[str, np.ndarray] | None = None) -> list[np.ndarray]:
    """Give weights their data, check the model and run it in onnxruntime."""
    for name, array in (weights or {}).items():
        value = made.graph.initializers[name]
        assert value.shape is not None and tuple(value.shape) == array.shape, name
        value.const_value = ir.tensor(array, dtype=value.dtype, name=name)
    proto = ir.serde.serialize_model(made)
    onnx.checker.check_model(proto, full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = (
        ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    )  # optimizations round the inputs of some multiplications
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feed)


def operators(made: ir.Model) -> list[str]:
    return [node.op_type for node in made.graph]
