"""Engines in fp8 and nvfp4 are refused for GPUs without them, and graphs that TensorRT has no layers for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.artifact.quantization import Quantization, QuantizedTensor
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.tensorrt.prepare import check_float_formats


@pytest.mark.parametrize(
    ("scheme", "activations", "capabilities", "message"),
    [
        ("fp8", "float", (), None),
        ("fp8", "fp8-static", (89, 90, 120), None),
        ("fp8", "float", (75, 86, 89), r"compute capability 7\.5, 8\.6 have no fp8, .* 8\.9 and newer have"),
        ("nvfp4", "float", (120,), None),
        ("nvfp4", "float", (89, 120), r"compute capability 8\.9 have no nvfp4"),
        ("fp8", "fp8-token", (), r"no layer for that.*--quantize stored --activations float"),
        ("fp8", "fp8-group", (89,), r"no layer for that.*--quantize stored --activations float"),
        ("int8", "float", (75,), None),
    ],
)
def test_what_is_refused(
    scheme: str,
    activations: str,
    capabilities: tuple[int, ...],
    message: str | None,
    exported: Callable[..., tuple[Path, Artifact]],
) -> None:
    artifact = exported()[1]
    tensors = {"lm_head.weight": QuantizedTensor((97, 64), 16)}
    record = Quantization(scheme, 8, "qdq", activations, tensors, (), "a test")
    changed = Artifact(artifact.directory, replace(artifact.manifest, quantization=record))
    if message is None:
        check_float_formats(changed, capabilities)
        return
    with pytest.raises(LucidError, match=message):
        check_float_formats(changed, capabilities)
