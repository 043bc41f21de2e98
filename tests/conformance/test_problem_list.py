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


@pytest.mark.parametrize("operator", [table.PRECONDITION, table.CAUSAL_ATTENTION, table.DECODE_ATTENTION])
def test_sizes_that_models_have_have_a_case(operator: Operator) -> None:
    """Kernels take widths in vectors, and tokens in chunks: an odd rest of these goes a way of its own."""
    cases = [each for one in PROBLEMS if one.operator is operator for each in (one, *one.further)]
    assert {each.width for each in cases} >= {68, 96, 112, 256}
    assert any(each.past == 1025 for each in cases)
    assert any(each.past == 97 for each in cases)
    assert any(each.padded and each.batch > 2 for each in cases)
    assert operator is table.DECODE_ATTENTION or any(each.padded and each.new > 96 for each in cases)


def test_decoding_has_cases_of_several_tokens_and_of_many_query_heads() -> None:
    cases = [each for each in PROBLEMS if each.operator is table.DECODE_ATTENTION]
    several = [each for each in cases if each.new > 1]
    assert {each.dtype for each in several} == set(table.DECODE_ATTENTION.types)
    assert any(each.padded and each.batch > 2 for each in several) and any(each.diagonal for each in several)
    assert any(each.new * (each.groups + 1) > 32 and each.width > 32 for each in several)
    assert any(each.groups > 6 and each.heads > 1 for each in cases)
    assert any(each.padded and each.past < each.new / 2 for each in several), "holes among the new tokens"
    assert any(place > 2048 for each in cases for _, place in each.lengths)
    assert any(each.past > 128 and each.width > 128 for each in cases)


def test_names_are_each_their_own() -> None:
    names = [(each.operator.name, each.name) for each in PROBLEMS]
    assert len(names) == len(set(names)) >= 50
