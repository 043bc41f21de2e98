"""What is inside an artifact, against what its files say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lucid_deploy.artifact import Artifact
from lucid_deploy.runtimes.inspection import describe

Made = Callable[..., tuple[Path, Artifact]]


def test_inspect_says_what_is_quantized(quantized: Made) -> None:
    _, artifact = quantized("int4", "qdq")
    facts = describe(artifact)
    assert facts["quantization"]["scheme"] == "int4" and set(facts["weight_types"]) == {"int4", "float32"}
    shapes = [tensor.shape for tensor in artifact.manifest.quantization.tensors.values()]
    assert facts["weight_types"]["int4"] == sum(rows * width for rows, width in shapes) // 2
    assert 2 < facts["compression"] < 8
