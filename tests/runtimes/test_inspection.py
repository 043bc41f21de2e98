"""What is inside an artifact, against what its files say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.artifact import Artifact, whole_pages
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.inspection import compression, describe, memory_needed, memory_of_speculation, quantized_size
from tests.conftest import MIXED

Made = Callable[..., tuple[Path, Artifact]]


def test_inspect_says_what_is_quantized(quantized: Made) -> None:
    _, artifact = quantized("int4", "qdq")
    facts = describe(artifact)
    assert facts["quantization"]["scheme"] == "int4" and set(facts["weight_types"]) == {"int4", "float32"}
    shapes = [tensor.shape for tensor in artifact.manifest.quantization.tensors.values()]
    assert facts["weight_types"]["int4"] == sum(rows * width for rows, width in shapes) // 2
    assert 2 < facts["compression"] < 8


@pytest.mark.parametrize(("scheme", "form"), [("int8", "auto"), ("int4", "qdq")])
def test_weights_are_so_many_times_smaller_as_their_file_is(quantized: Made, scheme: str, form: str) -> None:
    """With its padding, which counts where weights are small; the end of the last page is no part of a file."""
    made = quantized(scheme, form)[1]
    plain, packed = (whole_pages(each.path("weights.bin").stat().st_size) for each in (quantized(None)[1], made))
    assert compression(made) == plain / packed and compression(quantized(None)[1]) == 1


def test_memory_beyond_64_bits_is_counted(exported: Made) -> None:
    artifact = exported(cache_dtype="int8")[1]  # brought to float32 one layer at a time, which is counted apart
    many, few = 10**30, memory_needed(artifact, 3, 100)
    found = memory_needed(artifact, 3 * many, 100)
    assert all(found[name] == few[name] * many for name in ("cache", "cache_while_decoding", "workspace"))


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


def test_of_a_large_model_the_third_graph_keeps_the_quantized_weights(
    quantized: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, artifact = quantized("int4", "qdq")
    monkeypatch.setattr("lucid_deploy.runtimes.inspection.PACK_LIMIT", 0)
    found = memory_of_speculation(artifact, 1, 100)
    assert found is not None and found["weights"] == quantized_size(artifact)
    assert 0 < found["weights"] < artifact.path("weights.bin").stat().st_size


@pytest.mark.parametrize(
    ("options", "changes"), [({}, MIXED), ({"inline": True}, {}), ({"cache": "static", "opset": 23}, {})]
)
def test_speculation_that_a_session_refuses_has_no_estimate(exported: Made, options: Any, changes: Any) -> None:
    _, artifact = exported(**options, **changes)
    assert describe(artifact)["memory"]["speculation"] is None
    assert open_session(artifact, "onnxruntime", kernels="functions").multi_token_unsupported_reason is not None
