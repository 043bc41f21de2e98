"""Names that a graph reads, in its branches too."""

from __future__ import annotations

from collections import Counter

from onnx import TensorProto, helper

from lucid_deploy.runtimes.onnxruntime.read_names import read_names


def test_inputs_outputs_and_branches_count() -> None:
    def info(name: str) -> object:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)

    branch = helper.make_graph([helper.make_node("Identity", ["a"], ["inner"])], "branch", [], [info("inner")])
    nodes = [
        helper.make_node("Add", ["x", "x"], ["a"]),
        helper.make_node("If", ["yes"], ["p"], then_branch=branch, else_branch=branch),
    ]
    graph = helper.make_graph(nodes, "g", [info("x"), info("yes")], [info("p"), info("a")])
    assert Counter(read_names(graph)) == {"x": 2, "a": 3, "yes": 1, "p": 1, "inner": 2}
