"""What is inside an artifact, against what its files say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lucid_deploy.artifact import Artifact
from lucid_deploy.runtimes.inspection import memory_needed

Made = Callable[..., tuple[Path, Artifact]]


def test_a_small_models_weights_count_for_each_graph_and_a_growing_cache_twice(exported: Made) -> None:
    _, artifact = exported()
    found = memory_needed(artifact, 2, 100)
    assert found["weights"] == 3 * artifact.path("weights.bin").stat().st_size
    assert found["cache"] == 2 * 100 * found["cache_per_token"] and found["cache_while_decoding"] == 2 * found["cache"]
    parts = ("weights", "cache_while_decoding", "workspace", "runtime")
    assert found["total"] == sum(found[part] for part in parts)
