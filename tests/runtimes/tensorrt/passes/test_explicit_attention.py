"""Two products and a softmax in place of ``Attention`` compute the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.runtimes.tensorrt.passes import explicit_attention, standard_attention
from tests.runtimes.tensorrt.graphs import LLAMA, inputs, load, open_model

Exported = Callable[..., tuple[Path, Artifact]]


@pytest.mark.parametrize(
    ("changes", "stage", "past", "new"),
    [({}, "prefill", 0, 1), ({}, "prefill", 7, 30), (LLAMA, "prefill", 0, 5), (LLAMA, "decode", 9, 1)],
    ids=str,
)
def test_it_computes_the_same(
    changes: dict[str, Any], stage: str, past: int, new: int, exported: Exported, tmp_path: Path
) -> None:
    """Four query heads share two key heads, in prefill as they are and in decode as pairs; padding in between."""
    artifact = exported(**changes)[1]
    model = load(artifact, stage)
    standard_attention(model)
    assert explicit_attention(model) and not explicit_attention(model)
    operators = [node.op_type for node in model.graph.all_nodes()]
    assert "Attention" not in operators and "Loop" not in operators and operators.count("Softmax") == 2
    feed = inputs(artifact, stage, past, new)
    expected = ort.InferenceSession(str(artifact.graph_path(stage))).run(None, feed)
    for got, wanted in zip(open_model(model, artifact, tmp_path).run(None, feed), expected, strict=True):
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5)


def test_other_forms_are_refused(exported: Exported) -> None:
    model = load(exported()[1], "prefill")
    standard_attention(model)
    [node, *_] = [node for node in model.graph if node.op_type == "Attention"]
    node.resize_inputs(3)
    with pytest.raises(ValueError, match=f"{node.name}: an Attention of another form"):
        explicit_attention(model)


def test_unknown_heads_are_refused(exported: Exported) -> None:
    model = load(exported()[1], "prefill")
    standard_attention(model)
    [node, *_] = [node for node in model.graph if node.op_type == "Attention"]
    assert node.inputs[1] is not None
    node.inputs[1].shape = None
    with pytest.raises(ValueError, match="heads of unknown number"):
        explicit_attention(model)
