"""A fixed axis changes shapes, and nothing that is computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort

from lucid_deploy.artifact import Artifact
from lucid_deploy.runtimes.tensorrt.passes import fix_axis
from tests.runtimes.tensorrt.graphs import inputs, load, open_model

Exported = Callable[..., tuple[Path, Artifact]]


def test_fix_axis_fixes_inputs_and_outputs(exported: Exported, tmp_path: Path) -> None:
    artifact = exported(cache="static")[1]
    model = load(artifact, "decode")
    assert fix_axis(model, "max_context", 64) and not fix_axis(model, "max_context", 64)
    shapes = {value.name: list(value.shape or ()) for value in [*model.graph.inputs, *model.graph.outputs]}
    assert shapes["past_key_values.0.key"][1:] == shapes["present.1.value"][1:] == [2, 64, 36]
    session = open_model(model, artifact, tmp_path)
    feed = inputs(artifact, "decode", 63, 1)
    buffers = {name: np.pad(array, [(0, 0), (0, 0), (0, 1), (0, 0)]) for name, array in feed.items() if array.ndim == 4}
    feed = {**feed, **buffers, "cache_length": np.array([63, 40])}
    expected = ort.InferenceSession(str(artifact.graph_path("decode"))).run(None, feed)
    for got, wanted in zip(session.run(None, feed), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
