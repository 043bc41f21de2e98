"""The list has what a wrong implementation is likely to get wrong, for each operator in each of its types."""

from __future__ import annotations

import pytest

from lucid_deploy.conformance.problem_list import PROBLEMS
from lucid_deploy.plugins import table
from lucid_deploy.plugins.table import Operator


@pytest.mark.parametrize("operator", table.OPERATORS, ids=lambda operator: operator.name)
def test_every_type_of_an_operator_has_a_case(operator: Operator) -> None:
    assert {each.dtype for each in PROBLEMS if each.operator is operator} == set(operator.types)


@pytest.mark.parametrize("operator", [table.PRECONDITION, table.CAUSAL_ATTENTION, table.DECODE_ATTENTION])
def test_what_implementations_get_wrong_has_a_case(operator: Operator) -> None:
    cases = [each for each in PROBLEMS if each.operator is operator]
    assert any(each.keys == 1 for each in cases) and any(0.9 <= each.keys < 1 for each in cases)
    assert any(each.padded and each.batch > 1 for each in cases)
    assert any(each.past == 0 for each in cases) and any(each.past > 0 for each in cases)
    assert any(each.new == 1 for each in cases) and any(each.width % 2 for each in cases)
    assert operator is table.PRECONDITION or any(each.groups > 1 and each.heads > 1 for each in cases)


def test_names_are_each_their_own() -> None:
    names = [(each.operator.name, each.name) for each in PROBLEMS]
    assert len(names) == len(set(names)) >= 50
