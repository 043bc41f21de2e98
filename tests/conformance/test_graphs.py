"""A case's graph has one node with all that the table says; the bodies made here are compared with the formulas."""

from __future__ import annotations

from lucid_deploy.conformance.graphs import operator_model
from lucid_deploy.conformance.problem_list import PROBLEMS
from lucid_deploy.conformance.problems import make_inputs
from lucid_deploy.plugins import table


def test_the_node_is_that_of_the_table() -> None:
    for operator in table.OPERATORS:
        problem = next(each for each in PROBLEMS if each.operator is operator)
        model = operator_model(problem, make_inputs(problem))
        (node,) = model.graph.node
        assert (node.domain, node.op_type) == (table.DOMAIN, operator.name)
        assert tuple(node.input) == operator.input_names and tuple(node.output) == operator.output_names
        assert {each.name for each in node.attribute} == {each.name for each in operator.required}
        assert [each.name for each in model.functions] == [operator.name]
