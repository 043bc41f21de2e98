"""Both graphs of a stage: what is in them, and that the one with bodies computes what the artifact does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from lucid_deploy.artifact import STAGES, Artifact
from lucid_deploy.packaging.tensorrt.package import stage_graphs
from tests.runtimes.tensorrt.graphs import inputs

Exported = Callable[..., tuple[Path, Artifact]]
PLUGINS = {"prefill": {"Precondition": 2}, "decode": {"DecodeAttention": 2}}


@pytest.mark.parametrize("form", ["explicit", "standard"])
@pytest.mark.parametrize("stage", STAGES)
def test_the_engines_graph_has_plugins_and_neither_bodies_nor_loops(stage: str, form: str, exported: Exported) -> None:
    graphs = stage_graphs(exported("float16")[1], stage, form)
    model = onnx.load_from_string(graphs.engine)
    operators = Counter(node.op_type for node in model.graph.node)
    assert not model.functions and not operators["Loop"] and graphs.plugin_nodes == PLUGINS[stage]
    nodes = [node for node in model.graph.node if node.domain == "ai.lucid"]
    assert Counter(node.op_type for node in nodes) == PLUGINS[stage]
    for node in nodes:
        found = {attribute.name: attribute.s for attribute in node.attribute}
        assert (found["plugin_namespace"], found["plugin_version"]) == (b"ai.lucid", b"1")
    assert operators["Attention"] == (2 if (stage, form) == ("prefill", "standard") else 0)
    marked = [node for node in model.graph.node if any(each.name == "TRT_decomposable" for each in node.attribute)]
    assert len(marked) == operators["Attention"]


@pytest.mark.parametrize("stage", STAGES)
def test_the_graph_with_bodies_computes_what_the_artifact_does(stage: str, exported: Exported, tmp_path: Path) -> None:
    artifact = exported()[1]
    graphs = stage_graphs(artifact, stage, "explicit")
    (tmp_path / "functions.onnx").write_bytes(graphs.functions)
    (tmp_path / "weights.bin").write_bytes(artifact.path("weights.bin").read_bytes())
    onnx.checker.check_model(str(tmp_path / "functions.onnx"))
    feed = inputs(artifact, stage, 9, 5 if stage == "prefill" else 1)
    expected = ort.InferenceSession(str(artifact.graph_path(stage))).run(None, feed)
    for got, wanted in zip(
        ort.InferenceSession(str(tmp_path / "functions.onnx")).run(None, feed), expected, strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5)
