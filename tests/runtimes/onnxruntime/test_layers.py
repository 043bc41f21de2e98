"""The layers of a graph, one by one, compute what the graph computes as a whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx.inliner
import pytest

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.errors import CheckFailed
from lucid_deploy.runtimes import RuntimeOptions, open_session
from lucid_deploy.runtimes.layers import NewTokens
from lucid_deploy.runtimes.onnxruntime.layers import OrtLayers
from tests.runtimes.layer_runs import IDS, given_residuals_are_read, same_as_the_session, solves_start_from_v

Exported = Callable[..., tuple[Path, Artifact]]


@pytest.mark.parametrize("cache", ["growing", "static"])
def test_they_are_the_sessions(cache: str, exported: Exported) -> None:
    _, artifact = exported(cache=cache)
    same_as_the_session(OrtLayers(artifact, RuntimeOptions()), open_session(artifact))


def test_residuals_from_outside(exported: Exported) -> None:
    given_residuals_are_read(OrtLayers(exported()[1], RuntimeOptions()))


def test_the_solve_in_view(exported: Exported) -> None:
    solves_start_from_v(OrtLayers(exported()[1], RuntimeOptions()))


def test_a_graph_without_its_solves_cannot_be_explained(artifact_copy: Path) -> None:
    path, manifest = artifact_copy / "prefill.onnx", open_artifact(artifact_copy).manifest
    onnx.save(onnx.inliner.inline_local_functions(onnx.load(str(path), load_external_data=False)), str(path))
    layers = OrtLayers(Artifact(artifact_copy, manifest), RuntimeOptions())
    with pytest.raises(CheckFailed, match="solves are not to be found, so its layers cannot be explained"):
        layers.run(NewTokens.after(IDS), layers.empty_past(2))
