"""The layers of a graph, one by one, compute what the graph computes as a whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner
import onnxruntime
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


@pytest.mark.parametrize(("dtype", "loads"), [("float32", 2), ("float16", 4)])
def test_graphs_are_kept_where_they_hold_no_weights(
    dtype: str, loads: int, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With float16 the runtime holds the weights in float32, once for each graph: one at a time."""
    loaded, original = [], onnxruntime.InferenceSession

    def load(*arguments: Any, **options: Any) -> onnxruntime.InferenceSession:
        loaded.append(arguments)
        return original(*arguments, **options)

    layers = OrtLayers(exported(dtype)[1], RuntimeOptions())
    monkeypatch.setattr(onnxruntime, "InferenceSession", load)
    tokens = NewTokens.after(IDS)
    for _ in range(2):
        residuals = layers.run(tokens, layers.empty_past(2)).residuals
        layers.run(tokens, layers.empty_past(2), residuals)
    assert len(loaded) == loads


def test_residuals_from_outside(exported: Exported) -> None:
    given_residuals_are_read(OrtLayers(exported()[1], RuntimeOptions()))


def test_the_solve_in_view(exported: Exported) -> None:
    solves_start_from_v(OrtLayers(exported()[1], RuntimeOptions()))


def test_standard_attention_solves_nothing(exported: Exported) -> None:
    layers = OrtLayers(exported(attention_type="llama")[1], RuntimeOptions())
    assert layers.run(NewTokens.after(IDS), layers.empty_past(2)).given == [None, None]


def test_a_graph_without_its_solves_cannot_be_explained(artifact_copy: Path) -> None:
    path, manifest = artifact_copy / "prefill.onnx", open_artifact(artifact_copy).manifest
    onnx.save(onnx.inliner.inline_local_functions(onnx.load(str(path), load_external_data=False)), str(path))
    layers = OrtLayers(Artifact(artifact_copy, manifest), RuntimeOptions())
    with pytest.raises(CheckFailed, match="solves are not to be found, so its layers cannot be explained"):
        layers.run(NewTokens.after(IDS), layers.empty_past(2))
