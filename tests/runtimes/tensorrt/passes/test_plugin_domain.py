"""The plugin's nodes lead TensorRT's parser to the plugins, whoever hands them over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.runtimes.tensorrt.passes import plugin_domain, standard_attention
from tests.runtimes.tensorrt.graphs import LLAMA, load

Exported = Callable[..., tuple[Path, Artifact]]


def test_plugin_domain_needs_types(exported: Exported) -> None:
    model = load(exported()[1], "decode")
    [node, *_] = [node for node in model.graph if node.domain]
    node.outputs[1].type = None
    with pytest.raises(ValueError, match=f"{node.name}: {node.outputs[1].name} has no type"):
        plugin_domain(model)


def test_plugin_domain_leaves_a_standard_model_alone(exported: Exported) -> None:
    model = load(exported(**LLAMA)[1], "decode")
    standard_attention(model)
    assert not plugin_domain(model) and "trt.plugins" not in model.graph.opset_imports
