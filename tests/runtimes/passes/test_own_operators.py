"""onnxruntime's own operators in the place of the delta rule's body, and NVFP4 weights in a type that it reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.export.exporter import export
from lucid_deploy.model.checkpoint import load_model
from lucid_deploy.plugins.delta_rule.torch_operator import delta_rule
from lucid_deploy.runtimes import Session, open_session
from lucid_deploy.runtimes.onnxruntime.session import OrtSession
from lucid_deploy.runtimes.options import RuntimeOptions
from lucid_deploy.runtimes.passes.editing import nodes_of
from lucid_deploy.runtimes.passes.own_operators import (
    has_linear_attention,
    retype_fp4,
    use_linear_attention,
    use_rotary_embedding,
)
from lucid_deploy.runtimes.torch.artifact_weights import load_artifact_model
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.model.families.flash_model import MODELS, Flash
from tests.plugins.delta_rule import graphs
from tests.plugins.delta_rule.graphs import one_node, run
from tests.plugins.delta_rule.problems import BETAS, DECAYS, doubled, in_type, inputs
from tests.plugins.problems import relative
from tests.runtimes.passes.loaded_graphs import copied, operators

SCALE, HEADS = 0.25, 2


EPS = torch.finfo(torch.float32).eps


needed = pytest.mark.skipif(not has_linear_attention(ort.__version__), reason="needs onnxruntime 1.25.1 or newer")


def with_heads(dtype: str = "float32", one_token: bool = False, heads: int = HEADS) -> onnx.ModelProto:
    """Return a node's graph that knows its heads and, where it says so, its one token, as artifacts' graphs do."""
    model = one_node(dtype, SCALE, one_token)
    for value in model.graph.input:
        axes = value.type.tensor_type.shape.dim
        axes[1].dim_value = heads
        if one_token and value.name != "state":
            axes[2].dim_value = 1
    return model


def changed(dtype: str = "float32", one_token: bool = False) -> onnx.ModelProto:
    model = with_heads(dtype, one_token)
    assert use_linear_attention(model)
    return model


@needed
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("tokens", [1, 65, 200])
def test_it_is_as_exact_as_the_recurrence(tokens: int, beta: str, decay: str) -> None:
    given = in_type(inputs(tokens, 1.0, beta, decay), torch.float32)
    exact, plain = delta_rule(*doubled(given), SCALE, "reference"), delta_rule(*given, SCALE, "reference")
    found = run(graphs.session(changed(one_token=tokens == 1)), given)
    for ours, baseline, wanted in zip(found, plain, exact, strict=True):
        assert relative(ours, wanted) <= 2 * max(relative(baseline, wanted), EPS / 2)


def test_graphs_without_the_body_or_the_heads_stay_as_they_are() -> None:
    unknown, inlined = one_node(scale=SCALE), with_heads()
    del inlined.functions[:]
    mixed = with_heads()
    node = onnx.NodeProto.FromString(mixed.graph.node[0].SerializeToString())
    other = [onnx.ValueInfoProto.FromString(each.SerializeToString()) for each in mixed.graph.input]
    for value in other:
        value.name += "_2"
        value.type.tensor_type.shape.dim[1].dim_value = 3
    node.input[:] = [value.name for value in other]
    node.output[:] = ["output_2", "new_state_2"]
    mixed.graph.input.extend(other)
    mixed.graph.node.append(node)
    for model in (unknown, inlined, mixed):
        before = model.SerializeToString()
        assert not use_linear_attention(model) and model.SerializeToString() == before


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact]:
    """A checkpoint and its artifact."""
    folder = tmp_path_factory.mktemp("delta")
    checkpoint = Flash(MODELS["decay, shared keys, attention"]).save(folder / "checkpoint")
    export(checkpoint, folder / "artifact")
    return checkpoint, open_artifact(folder / "artifact")


def logits(opened: Session[Any]) -> np.ndarray:
    """Return the logits of a prompt's last token and of two tokens after it."""
    cache = opened.empty_cache()
    rows = [opened.prefill(np.arange(1, 71)[None] % 61, cache)]
    rows += [opened.decode(np.array([[token]]), cache) for token in (5, 9)]
    return np.concatenate(rows, axis=0)


