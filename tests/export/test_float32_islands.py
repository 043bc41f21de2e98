"""In float16 and bfloat16 graphs, whatever is sensitive is float32 in the graph itself, function bodies included."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, inliner

from lucid_deploy.artifact import STAGES
from lucid_deploy.export import ExportOptions, export

# Operators with an exponential, a norm, a root or a sum over many elements inside.
SENSITIVE = {
    *("Attention", "Exp", "Log", "Sigmoid", "Softmax", "LogSoftmax", "Gelu", "Swish", "Sqrt", "Reciprocal", "Pow"),
    *("RMSNormalization", "LayerNormalization", "ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "ReduceMax"),
    *("Sin", "Cos", "Tanh"),
}
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
    model = inliner.inline_local_functions(onnx.load(str(path), load_external_data=False))
    return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


def sensitive_in_half(model: onnx.ModelProto) -> list[str]:
    found = list(nodes(model.graph))
    assert all(0 not in kinds for node, kinds in found if node.op_type in SENSITIVE), "a type is not known"
    return [node.op_type for node, kinds in found if node.op_type in SENSITIVE and kinds & HALF]


@pytest.mark.parametrize("attention", ["lucid", "llama"])
@pytest.mark.parametrize(("dtype", "cache"), [("float16", "growing"), ("float16", "static"), ("bfloat16", "growing")])
def test_sensitive_operators_are_float32(
    attention: str, dtype: str, cache: str, make_checkpoint, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(attention_type=attention)
    artifact = export(checkpoint, tmp_path / "artifact", ExportOptions(dtype, cache=cache, range_scan=False))
    for stage in STAGES:
        model = typed(artifact.graph_path(stage))
        assert not sensitive_in_half(model), stage
        found = list(nodes(model.graph))
        half = [node for node, kinds in found if kinds & HALF and node.op_type in ("MatMul", "Gemm")]
        weights = {item.name for item in model.graph.initializer}
        assert half and all(weights & set(node.input) for node in half)  # only the linear layers: no solve, no scores
        assert len(half) == 2 * 7 + 1
        wanted = {"Exp", "RMSNormalization"} if attention == "lucid" else {"RMSNormalization", "Attention"}
        assert wanted <= {node.op_type for node, _ in found}
        logits = next(value for value in model.graph.output if value.name == "logits")
        assert logits.type.tensor_type.elem_type == TensorProto.FLOAT


def test_the_walk_sees_half_precision_inside_of_loops(make_checkpoint, tmp_path: Path) -> None:
    """Without the casts of a function's body, its loop computes in half precision, and that is found."""
    artifact = export(make_checkpoint(), tmp_path / "artifact", ExportOptions("float16", range_scan=False))
    model = onnx.load(str(artifact.graph_path("prefill")), load_external_data=False)
    body = next(function for function in model.functions if function.name == "CausalAttention")
    for node in body.node:
        if node.op_type == "Cast" and node.input[0] in ("Q", "K", "Y"):
            node.op_type = "Identity"
            del node.attribute[:]
    inlined = inliner.inline_local_functions(model)
    assert set(sensitive_in_half(onnx.shape_inference.infer_shapes(inlined))) == {"Attention"}
