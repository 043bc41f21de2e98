"""Benchmark results: ratios by round, and bytes that a decode step reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lucid_deploy.artifact import Artifact
from lucid_deploy.artifact.quantization import EMBEDDING, Quantization, QuantizedTensor
from lucid_deploy.bench import Measurement, Plan
from lucid_deploy.bench.report import build_report, decode_bytes, paired_ratio

Exported = Callable[..., tuple[Path, Artifact]]


def test_ratios_are_paired_by_round() -> None:
    # A machine that becomes ten times slower halfway must not change the ratio.
    assert paired_ratio([2, 2, 20, 20], [1, 1, 10, 10]) == {"median": 2, "min": 2, "max": 2}
    assert paired_ratio([2, 2, 20, 50], [1, 1, 10, 10]) == {"median": 2, "min": 2, "max": 5}


def test_each_contender_reads_its_own_artifact(exported: Exported) -> None:
    artifacts = {"two": exported()[1], "one": exported(num_hidden_layers=1)[1]}
    measured = [Measurement(name, stage, 3, 8, (0.5,), 1) for stage in ("prefill", "decode") for name in artifacts]
    rows = build_report(measured, {}, Plan((8,)), {}, artifacts)["measurements"]
    sizes = [artifact.path("weights.bin").stat().st_size for artifact in artifacts.values()]
    reads = [decode_bytes(each.manifest, size, 3, 8) for each, size in zip(artifacts.values(), sizes, strict=True)]
    assert [row.get("bytes_per_second") for row in rows] == [None, None, 2 * reads[0], 2 * reads[1]]
    assert [row["tokens_per_second"] for row in rows] == [2 * 3 * 8, 2 * 3 * 8, 2 * 3, 2 * 3]


def test_a_decode_step_reads_cache_and_weights_without_the_embedding(exported: Exported) -> None:
    _, artifact = exported()
    weights = 10**6
    embedding = 97 * 64 * 4
    cache = 2 * 2 * 2 * 36 * 100 * 3 * 4  # K and Y, layers, heads, width, tokens, rows, bytes
    assert decode_bytes(artifact.manifest, weights, 3, 100) == weights - embedding + cache


def test_a_decode_step_reads_quantized_weights_by_their_stored_size(exported: Exported) -> None:
    """An untied embedding in 4 bits is left out too, with its smaller size."""
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
