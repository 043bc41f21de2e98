"""Bodies with training's diagonal: the nodes that are added, and that nothing else of a body changes."""

from __future__ import annotations

import onnx
import pytest

from lucid_deploy.export.functions import DIVIDED, FUNCTIONS, function_proto
from lucid_deploy.plugins.shared.onnx_rows import RowFactor, with_divided_rows
from lucid_deploy.plugins.table import CAUSAL_ATTENTION, DECODE_ATTENTION, DIAGONAL, PRECONDITION

SOLVING = (PRECONDITION.name, DECODE_ATTENTION.name)


def outputs(function: onnx.FunctionProto) -> list[str]:
    return [name for node in function.node for name in node.output]


@pytest.mark.parametrize("name", SOLVING)
def test_a_factor_and_its_products_are_all_that_is_added(name: str) -> None:
    unit, made = function_proto(name), function_proto(name, training_diagonal=True)
    added = [each for each in outputs(made) if each not in outputs(unit)]
    assert [each for each in outputs(made) if each not in added] == outputs(unit)
    assert len(added) == len(RowFactor.to_function_proto().node) + 2
    assert list(made.attribute) == [*unit.attribute, DIAGONAL.name]
    names = [node.name for node in made.node if node.name]
    assert len(set(names)) == len(names), "onnxruntime refuses two nodes of one name"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_without_the_attribute_a_body_is_as_it_was(name: str) -> None:
    assert DIAGONAL.name not in function_proto(name).attribute
    before = function_proto(name).SerializeToString()
    function_proto(name, training_diagonal=True)
    assert function_proto(name).SerializeToString() == before


def test_attention_has_no_rows_to_divide() -> None:
    name = CAUSAL_ATTENTION.name
    assert function_proto(name, training_diagonal=True).SerializeToString() == function_proto(name).SerializeToString()


def test_places_that_a_body_does_not_have_are_not_passed_over() -> None:
    with pytest.raises(ValueError, match="has no value v_pad, t_pad, batch_one"):
        with_divided_rows(FUNCTIONS[DECODE_ATTENTION.name].to_function_proto(), DIVIDED[PRECONDITION.name])
