"""One graph in torch: outputs by name, in the graph's types."""

from __future__ import annotations

import onnx
import pytest
import torch

from lucid_deploy.conformance.cases import make_case
from lucid_deploy.conformance.runner import relative_error
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.options import RuntimeOptions
from lucid_deploy.runtimes.torch.graph import open_torch_graph
from tests.runtimes.graph_cases import SOME, check_outputs


@pytest.mark.parametrize("name", SOME)
def test_a_graph_gives_its_outputs(name: str) -> None:
    check_outputs(name, lambda model: open_torch_graph(model, RuntimeOptions("torch", threads=1)))


def test_our_operators_are_pytorchs_in_every_type() -> None:
    for dtype in ("float32", "float16", "bfloat16"):
        case = make_case(f"precondition_past_padded{'' if dtype == 'float32' else f'_{dtype}'}")
        del case.model.functions[:]  # nothing else could compute it
        found = open_torch_graph(case.model, RuntimeOptions("torch"))(case.inputs)["Y"]
        assert found.dtype.name == dtype
        assert relative_error(found, case.outputs["Y"]) <= case.description.outputs[0].tolerance


@pytest.mark.parametrize("diagonal", [0.5, 2.0])
def test_a_diagonal_that_means_nothing_is_refused(diagonal: float) -> None:
    case = make_case("precondition_past_padded")
    del case.model.functions[:]
    case.model.graph.node[0].attribute.append(onnx.helper.make_attribute("diagonal", diagonal))
    with pytest.raises(LucidError, match="The attribute diagonal must be 0 or 1"):
        open_torch_graph(case.model, RuntimeOptions("torch"))(case.inputs)


def test_a_device_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(LucidError, match="PyTorch sees no CUDA device"):
        open_torch_graph(make_case("model_decode").model, RuntimeOptions("torch", "cuda"))
