"""Which operators of a graph compute in half precision, function bodies and loops included."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto, inliner

# Operators with an exponential, a norm, a root or a sum over many elements inside.
SENSITIVE = {
    *("Attention", "Exp", "Log", "Sigmoid", "Softmax", "LogSoftmax", "Gelu", "Swish", "Sqrt", "Reciprocal", "Pow"),
    *("RMSNormalization", "LayerNormalization", "ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "ReduceMax"),
    *("Sin", "Cos", "Tanh"),
}


LAYERS = 2


LINEAR = 7 * LAYERS  # multiplications by weights; the head's is in float32


HALF = {TensorProto.FLOAT16, TensorProto.BFLOAT16}


def nodes(graph: onnx.GraphProto, outer: dict[str, int] | None = None) -> Iterator[tuple[onnx.NodeProto, set[int]]]:
    """Yield every node, those in loop bodies too, with the types of its inputs and outputs."""
    types = dict(outer or {})
    for value in (*graph.input, *graph.value_info, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    types |= {item.name: item.data_type for item in graph.initializer}
    for node in graph.node:
        yield node, {types.get(name, 0) for name in (*node.input, *node.output) if name}
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes(attribute.g, types)


def typed(path: Path) -> onnx.ModelProto:
    """Return a graph with its functions inlined and the types of all values known."""
    return typed_model(onnx.load(str(path), load_external_data=False))


def typed_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """See :func:`typed`."""
    inlined = inliner.inline_local_functions(model)
    return onnx.shape_inference.infer_shapes(inlined, check_type=True, strict_mode=True)


def products_in_half(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node, kinds in nodes(model.graph) if kinds & HALF and node.op_type in ("MatMul", "Gemm")]


def sensitive_in_half(model: onnx.ModelProto) -> list[str]:
    found = list(nodes(model.graph))
    assert all(0 not in kinds for node, kinds in found if node.op_type in SENSITIVE), "a type is not known"
    return [node.op_type for node, kinds in found if node.op_type in SENSITIVE and kinds & HALF]
