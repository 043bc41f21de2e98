"""What every runtime that opens single graphs has to do with cases of the conformance kit."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx.inliner

from lucid_deploy.conformance.cases import make_case
from lucid_deploy.conformance.runner import relative_error
from lucid_deploy.runtimes.evaluated_graph import Graph

SOME = ["decode_attention_past", "model_prefill_float16", "model_decode"]


def check_outputs(name: str, open_graph: Callable[[onnx.ModelProto], Graph]) -> None:
    """Run a case without functions: its outputs by name, in the graph's types, within the case's tolerances."""
    case = make_case(name)
    found = open_graph(onnx.inliner.inline_local_functions(case.model))(case.inputs)
    assert list(found) == list(case.outputs)
    for item in case.model.graph.output:
        assert found[item.name].dtype == onnx.helper.tensor_dtype_to_np_dtype(item.type.tensor_type.elem_type)
    for output in case.description.outputs:
        assert relative_error(found[output.name], case.outputs[output.name]) <= output.tolerance
