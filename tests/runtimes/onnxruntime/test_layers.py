"""Running the layers of a graph one by one, and the pass that adds outputs and inputs for this."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import pytest

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.errors import CheckFailed
from lucid_deploy.runtimes.layers import NewTokens
from lucid_deploy.runtimes.onnxruntime.layers import OrtLayers
from lucid_deploy.runtimes.onnxruntime.session import OrtSession
from lucid_deploy.runtimes.passes.cut_layers import cut_layers

Exported = Callable[..., tuple[Path, Artifact]]
IDS = np.random.default_rng(3).integers(0, 97, (2, 24))
IDS[1, 5:17] = 11  # one token repeated


def test_given_is_v_before_the_solve(exported: Exported) -> None:
    """A LUCID layer caches Y, and ``given`` is V: both are equal for the first token, but not for all."""
    layers = OrtLayers(OrtSession(exported()[1]))
    states = layers.run(NewTokens.after(IDS), layers.empty_past(2))
    for given, cached in zip(states.given, states.cached, strict=True):
        assert given is not None and given.shape == cached["value"].shape
        np.testing.assert_allclose(given[:, :, 0], cached["value"][:, :, 0], atol=1e-4)
        assert np.abs(given - cached["value"]).max() > 1e-2


def test_a_graph_with_inlined_functions_cannot_be_run_layer_by_layer(artifact_copy: Path) -> None:
    path, manifest = artifact_copy / "prefill.onnx", open_artifact(artifact_copy).manifest
    onnx.save(onnx.inliner.inline_local_functions(onnx.load(str(path), load_external_data=False)), str(path))
    layers = OrtLayers(OrtSession(Artifact(artifact_copy, manifest)))
    with pytest.raises(CheckFailed, match="functions were inlined"):
        layers.run(NewTokens.after(IDS), layers.empty_past(2))


def graph_of(artifact: Artifact, stage: str) -> onnx.ModelProto:
    return onnx.load(str(artifact.graph_path(stage)), load_external_data=False)


def added(model: onnx.ModelProto, before: onnx.ModelProto) -> tuple[list[str], list[str]]:
    """Names of the inputs and outputs that are new; the old ones come before these."""
    pairs = [(model.graph.input, before.graph.input), (model.graph.output, before.graph.output)]
    assert all(list(now)[: len(then)] == list(then) for now, then in pairs)
    new_inputs, new_outputs = ([value.name for value in now[len(then) :]] for now, then in pairs)
    return new_inputs, new_outputs


@pytest.mark.parametrize("stage", ["prefill", "decode"])
@pytest.mark.parametrize(("changes", "solves"), [({}, 2), ({"attention_type": "llama"}, 0)], ids=["lucid", "llama"])
def test_layers_get_outputs_and_if_cut_inputs_too(
    stage: str, changes: dict[str, Any], solves: int, exported: Exported
) -> None:
    before = graph_of(exported(**changes)[1], stage)
    shown = [f"residual.{i}" for i in range(3)] + [f"values.{i}" for i in range(solves)]
    looked_into, cut = graph_of(exported(**changes)[1], stage), graph_of(exported(**changes)[1], stage)
    cut_layers(looked_into, 2, cut=False)
    assert sorted(added(looked_into, before)[1]) == shown and added(looked_into, before)[0] == []
    cut_layers(cut, 2, cut=True)
    assert added(cut, before) == ([f"given.{i}" for i in range(3)], added(looked_into, before)[1])
    assert list(cut.graph.initializer) == list(before.graph.initializer)
    read = {name for node in cut.graph.node for name in node.input}
    sources = {node.output[0]: node.input[0] for node in cut.graph.node if node.output[0].startswith("residual.")}
    assert {f"given.{i}" for i in range(3)} <= read
    # Only the node that shows a layer's output reads it, so an error cannot reach the next layer.
    assert all(
        [node.output[0] for node in cut.graph.node if source in node.input] == [name]
        for name, source in sources.items()
    )


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ("model.layers.1.input_layernorm.weight", "no norm with the weight of layer 1, so its layers"),
        ("model.norm.weight", r"no norm with the weight model\.norm\.weight, so its head"),
    ],
)
def test_a_norm_that_is_not_found_is_an_error(weight: str, message: str, exported: Exported) -> None:
    model = graph_of(exported()[1], "prefill")
    next(item for item in model.graph.initializer if item.name == weight).name = "other"
    for node in model.graph.node:
        node.input[:] = ["other" if name == weight else name for name in node.input]
    with pytest.raises(CheckFailed, match=message):
        cut_layers(model, 2, cut=True)