def functions(artifact: Artifact) -> OrtSession:
    return OrtSession(artifact, RuntimeOptions(kernels="functions"))


def assert_close(checkpoint: Path, *logits_of: np.ndarray) -> None:
    """As far from float64 as four times PyTorch's float32, which ``verify`` allows."""
    rounded, exact = (
        logits(TorchSession(load_model(checkpoint, dtype, implementation="reference")))
        for dtype in (torch.float32, torch.float64)
    )
    for found in logits_of:
        assert np.linalg.norm(found - exact) <= 4 * np.linalg.norm(rounded - exact)


@needed
def test_a_session_takes_it_in_both_graphs(saved: tuple[Path, Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def noted(model: onnx.ModelProto) -> bool:
        taken.append(use_linear_attention(model))
        return taken[-1]

    place = "lucid_deploy.runtimes.passes.own_operators"
    monkeypatch.setattr(f"{place}.use_linear_attention", noted)
    checkpoint, artifact = saved
    own = logits(functions(artifact))
    assert taken == [True, True]
    monkeypatch.setattr(f"{place}.has_linear_attention", lambda version: False)
    body = logits(functions(artifact))
    assert taken == [True, True]
    assert_close(checkpoint, own, body)


def test_an_artifact_computes_what_pytorch_computes(quantized: Callable[..., tuple[Path, Artifact]]) -> None:
    """Prefill and decode."""
    artifact = quantized("nvfp4")[1]
    graph = onnx.ModelProto()
    graph.CopyFrom(artifact.graph("decode"))
    assert retype_fp4(graph) and not retype_fp4(graph)
    ids, logits = np.arange(10, dtype=np.int64)[None], []
    exactly = TorchSession(load_artifact_model(artifact, dtype="float64"))
    for session in (open_session(artifact, "onnxruntime"), open_session(artifact, "torch"), exactly):
        cache = session.empty_cache(1)
        logits.append((session.prefill(ids, cache), session.decode(ids[:, :1], cache)))
    for ours, rounded, exact in zip(*logits, strict=True):
        assert np.linalg.norm(ours - exact) <= 4 * np.linalg.norm(rounded - exact)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("stage", ["prefill", "decode"])
def test_one_node_rotates(exported, stage: str, dtype: str) -> None:
    """Queries and keys of both layers, for rows at different positions."""
    artifact = exported(dtype=dtype)[1]
    plain, rotated = copied(artifact, stage), copied(artifact, stage)
    assert use_rotary_embedding(rotated)
    after = operators(rotated)
    assert (after["RotaryEmbedding"], after["Split"], after["Squeeze"] - operators(plain)["Squeeze"]) == (4, 0, 2)
    session = OrtSession(artifact, RuntimeOptions(kernels="functions"))
    ids, mask = np.arange(1, 25).reshape(2, 12), np.ones((2, 12), bool)
    mask[0, :5] = False
    cache = session.empty_cache(2)
    turned = [session.prefill(ids, cache, mask), session.decode(ids[:, :1], cache)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lucid_deploy.runtimes.passes.own_operators.use_rotary_embedding", lambda model: False)
        session = OrtSession(artifact, RuntimeOptions(kernels="functions"))
    cache = session.empty_cache(2)
    for ours, theirs in zip(
        turned, [session.prefill(ids, cache, mask), session.decode(ids[:, :1], cache)], strict=True
    ):
        assert np.abs(ours - theirs).max() <= (4e-3 if dtype == "float16" else 4e-6) * np.abs(theirs).max()


def test_other_rotations_stay(exported) -> None:
    """The first half is not what the other's sine is added to."""
    model = copied(exported()[1])
    for node in nodes_of(model.graph, "", "Sub"):
        node.input[:] = reversed(node.input)
    before = model.SerializeToString()
    assert not use_rotary_embedding(model) and model.SerializeToString() == before
