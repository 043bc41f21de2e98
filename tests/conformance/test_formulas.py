"""The formulas of expected values, and the graphs that cases consist of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lucid_deploy.conformance.formulas import FORMULAS
from lucid_deploy.conformance.graphs import operator_model
from lucid_deploy.conformance.problem_list import PROBLEMS
from lucid_deploy.conformance.problems import EPSILON, SCALE, make_inputs
from lucid_deploy.plugins import table
from lucid_deploy.plugins.causal_attention.reference import causal_attention_reference
from lucid_deploy.plugins.decode_attention.reference import decode_attention_reference
from lucid_deploy.plugins.delta_rule.reference import delta_rule_reference
from lucid_deploy.plugins.expert_matmul.reference import expert_matmul_reference
from lucid_deploy.plugins.precondition.reference import precondition_reference
from lucid_deploy.plugins.scatter_row.reference import scatter_row_reference

REFERENCES = {
    table.PRECONDITION.name: lambda diagonal, *tensors: (precondition_reference(*tensors, EPSILON, diagonal),),
    table.CAUSAL_ATTENTION.name: lambda _, *tensors: (causal_attention_reference(*tensors),),
    table.DECODE_ATTENTION.name: lambda diagonal, *tensors: decode_attention_reference(*tensors, EPSILON, diagonal),
    table.DELTA_RULE.name: lambda _, *tensors: delta_rule_reference(*tensors, SCALE),
    table.EXPERT_MATMUL.name: lambda _, *tensors: (expert_matmul_reference(*tensors),),
    table.SCATTER_ROW.name: lambda _, *tensors: (scatter_row_reference(*tensors),),
}
COMPARED = [each for each in PROBLEMS if each.dtype == "float32" and each.operator.name in REFERENCES]


@pytest.mark.parametrize("name", REFERENCES)
def test_formulas_agree_with_the_references_in_float64(name: str) -> None:
    for problem in (each for each in COMPARED if each.operator.name == name):
        inputs = [torch.from_numpy(array) for array in make_inputs(problem).values()]
        inputs = [tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs]
        found = FORMULAS[name](*(tensor.numpy() for tensor in inputs), **problem.attributes)
        for ours, theirs in zip(found, REFERENCES[name](problem.diagonal == 1, *inputs), strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-9, atol=1e-12, err_msg=problem.name)


def test_there_is_a_formula_for_each_operator_of_the_table() -> None:
    assert FORMULAS.keys() == {operator.name for operator in table.OPERATORS}


def test_a_stored_cache_counts_as_its_dequantized_values() -> None:
    problem = next(each for each in PROBLEMS if each.operator is table.DECODE_ATTENTION_INT8)
    q, k_new, v_new, k, y, k_scale, y_scale, mask = make_inputs(problem).values()
    found = FORMULAS[problem.operator.name](q, k_new, v_new, k, y, k_scale, y_scale, mask, epsilon=EPSILON)
    plain = FORMULAS[table.DECODE_ATTENTION.name](
        q, k_new, v_new, k * k_scale.astype("f8"), y * y_scale.astype("f8"), mask, epsilon=EPSILON
    )
    for ours, theirs in zip(found, plain, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_graphs_have_the_nodes_of_the_table() -> None:
    for operator in table.OPERATORS:
        problem = next(each for each in PROBLEMS if each.operator is operator)
        model = operator_model(problem)
        (node,) = model.graph.node
        assert tuple(make_inputs(problem)) == operator.input_names
        assert (node.domain, node.op_type) == (table.DOMAIN, operator.name)
        assert tuple(node.input) == operator.input_names and tuple(node.output) == operator.output_names
        assert {each.name for each in node.attribute} == {each.name for each in operator.required}
        assert [each.name for each in model.functions] == [operator.name]
