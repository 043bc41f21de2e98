"""The runtime onnxruntime: each kind of cache gets its session, and layers are cut out of an artifact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes import RuntimeOptions, find_runtime
from lucid_deploy.runtimes.options import PROVIDERS

Exported = Callable[..., tuple[Path, Artifact]]


def test_static_caches_are_decoded_in_place_and_growing_ones_not(exported: Exported) -> None:
    runtime, logits = find_runtime("onnxruntime"), []
    for cache in ("growing", "static"):
        _, artifact = exported(cache=cache)
        session = runtime.open(artifact, RuntimeOptions("onnxruntime", threads=1))
        assert (session.in_place is not None) == (cache == "static")
        assert (session.runtime, session.identity) == ("onnxruntime", artifact.identity)
        logits.append(session.prefill(np.array([[5, 5, 6]]), session.empty_cache()))
    np.testing.assert_allclose(*logits, atol=1e-5)


def test_layers_are_cut_out_of_an_artifact(exported: Exported) -> None:
    _, artifact = exported()
    runtime = find_runtime("onnxruntime")
    session = runtime.open(artifact, RuntimeOptions("onnxruntime"))
    assert runtime.open_layers(session, artifact).layers == session.layers
    with pytest.raises(LucidError, match="name the artifact that the session runs"):
        runtime.open_layers(session, None)


def test_only_its_own_options_change_what_it_can() -> None:
    runtime = find_runtime("onnxruntime")
    assert runtime.options == {"threads", "provider", "kernels"}
    plain = runtime.capabilities(RuntimeOptions())
    assert runtime.capabilities(RuntimeOptions(threads=3, kernels="functions")) == plain
    assert {runtime.capabilities(RuntimeOptions(provider=name)) == plain for name in PROVIDERS if name != "cpu"} == {
        False
    }
