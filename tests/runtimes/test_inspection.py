"""What is inside an artifact, against what its files say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.inspection import describe, memory_needed, memory_of_speculation
from tests.conftest import MIXED

Made = Callable[..., tuple[Path, Artifact]]


def test_inspect_says_what_is_quantized(quantized: Made) -> None:
    _, artifact = quantized("int4", "qdq")
    facts = describe(artifact)
    assert facts["quantization"]["scheme"] == "int4" and set(facts["weight_types"]) == {"int4", "float32"}
    shapes = [tensor.shape for tensor in artifact.manifest.quantization.tensors.values()]
    assert facts["weight_types"]["int4"] == sum(rows * width for rows, width in shapes) // 2
    assert 2 < facts["compression"] < 8


@pytest.mark.parametrize(("batch", "more"), [(1, 15), (2, 30), (8, 24), (32, 0), (40, 0)])
def test_speculation_takes_a_third_copy_of_the_weights_and_the_scores_of_a_step(
    exported: Made, batch: int, more: int
) -> None:
    """A step runs 16 tokens of a row and 32 of a batch; what runs without drafts is counted already."""
    _, artifact = exported()
    plain, found = memory_needed(artifact, batch, 100), memory_of_speculation(artifact, batch, 100)
    assert found is not None
    stored = artifact.path("weights.bin").stat().st_size
    assert 2 * found["weights"] == plain["weights"] - stored == 2 * stored  # as each of the two other graphs
    assert found["workspace"] * batch == plain["workspace"] * more
    assert found["total"] == plain["total"] + found["weights"] + found["workspace"]


@pytest.mark.parametrize(("options", "changes"), [({}, MIXED), ({"cache": "static", "opset": 23}, {})])
def test_speculation_that_a_session_refuses_has_no_estimate(exported: Made, options: Any, changes: Any) -> None:
    _, artifact = exported(**options, **changes)
    assert describe(artifact)["memory"]["speculation"] is None
    assert open_session(artifact, "onnxruntime", kernels="functions").multi_token_unsupported_reason is not None
