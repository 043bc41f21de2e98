"""In float16 and bfloat16 graphs, whatever is sensitive is float32 in the graph itself, function bodies included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, inliner

from lucid_deploy.artifact import STAGES

# Operators with an exponential, a norm, a root or a sum over many elements inside.
SENSITIVE = {
    *("Attention", "Exp", "Log", "Sigmoid", "Softmax", "LogSoftmax", "Gelu", "Swish", "Sqrt", "Reciprocal", "Pow"),
    *("RMSNormalization", "LayerNormalization", "ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "ReduceMax"),
    *("Sin", "Cos", "Tanh"),
}
LAYERS = 2
LINEAR = 7 * LAYERS  # products with weights; the head's is float32
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


@pytest.mark.parametrize(
    ("attention", "dtype", "cache"),
    [("lucid", "float16", "growing"), ("lucid", "float16", "static"), ("llama", "bfloat16", "growing")],
)
def test_sensitive_operators_are_float32(attention: str, dtype: str, cache: str, exported) -> None:
    changes = {} if attention == "lucid" else {"attention_type": attention}
    _, artifact = exported(dtype, cache=cache, **changes)
    for stage in STAGES:
        model = typed(artifact.graph_path(stage))
        assert not sensitive_in_half(model), stage
        found, half = list(nodes(model.graph)), products_in_half(model)
        weights = {item.name for item in model.graph.initializer}
        assert len(half) == LINEAR and all(weights & set(node.input) for node in half)  # no solve, no scores
        wanted = {"Exp", "RMSNormalization"} if attention == "lucid" else {"RMSNormalization", "Attention"}
        assert wanted <= {node.op_type for node, _ in found}
        logits = next(value for value in model.graph.output if value.name == "logits")
        assert logits.type.tensor_type.elem_type == TensorProto.FLOAT


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_logits_are_a_float32_product(exported, dtype: str, tied: bool) -> None:
    """Of the weight as it is stored, in the model's type, which nothing transposes on loading."""
    _, artifact = exported(dtype, tie_word_embeddings=tied)
    for stage in STAGES:
        model = typed(artifact.graph_path(stage))
        found = list(nodes(model.graph))
        makers = {name: (node, kinds) for node, kinds in found for name in node.output}
        node, kinds = makers["logits"]
        while node.op_type == "Reshape":
            node, kinds = makers[node.input[0]]
        assert node.op_type in ("MatMul", "Gemm") and kinds == {TensorProto.FLOAT}
        cast, _ = makers[node.input[1]]
        name = "model.embed_tokens.weight" if tied else "lm_head.weight"
        weight = next(item for item in model.graph.initializer if item.name == cast.input[0])
        assert cast.op_type == "Cast" and weight.data_type in HALF and weight.name in (name, "lm_head.weight")
        assert len(products_in_half(model)) == LINEAR
        weights = {item.name for item in model.graph.initializer} | {cast.output[0]}
        assert not [node for node, _ in found if node.op_type == "Transpose" and node.input[0] in weights]


def test_the_walk_sees_half_precision_inside_of_loops(exported) -> None:
    """Without the casts of a function's body, its loop computes in half precision, and that is found."""
    _, artifact = exported("float16")
    model = onnx.load(str(artifact.graph_path("prefill")), load_external_data=False)
    body = next(function for function in model.functions if function.name == "CausalAttention")
    for node in body.node:
        if node.op_type == "Cast" and node.input[0] in ("Q", "K", "Y"):
            node.op_type = "Identity"
            del node.attribute[:]
    inlined = inliner.inline_local_functions(model)
    assert set(sensitive_in_half(onnx.shape_inference.infer_shapes(inlined))) == {"Attention"}


def every_graph(nodes: Sequence[onnx.NodeProto]) -> Iterator[list[onnx.NodeProto]]:
    """Yield a body's nodes, and those of the loops in it."""
    yield nodes
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from every_graph(attribute.g.node)


@pytest.mark.parametrize(
    ("stage", "function", "operator"),
    [
        ("prefill", "Precondition", "Exp"),  # of the preconditioner, in a loop
        ("decode", "DecodeAttention", "Exp"),
        ("decode", "DecodeAttention", "ReduceSum"),  # the softmax's denominator
    ],
)
def test_half_precision_around_one_operator_is_found(exported, stage: str, function: str, operator: str) -> None:
    """The operator stands between casts to float16 and back."""
    _, artifact = exported("float16")
    model = onnx.load(str(artifact.graph_path(stage)), load_external_data=False)
    body = next(item for item in model.functions if item.name == function)
    found = [(graph, node) for graph in every_graph(body.node) for node in graph if node.op_type == operator]
    graph, node = found[-1]
    before, after = node.input[0], node.output[0]
    node.input[0], node.output[0] = "half_before", "half_after"
    place = list(graph).index(node)
    graph.insert(place + 1, onnx.helper.make_node("Cast", ["half_after"], [after], to=TensorProto.FLOAT))
    graph.insert(place, onnx.helper.make_node("Cast", [before], ["half_before"], to=TensorProto.FLOAT16))
    inlined = inliner.inline_local_functions(model)
    assert set(sensitive_in_half(onnx.shape_inference.infer_shapes(inlined))) == {operator}


def test_block_inverses_in_half_precision_are_found(exported) -> None:
    """They are products without a weight, in a graph whose only half-precision products are the linear layers."""
    _, artifact = exported("float16")
    model = onnx.load(str(artifact.graph_path("prefill")), load_external_data=False)
    body = next(item for item in model.functions if item.name == "Precondition")
    graph, product = next(
        (graph, node) for graph in every_graph(body.node) for node in graph if node.op_type == "MatMul"
    )
    place, result = list(graph).index(product), product.output[0]
    halves = [
        onnx.helper.make_node("Cast", [name], [f"half_{i}"], to=TensorProto.FLOAT16)
        for i, name in enumerate(product.input)
    ]
    product.input[:], product.output[0] = ["half_0", "half_1"], "half_product"
    graph.insert(place + 1, onnx.helper.make_node("Cast", ["half_product"], [result], to=TensorProto.FLOAT))
    for cast in halves:
        graph.insert(place, cast)
    assert len(products_in_half(typed_model(model))) == LINEAR + LAYERS  # one more in each layer
