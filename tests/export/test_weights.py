"""The weight file: planned before it is written, written tensor by tensor, shared by both graphs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from lucid_deploy.artifact import ALIGNMENT, Artifact
from lucid_deploy.artifact.quantization import PACKED, SCALES, Quantization, QuantizedTensor
from lucid_deploy.errors import LucidError
from lucid_deploy.export.weights import plan_weights, write_weights
from lucid_deploy.model.checkpoint import Checkpoint, load_model

Exported = Callable[..., tuple[Path, Artifact]]


def load(artifact: Artifact, stage: str) -> onnx.ModelProto:
    return onnx.load(str(artifact.graph_path(stage)), load_external_data=False)


def test_weights_are_stored_once_and_shared(exported: Exported) -> None:
    checkpoint, artifact = exported("bfloat16", tie_word_embeddings=True)
    places = []
    for stage in ("prefill", "decode"):
        graph = load(artifact, stage).graph
        external = [tensor for tensor in graph.initializer if tensor.external_data]
        places.append({t.name: {e.key: e.value for e in t.external_data} for t in external})
        assert sum(len(t.raw_data) for t in graph.initializer) < 4096  # constants only
        assert not [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in places[-1]]
    assert places[0] == places[1]
    stored = sum(int(place["length"]) for place in places[0].values())
    assert stored == 2 * sum(p.numel() for p in load_model(checkpoint).parameters())  # the tied head is not repeated
    assert {place["location"] for place in places[0].values()} == {"weights.bin"}


SHAPES = {"a": (3, 5), "b": (1000, 4), "c": (7,), "d": (64, 32)}


def test_tensors_lie_in_order_on_pages_of_their_own() -> None:
    quantization = Quantization("int4", 4, "qdq", "float", {"d": QuantizedTensor((64, 32), 16)}, (), "a tool")
    plan = plan_weights(SHAPES, {"a"}, "float16", quantization)
    assert list(plan) == ["a", "b", "c", f"d{PACKED}", f"d{SCALES}"]
    assert (plan["a"].shape, plan["a"].transposed) == ((5, 3), True)
    assert (plan["b"].shape, plan["b"].size) == ((1000, 4), 8000)
    assert (plan[f"d{PACKED}"].size, plan[f"d{PACKED}"].dtype) == (64 * 32 // 2, "int4")
    assert (plan[f"d{SCALES}"].shape, plan[f"d{SCALES}"].size) == ((2, 64), 2 * 2 * 64)
    end = 0
    for tensor in plan.values():
        assert tensor.offset % ALIGNMENT == 0 and 0 <= tensor.offset - end < ALIGNMENT
        end = tensor.offset + tensor.size


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_written_tensors_are_the_checkpoints(
    dtype: str, make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tensor is read once, while the file is written, so that one is in memory at a time."""
    read: list[str] = []
    original = Checkpoint.tensor
    monkeypatch.setattr(Checkpoint, "tensor", lambda self, name: read.append(name) or original(self, name))
    source = Checkpoint(make_checkpoint())
    turned = {"lm_head.weight", "model.layers.0.mlp.up_proj.weight"}
    plan = plan_weights(source.stored_shapes(), turned, dtype)
    reports: list[tuple[int, int]] = []
    digest = write_weights(tmp_path / "weights.bin", plan, source, progress=lambda *done: reports.append(done))
    data = (tmp_path / "weights.bin").read_bytes()
    assert read == list(plan)
    assert digest == hashlib.sha256(data).hexdigest()
    assert reports == sorted(reports) and reports[-1] == (len(data), len(data)) and len(reports) == len(plan)
    for name, value in load_file(source.directory / "model.safetensors").items():
        place = plan[name]
        kind = getattr(torch, dtype)
        stored = torch.frombuffer(bytearray(data[place.offset : place.offset + place.size]), dtype=kind)
        wanted = (value.T if name in turned else value).to(kind)
        assert torch.equal(stored.view(place.shape), wanted), name


@pytest.mark.parametrize(
    ("value", "dtype", "said"),
    [
        (1e5, "float16", r"lm_head.weight has values that are not finite in float16. Export with --dtype bfloat16 or"),
        (np.nan, "float32", r"lm_head.weight has values that are not finite in float32. The checkpoint is damaged"),
        (
            np.nan,
            "float16",
            r"lm_head.weight has values that are not finite in the checkpoint. The checkpoint is damaged",
        ),
    ],
)
def test_values_that_are_not_finite_are_refused(
    value: float, dtype: str, said: str, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_checkpoint() / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"][5, 6] = value
    save_file(tensors, path)
    source = Checkpoint(path.parent)
    with pytest.raises(LucidError, match=said):
        write_weights(tmp_path / "weights.bin", plan_weights(source.stored_shapes(), set(), dtype), source)
