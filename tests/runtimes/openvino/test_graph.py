"""One graph in openvino: outputs by name, in the graph's types."""

from __future__ import annotations

import numpy as np
import onnx.inliner
import pytest

from lucid_deploy.conformance.case_files import CASES, read_case
from lucid_deploy.runtimes.openvino.graph import open_openvino_graph
from lucid_deploy.runtimes.options import RuntimeOptions


@pytest.mark.parametrize("name", ["decode_attention_past", "model_prefill_float16", "model_decode"])
def test_a_graph_gives_its_outputs(name: str) -> None:
    case = read_case(CASES / name)
    model = onnx.inliner.inline_local_functions(case.model)
    options = RuntimeOptions("openvino", threads=1)
    found = open_openvino_graph(model, options)(case.inputs)
    assert list(found) == list(case.outputs)
    for item in case.model.graph.output:
        wanted = onnx.helper.tensor_dtype_to_np_dtype(item.type.tensor_type.elem_type)
        assert found[item.name].dtype == wanted
        np.testing.assert_allclose(found[item.name], case.outputs[item.name], rtol=0.02, atol=0.02)
