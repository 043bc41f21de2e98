"""One graph in torch: outputs by name, in the graph's types."""

from __future__ import annotations

import numpy as np
import onnx.inliner
import pytest
import torch

from lucid_deploy.conformance.case_files import CASES, read_case
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.options import RuntimeOptions
from lucid_deploy.runtimes.torch.graph import open_torch_graph


@pytest.mark.parametrize("name", ["decode_attention_past", "model_prefill_float16", "model_decode"])
def test_a_graph_gives_its_outputs(name: str) -> None:
    case = read_case(CASES / name)
    model = onnx.inliner.inline_local_functions(case.model)
    options = RuntimeOptions("torch", threads=1)
    found = open_torch_graph(model, options)(case.inputs)
    assert list(found) == list(case.outputs)
    for item in case.model.graph.output:
        wanted = onnx.helper.tensor_dtype_to_np_dtype(item.type.tensor_type.elem_type)
        assert found[item.name].dtype == wanted
        np.testing.assert_allclose(found[item.name], case.outputs[item.name], rtol=0.02, atol=0.02)


def test_our_operators_are_pytorchs_in_every_type() -> None:
    for dtype in ("float32", "float16", "bfloat16"):
        case = read_case(CASES / f"precondition_past_padded{'' if dtype == 'float32' else f'_{dtype}'}")
        del case.model.functions[:]  # nothing else could compute it
        found = open_torch_graph(case.model, RuntimeOptions("torch"))(case.inputs)["Y"]
        assert found.dtype.name == dtype
        np.testing.assert_allclose(found.astype("f4"), case.outputs["Y"], rtol=0.05, atol=0.05)


def test_a_device_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(LucidError, match="PyTorch sees no CUDA device"):
        open_torch_graph(read_case(CASES / "model_decode").model, RuntimeOptions("torch", "cuda"))
