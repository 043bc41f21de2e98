"""Benchmark results: ratios paired, bytes counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lucid_deploy.artifact import Artifact
from lucid_deploy.artifact.quantization import Quantization, QuantizedTensor
from lucid_deploy.bench.report import decode_bytes, paired_ratio
from lucid_deploy.export.quantize.plan import EMBEDDING

Exported = Callable[..., tuple[Path, Artifact]]


def test_ratios_are_paired_by_round() -> None:
    # A machine that becomes ten times slower halfway must not change the ratio.
    assert paired_ratio([2, 2, 20, 20], [1, 1, 10, 10]) == {"median": 2, "min": 2, "max": 2}
    assert paired_ratio([2, 2, 20, 50], [1, 1, 10, 10]) == {"median": 2, "min": 2, "max": 5}


def test_bytes_of_a_decode_step(exported: Exported) -> None:
    _, artifact = exported()
    weights = 10**6
    embedding = 97 * 64 * 4
    cache = 2 * 2 * 2 * 36 * 100 * 3 * 4  # K and Y, layers, heads, width, tokens, rows, bytes
    assert decode_bytes(artifact.manifest, weights, 3, 100) == weights - embedding + cache


def test_bytes_of_a_decode_step_with_quantized_weights(exported: Exported) -> None:
    """An embedding in 4 bits is not read whole either, and takes fewer bytes."""
    artifact = exported()[1]
    float_bytes = decode_bytes(artifact.manifest, 10**6, 1, 8)
    for shapes, embedding in (
        ({"lm_head.weight": (97, 64)}, 97 * 64 * 4),
        ({"lm_head.weight": (97, 64), EMBEDDING: (97, 64)}, 97 * (64 // 2 + 2 * 4)),  # numbers; two scales a row
    ):
        tensors = {name: QuantizedTensor(shape, 32) for name, shape in shapes.items()}
        record = Quantization("int4", 4, "matmulnbits", "int8", tensors, (), "a test")
        changed = replace(artifact.manifest, quantization=record)
        assert decode_bytes(changed, 10**6, 1, 8) == float_bytes + 97 * 64 * 4 - embedding
