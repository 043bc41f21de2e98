"""A case's graph: one node with all that the table says, and a body that computes the same in standard operators."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_deploy.conformance.compare import relative_error
from lucid_deploy.conformance.formulas import FORMULAS
from lucid_deploy.conformance.generate import FACTOR
from lucid_deploy.conformance.graphs import operator_model
from lucid_deploy.conformance.problem_list import PROBLEMS
from lucid_deploy.conformance.problems import make_inputs
from lucid_deploy.plugins import table
from lucid_deploy.plugins.table import DOMAIN, Operator
from lucid_deploy.runtimes.onnxruntime.graph import open_ort_graph
from lucid_deploy.runtimes.options import RuntimeOptions

FIRST = {operator: next(each for each in PROBLEMS if each.operator is operator) for operator in table.OPERATORS}


@pytest.mark.parametrize("operator", table.OPERATORS, ids=lambda operator: operator.name)
def test_the_node_is_that_of_the_table(operator: Operator) -> None:
    model = operator_model(FIRST[operator], make_inputs(FIRST[operator]))
    (node,) = model.graph.node
    assert (node.domain, node.op_type) == (DOMAIN, operator.name)
    assert tuple(node.input) == operator.input_names and tuple(node.output) == operator.output_names
    assert {each.name for each in node.attribute} == {each.name for each in operator.required}
    assert [each.name for each in model.functions] == [operator.name]


@pytest.mark.parametrize("operator", table.OPERATORS, ids=lambda operator: operator.name)
def test_the_body_computes_the_formula(operator: Operator) -> None:
    problem = FIRST[operator]
    inputs = make_inputs(problem)
    graph = open_ort_graph(operator_model(problem, inputs), RuntimeOptions(kernels="functions"))
    wanted = FORMULAS[operator.name](*inputs.values(), **problem.attributes)
    gate = 3e-6 if problem.dtype == "float32" else 2.0**-11 * FACTOR[problem.dtype]  # float16's rounding
    for found, exact in zip(graph(inputs).values(), wanted, strict=True):
        assert relative_error(np.asarray(found), exact) < gate
