"""onnxruntime's own rotary embedding in the place of eight nodes, and NVFP4 weights in a type that it reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.onnxruntime.session import OrtSession
from lucid_deploy.runtimes.options import RuntimeOptions
from lucid_deploy.runtimes.passes.editing import nodes_of
from lucid_deploy.runtimes.passes.own_operators import (
    retype_fp4,
    use_rotary_embedding,
)
from lucid_deploy.runtimes.torch.artifact_weights import load_artifact_model
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.runtimes.passes.loaded_graphs import copied, operators


def test_an_nvfp4_artifact_computes_what_pytorch_computes(quantized: Callable[..., tuple[Path, Artifact]]) -> None:
    """Prefill and decode."""
    artifact = quantized("nvfp4")[1]
    graph = onnx.ModelProto()
    graph.CopyFrom(artifact.graph("decode"))
    assert retype_fp4(graph) and not retype_fp4(graph)
    ids, logits = np.arange(10, dtype=np.int64)[None], []
    exactly = TorchSession(load_artifact_model(artifact, dtype="float64"))
    for session in (open_session(artifact, "onnxruntime"), open_session(artifact, "torch"), exactly):
        cache = session.empty_cache(1)
        logits.append((session.prefill(ids, cache), session.decode(ids[:, :1], cache)))
    for ours, rounded, exact in zip(*logits, strict=True):
        assert np.linalg.norm(ours - exact) <= 4 * np.linalg.norm(rounded - exact)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("stage", ["prefill", "decode"])
def test_one_node_computes_the_same_rotary_embedding(exported, stage: str, dtype: str) -> None:
    """Queries and keys of both layers, for rows at different positions."""
    artifact = exported(dtype=dtype)[1]
    plain, rotated = copied(artifact, stage), copied(artifact, stage)
    assert use_rotary_embedding(rotated)
    after = operators(rotated)
    assert (after["RotaryEmbedding"], after["Split"], after["Squeeze"] - operators(plain)["Squeeze"]) == (4, 0, 2)
    session = OrtSession(artifact, RuntimeOptions(kernels="functions"))
    ids, mask = np.arange(1, 25).reshape(2, 12), np.ones((2, 12), bool)
    mask[0, :5] = False
    cache = session.empty_cache(2)
    turned = [session.prefill(ids, cache, mask), session.decode(ids[:, :1], cache)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lucid_deploy.runtimes.passes.own_operators.use_rotary_embedding", lambda model: False)
        session = OrtSession(artifact, RuntimeOptions(kernels="functions"))
    cache = session.empty_cache(2)
    for ours, theirs in zip(
        turned, [session.prefill(ids, cache, mask), session.decode(ids[:, :1], cache)], strict=True
    ):
        assert np.abs(ours - theirs).max() <= (4e-3 if dtype == "float16" else 4e-6) * np.abs(theirs).max()


def test_nodes_that_compute_another_rotation_stay(exported) -> None:
    """With the operands of each subtraction swapped, the nodes compute no rotary embedding."""
    model = copied(exported()[1])
    for node in nodes_of(model.graph, "", "Sub"):
        node.input[:] = reversed(node.input)
    before = model.SerializeToString()
    assert not use_rotary_embedding(model) and model.SerializeToString() == before
