"""Bodies of the operators: all exist, and sensitive operators compute in float32 in half-precision graphs too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from lucid_deploy.artifact import STAGES, Artifact
from lucid_deploy.export.functions import FUNCTIONS, function_proto
from lucid_deploy.plugins.table import DOMAIN, OPERATORS, QUANTIZED_EXPERT_MATMUL, SCATTER_ROW
from tests.export.float32_islands import (
    LINEAR,
    nodes,
    products_in_half,
    sensitive_in_half,
    typed,
)

Exported = Callable[..., tuple[Path, Artifact]]


def load(artifact: Artifact, stage: str) -> onnx.ModelProto:
    return onnx.load(str(artifact.graph_path(stage)), load_external_data=False)


@pytest.mark.parametrize(
    ("attention", "dtype", "options"),
    [
        ("lucid", "float16", {}),
        ("lucid", "bfloat16", {"tie_word_embeddings": True}),
        ("llama", "float16", {"cache": "static"}),
    ],
)
def test_sensitive_operators_are_float32(attention: str, dtype: str, options: dict[str, Any], exported) -> None:
    _, artifact = exported(dtype, **options, **({} if attention == "lucid" else {"attention_type": attention}))
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


def test_operators_stay_whole_and_have_bodies(exported: Exported) -> None:
    _, artifact = exported()
    for stage, operators in (("prefill", {"Precondition", "CausalAttention"}), ("decode", {"DecodeAttention"})):
        model = load(artifact, stage)
        nodes = [node.op_type for node in model.graph.node if node.domain == "ai.lucid"]
        assert set(nodes) == operators and len(nodes) == 2 * len(operators)
        assert {fn.name for fn in model.functions} == operators
        assert {node.domain for fn in model.functions for node in fn.node} <= {"", "ai.onnx"}


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_bodies_have_the_inputs_and_outputs_of_the_table(name: str) -> None:
    [operator] = [each for each in OPERATORS if each.name == name]
    body = FUNCTIONS[name].to_function_proto()
    assert (body.domain, body.name) == (DOMAIN, operator.name)
    assert (tuple(body.input), tuple(body.output)) == (operator.input_names, operator.output_names)
    assert list(body.attribute) == [each.name for each in operator.attributes if each.default is None]
    given = function_proto(name, training_diagonal=True)
    assert list(given.attribute) == [each.name for each in operator.attributes]


def test_every_operator_of_an_artifact_has_a_body() -> None:
    traced = {each.name for each in OPERATORS if each.torch_name and each is not SCATTER_ROW}
    assert set(FUNCTIONS) == {*traced, QUANTIZED_EXPERT_MATMUL.name}


@pytest.mark.parametrize(
    ("name", "several", "count"),
    [
        ("Precondition", False, 5),
        ("CausalAttention", False, 1),
        ("DecodeAttention", False, 0),
        ("DecodeAttention", True, 1),
        ("DeltaRule", False, 2),
    ],
)
def test_loops_of_bodies_have_a_condition_and_carry_one_value(name: str, several: bool, count: int) -> None:
    """Each has the condition true, without which ONNX's ReferenceEvaluator runs it zero times, and carries one value:
    the compiler writes several in the order of a set, which differs from process to process."""

    def loops(nodes: Any) -> Iterator[tuple[Any, set[str]]]:
        constants = (node for node in nodes if node.op_type == "Constant")
        true = {node.output[0] for node in constants if node.attribute[0].t.data_type == onnx.TensorProto.BOOL}
        for node in nodes:
            if node.op_type == "Loop":
                yield node, true
            for attribute in node.attribute:
                yield from loops(attribute.g.node)

    found = list(loops(function_proto(name, several=several).node))
    assert len(found) == count
    assert all(node.input[1] in true for node, true in found)
    assert all(len(node.input) == 3 for node, _ in found)  # the bound, the condition, the value
