"""Bodies of the operators: all are there, and what is sensitive in them is float32 in half-precision graphs too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, inliner

from lucid_deploy.artifact import STAGES, Artifact
from lucid_deploy.export.functions import FUNCTIONS, function_proto
from lucid_deploy.plugins.table import DOMAIN, OPERATORS, SCATTER_ROW
from tests.export.float32_islands import (
    LAYERS,
    LINEAR,
    every_graph,
    nodes,
    products_in_half,
    sensitive_in_half,
    typed,
    typed_model,
)

Exported = Callable[..., tuple[Path, Artifact]]


def load(artifact: Artifact, stage: str) -> onnx.ModelProto:
    return onnx.load(str(artifact.graph_path(stage)), load_external_data=False)


@pytest.mark.parametrize(
    ("attention", "dtype", "cache"),
    [
        ("lucid", "float16", "growing"),
        ("lucid", "float16", "static"),
        ("lucid", "bfloat16", "static"),
        ("llama", "float16", "static"),
    ],
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


@pytest.mark.parametrize(
    ("stage", "function", "operator"),
    [
        ("prefill", "Precondition", "Exp"),  # of the preconditioner, in a loop
        ("decode", "DecodeAttention", "Exp"),
        ("decode", "DecodeAttention", "Softmax"),
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


def test_operators_stay_whole_and_have_bodies(exported: Exported) -> None:
    _, artifact = exported()
    for stage, operators in (("prefill", {"Precondition", "CausalAttention"}), ("decode", {"DecodeAttention"})):
        model = load(artifact, stage)
        nodes = [node.op_type for node in model.graph.node if node.domain == "ai.lucid"]
        assert set(nodes) == operators and len(nodes) == 2 * len(operators)
        assert {fn.name for fn in model.functions} == operators
        assert {node.domain for fn in model.functions for node in fn.node} <= {"", "ai.onnx"}


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_bodies_have_the_tables_tensors(name: str) -> None:
    [operator] = [each for each in OPERATORS if each.name == name]
    body = FUNCTIONS[name].to_function_proto()
    assert (body.domain, body.name) == (DOMAIN, operator.name)
    assert (tuple(body.input), tuple(body.output)) == (operator.input_names, operator.output_names)
    assert list(body.attribute) == [each.name for each in operator.attributes if each.default is None]
    given = function_proto(name, training_diagonal=True)
    assert list(given.attribute) == [each.name for each in operator.attributes]


def test_every_operator_of_an_artifact_has_a_body() -> None:
    assert set(FUNCTIONS) == {each.name for each in OPERATORS if each.torch_name and each is not SCATTER_ROW}


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_loops_of_bodies_say_that_they_go_on(name: str) -> None:
    """ONNX's ReferenceEvaluator runs a loop without a condition zero times."""

    def loops(nodes: Any) -> Iterator[tuple[Any, set[str]]]:
        constants = (node for node in nodes if node.op_type == "Constant")
        true = {node.output[0] for node in constants if node.attribute[0].t.data_type == onnx.TensorProto.BOOL}
        for node in nodes:
            if node.op_type == "Loop":
                yield node, true
            for attribute in node.attribute:
                yield from loops(attribute.g.node)

    found = list(loops(function_proto(name).node))
    assert len(found) == {"Precondition": 5, "CausalAttention": 1, "DecodeAttention": 0, "DeltaRule": 2}[name]
    assert all(node.input[1] in true for node, true in found)
