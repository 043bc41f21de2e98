"""What is inside an artifact, against what its files say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lucid_deploy.artifact import Artifact
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.runtimes.inspection import compression, memory_needed

Made = Callable[..., tuple[Path, Artifact]]


def test_a_small_models_weights_count_for_each_graph_and_a_growing_cache_twice(exported: Made) -> None:
    _, artifact = exported()
    found = memory_needed(artifact, 2, 100)
    assert found["weights"] == 3 * artifact.path("weights.bin").stat().st_size
    assert found["cache"] == 2 * 100 * found["cache_per_token"] and found["cache_while_decoding"] == 2 * found["cache"]
    parts = ("weights", "cache_while_decoding", "workspace", "runtime")
    assert found["total"] == sum(found[part] for part in parts)


def test_compression_is_the_ratio_of_the_weight_files(demo: Callable[..., Artifact]) -> None:
    plain, rounded = demo(), demo(quantize=QuantizeOptions("int4"))
    sizes = [each.path("weights.bin").stat().st_size for each in (plain, rounded)]
    assert abs(compression(rounded) * sizes[1] / sizes[0] - 1) < 0.01
