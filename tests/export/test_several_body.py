"""The texts that sessions read say what their source says."""

from __future__ import annotations

import onnx
import pytest

from lucid_deploy.export.functions import function_proto
from lucid_deploy.export.several_body import FOLDER, texts
from lucid_deploy.plugins.table import DECODE_ATTENTION


def said(node):
    """Return all that a node says; the order of attributes differs from one compilation to the next."""
    attributes = {
        each.name: (each.i, list(each.ints), each.ref_attr_name, pytest.approx(each.f)) for each in node.attribute
    }
    constants = [onnx.numpy_helper.to_array(each.t).tolist() for each in node.attribute if each.name == "value"]
    return node.op_type, list(node.input), list(node.output), attributes, constants


@pytest.mark.parametrize("training", [False, True])
def test_the_files_are_up_to_date(training):
    body = function_proto(DECODE_ATTENTION.name, training_diagonal=training, several=True)
    read = onnx.parser.parse_function((FOLDER / f"several_{'training' if training else 'unit'}.onnxtxt").read_text())
    assert list(read.input) == list(body.input) and sorted(read.attribute) == sorted(body.attribute)
    assert [said(node) for node in read.node] == [said(node) for node in body.node]


def test_there_is_one_for_either_diagonal():
    assert {path.name for path in FOLDER.glob("*.onnxtxt")} == set(texts())
