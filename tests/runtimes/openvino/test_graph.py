"""One graph in openvino: outputs by name, in the graph's types."""

from __future__ import annotations

import pytest

from lucid_deploy.runtimes.openvino.graph import open_openvino_graph
from lucid_deploy.runtimes.options import RuntimeOptions
from tests.runtimes.graph_cases import SOME, check_outputs


@pytest.mark.parametrize("name", SOME)
def test_a_graph_gives_its_outputs(name: str) -> None:
    check_outputs(name, lambda model: open_openvino_graph(model, RuntimeOptions("openvino", threads=1)))
