"""onnxruntime runs NVFP4 as E4M3, exactly: numbers, graphs, and a whole artifact against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from lucid_deploy.artifact import WEIGHTS, Artifact
from lucid_deploy.artifact.quantized_bytes import E2M1, E4M3
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.onnxruntime.widen_fp4 import has_fp4, retype_fp4, widened
from lucid_deploy.runtimes.torch.artifact_weights import load_artifact_model
from lucid_deploy.runtimes.torch.session import TorchSession


def test_every_number() -> None:
    packed = (np.arange(0, 16, 2) | (np.arange(1, 16, 2) << 4)).astype(np.uint8)
    found = E4M3[widened(packed, 16)]
    assert np.array_equal(found, E2M1) and np.array_equal(np.signbit(found), np.signbit(E2M1))
    assert len(widened(packed, 15)) == 15


def test_an_artifact_computes_what_pytorch_computes(quantized: Callable[..., tuple[Path, Artifact]]) -> None:
    """Prefill and decode; layers on their own read the same numbers from the graph itself."""
    artifact = quantized("nvfp4")[1]
    graph = onnx.ModelProto()
    graph.CopyFrom(artifact.graph("decode"))
    assert has_fp4(graph)
    retype_fp4(graph, artifact.path(WEIGHTS))
    inside = {tensor.name for tensor in graph.graph.initializer if tensor.raw_data}
    assert not has_fp4(graph) and {f"{name}.packed" for name in artifact.manifest.quantization.tensors} <= inside
    ids, logits = np.arange(10, dtype=np.int64)[None], []
    exactly = TorchSession(load_artifact_model(artifact, dtype="float64"))
    for session in (open_session(artifact, "onnxruntime"), open_session(artifact, "torch"), exactly):
        cache = session.empty_cache(1)
        logits.append((session.prefill(ids, cache), session.decode(ids[:, :1], cache)))
    for ours, rounded, exact in zip(*logits, strict=True):
        assert np.linalg.norm(ours - exact) <= 4 * np.linalg.norm(rounded - exact)
