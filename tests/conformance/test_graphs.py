"""A case's graph: one node with all that the table says, and a body that computes the same in standard operators."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest

from lucid_deploy.conformance.compare import relative_error
from lucid_deploy.conformance.formulas import FORMULAS
from lucid_deploy.conformance.graphs import operator_model
from lucid_deploy.conformance.problem_list import PROBLEMS
from lucid_deploy.conformance.problems import make_inputs
from lucid_deploy.plugins import table
from lucid_deploy.plugins.table import DOMAIN, Operator

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
    session = ort.InferenceSession(operator_model(problem, inputs).SerializeToString())
    wanted = FORMULAS[operator.name](*inputs.values(), **problem.attributes)
    for found, exact in zip(session.run(None, inputs), wanted, strict=True):
        assert relative_error(np.asarray(found), exact) < 3e-6
