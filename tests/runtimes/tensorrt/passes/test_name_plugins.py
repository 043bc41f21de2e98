"""Attributes lead TensorRT's parser to the plugin, also past a function of the node's name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.runtimes.tensorrt.passes import (
    decomposable_attention,
    explicit_attention,
    name_plugins,
    standard_attention,
)
from tests.runtimes.tensorrt.graphs import load

Exported = Callable[..., tuple[Path, Artifact]]


def test_plugin_nodes_get_names_and_others_do_not(exported: Exported) -> None:
    model = load(exported()[1], "prefill")
    assert name_plugins(model) == 2
    named = [node.op_type for node in model.graph if "plugin_namespace" in node.attributes]
    assert named == ["Precondition", "Precondition"]
    [node, *_] = [node for node in model.graph if node.op_type == "Precondition"]
    assert node.attributes["plugin_namespace"].as_string() == "ai.lucid"
    assert node.attributes["plugin_version"].as_string() == "1"


def test_attention_is_marked(exported: Exported) -> None:
    model = load(exported()[1], "prefill")
    assert decomposable_attention(model) == 0
    standard_attention(model)
    assert decomposable_attention(model) == 2


@pytest.mark.tensorrt
def test_tensorrt_takes_the_plugin_past_the_function(exported: Exported, plugin: Path) -> None:
    """Without the attributes the parser takes the body, or fails at it."""
    trt = pytest.importorskip("tensorrt_rtx", reason='needs TensorRT-RTX: pip install -e ".[rtx]"')
    from lucid_deploy.plugins.hosts.tensorrt.registry import register_plugins

    register_plugins(plugin, trt)
    artifact = exported()[1]
    taken = {}
    for named in (False, True):
        model = load(artifact, "decode")
        explicit_attention(model)
        if named:
            assert name_plugins(model) == 2
        network = trt.Builder(trt.Logger(trt.Logger.ERROR)).create_network(0)
        parser = trt.OnnxParser(network, trt.Logger(trt.Logger.INTERNAL_ERROR))
        parser.parse(ir.serde.serialize_model(model).SerializeToString(), str(artifact.graph_path("decode")))
        layers = [network.get_layer(index).type for index in range(network.num_layers)]
        taken[named] = layers.count(trt.LayerType.PLUGIN_V3)
    assert taken == {False: 0, True: 2}
