"""Graphs without functions: the same contract and the same numbers, and refused where functions are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from lucid_deploy.artifact import STAGES, Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes import RuntimeOptions, open_session
from lucid_deploy.runtimes.layers import open_layers
from tests.conftest import MIXED

Exported = Callable[..., tuple[Path, Artifact]]
MODELS = {"lucid": {}, "mixed": MIXED}


def nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from nodes(attribute.g)


def test_inlined_graphs_compute_the_same_bit_for_bit(exported: Exported) -> None:
    """Mixed layers with a static cache are compared in ``test_forms.py``, where they agree nearly."""
    whole, inlined = (exported(inline=inline)[1] for inline in (False, True))
    rng = np.random.default_rng(1)
    ids = rng.choice(rng.integers(0, 97, 9), (2, 50))
    mask = np.ones(ids.shape, bool)
    mask[1, :5] = False
    found = []
    for artifact in (whole, inlined):
        session = open_session(artifact, kernels="functions", threads=1)
        held = session.empty_cache(2)
        logits = [session.prefill(ids[:, :40], held, mask[:, :40])]
        logits += [session.decode(ids[:, column : column + 1], held) for column in range(40, 50)]
        found.append([*logits, *(array for layer in session.layer_arrays(held) for array in layer)])
    for wanted, got in zip(*found, strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("name", MODELS)
def test_graphs_have_standard_operators_alone_and_the_same_contract(exported: Exported, name: str) -> None:
    whole, inlined = (exported(inline=inline, **MODELS[name])[1] for inline in (False, True))
    assert inlined.manifest.inline and not whole.manifest.inline
    assert inlined.manifest.graphs == whole.manifest.graphs and inlined.identity == whole.identity
    assert not any(layer.operators for layer in inlined.manifest.layers)
    for stage in STAGES:
        model = inlined.graph(stage)
        assert not model.functions and {node.domain for node in nodes(model.graph)} <= {"", "ai.onnx"}
        assert [item.domain for item in model.opset_import] == [""]
        model = onnx.shape_inference.infer_shapes(model)
        heads = {
            value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in model.graph.value_info
        }
        attentions = [node for node in model.graph.node if node.op_type == "Attention"]
        for node in attentions:
            assert heads[node.input[1]][1] in (1, heads[node.input[0]][1]), node.name
        assert len(attentions) == (2 if (stage, name) == ("decode", "mixed") else int(name == "mixed"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            RuntimeOptions(kernels="library"),
            "--kernels library computes operators that graphs of export --inline do not",
        ),
        (RuntimeOptions(provider="tensorrt"), "none of the operators that it has kernels for, since they were inlined"),
        (
            RuntimeOptions("tensorrt", "cuda"),
            "Export without --cache and --inline, which writes every form",
        ),
    ],
    ids=str,
)
def test_what_needs_functions_is_refused(exported: Exported, options: RuntimeOptions, message: str) -> None:
    with pytest.raises(LucidError, match=message):
        open_session(exported(inline=True)[1], options)


def test_layers_of_inlined_graphs_cannot_be_isolated(exported: Exported) -> None:
    artifact = exported(inline=True)[1]
    with pytest.raises(LucidError, match="Layers cannot be isolated in the graphs of export --inline"):
        open_layers(open_session(artifact), artifact)
