"""One graph in onnxruntime: outputs by name, in the graph's types."""

from __future__ import annotations

import pytest

from lucid_deploy.conformance.cases import make_case
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.onnxruntime.graph import open_ort_graph
from lucid_deploy.runtimes.options import RuntimeOptions
from tests.runtimes.graph_cases import SOME, check_outputs


@pytest.mark.parametrize("name", SOME)
def test_a_graph_gives_its_outputs(name: str) -> None:
    check_outputs(name, lambda model: open_ort_graph(model, RuntimeOptions("onnxruntime", threads=1)))


def test_a_gpu_provider_is_refused() -> None:
    with pytest.raises(LucidError, match="A single graph runs in onnxruntime on the CPU"):
        open_ort_graph(make_case("model_decode").model, RuntimeOptions(provider="cuda"))
