"""One standard ``Attention`` in place of our operator computes the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.runtimes.tensorrt.passes import standard_attention
from tests.runtimes.tensorrt.graphs import LLAMA, inputs, load, open_model

Exported = Callable[..., tuple[Path, Artifact]]


@pytest.mark.parametrize("changes", [{}, LLAMA], ids=str)
@pytest.mark.parametrize(("past", "new"), [(0, 1), (0, 5), (7, 3), (300, 290)])
def test_standard_attention_computes_the_same(
    changes: dict[str, Any], past: int, new: int, exported: Exported, tmp_path: Path
) -> None:
    """Past lengths of zero and more, more rows than a block of the operator's own body, padding before and between."""
    artifact = exported(**changes)[1]
    model = load(artifact, "prefill")
    assert standard_attention(model) and not standard_attention(model)
    operators = [node.op_type for node in model.graph.all_nodes()]
    assert "CausalAttention" not in operators and operators.count("Attention") == 2
    assert operators.count("Range") <= 4, "the mask is made once for all layers; picking the last token takes two"
    feed = inputs(artifact, "prefill", past, new)
    expected = ort.InferenceSession(str(artifact.graph_path("prefill"))).run(None, feed)
    for got, wanted in zip(open_model(model, artifact, tmp_path).run(None, feed), expected, strict=True):
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5)


def test_standard_attention_in_decode_of_a_standard_model(exported: Exported, tmp_path: Path) -> None:
    artifact = exported(**LLAMA)[1]
    model = load(artifact, "decode")
    standard_attention(model)
    assert [node.op_type for node in model.graph.all_nodes() if node.domain] == []
    feed = inputs(artifact, "decode", 9, 1)
    expected = ort.InferenceSession(str(artifact.graph_path("decode"))).run(None, feed)
    for got, wanted in zip(open_model(model, artifact, tmp_path).run(None, feed), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5)
