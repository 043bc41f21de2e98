"""The numbers that ``inspect`` shows, compared with the artifact's files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lucid_deploy.artifact import Artifact
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.runtimes.inspection import compression, memory_needed, parameters, quantized_size
from tests.runtimes.test_quantized_sessions import BIASED

Made = Callable[..., tuple[Path, Artifact]]


def test_a_small_models_weights_count_for_each_graph_and_a_growing_cache_twice(exported: Made) -> None:
    _, artifact = exported()
    found = memory_needed(artifact, 2, 100)
    assert found["weights"] == 3 * artifact.path("weights.bin").stat().st_size
    assert found["cache"] == 2 * 100 * found["cache_per_token"] and found["cache_while_decoding"] == 2 * found["cache"]
    parts = ("weights", "cache_while_decoding", "workspace", "runtime")
    assert found["total"] == sum(found[part] for part in parts)


def test_packed_quantized_weights_count_once_with_the_library_and_twice_without(
    quantized: Made, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    _, artifact = quantized("int8", changes=BIASED, activations="int8")
    monkeypatch.setattr("lucid_deploy.runtimes.inspection.PACK_LIMIT", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    stored, rounded = artifact.path("weights.bin").stat().st_size, quantized_size(artifact)
    assert memory_needed(artifact, 1, 100)["weights"] == stored + 2 * rounded
    request.getfixturevalue("built_library")
    assert memory_needed(artifact, 1, 100)["weights"] == stored + rounded


def test_a_tied_head_of_two_parts_is_counted_once(quantized: Made) -> None:
    """In a quantized model, the tied embedding reads the head's bytes under another name."""
    checkpoint, artifact = quantized("int4", changes=BIASED, activations="int8", frequent_rows=40)
    weights = load_file(checkpoint / "model.safetensors").values()
    assert parameters(artifact)["total"] == sum(each.numel() for each in weights)


def test_compression_is_the_ratio_of_the_weight_files(demo: Callable[..., Artifact]) -> None:
    plain, rounded = demo(), demo(quantize=QuantizeOptions("int4"))
    sizes = [each.path("weights.bin").stat().st_size for each in (plain, rounded)]
    assert abs(compression(rounded) * sizes[1] / sizes[0] - 1) < 0.01
