"""Every element of a weight is compared with the checkpoint's, quantized or not, in both graphs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch

from lucid_deploy.artifact import STAGES, Artifact, open_artifact
from lucid_deploy.artifact.quantization import (
    PACKED,
    SCALES,
    WHOLE_SCALE,
    Quantization,
    QuantizedTensor,
)
from lucid_deploy.errors import CheckFailed
from lucid_deploy.export.quantize.floats import rounded_parts
from lucid_deploy.export.quantize.nearest import quantize_matrix
from lucid_deploy.model.checkpoint import Checkpoint
from lucid_deploy.parity.stored_weights import (
    _float_difference,
    _nearest_difference,
    check_folding,
    check_plain_weights,
    plain_names,
)
from tests.conftest import write_checkpoint
from tests.parity.faults import change_row, edit_graphs

Exported = Callable[..., tuple[Path, Artifact]]
EMBEDDING, HEAD, DOWN = "model.embed_tokens.weight", "lm_head.weight", "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dtype": "float16"},
        {"dtype": "bfloat16", "tie_word_embeddings": True},
        {"cache": "static", "cache_dtype": "int8"},
        {"inline": True},
    ],
)
def test_what_was_exported_is_the_checkpoints(changes: dict[str, Any], exported: Exported) -> None:
    checkpoint, artifact = exported(**changes)
    source, seen = Checkpoint(checkpoint), []
    assert (
        check_plain_weights(artifact, source, tick=lambda: seen.append(1)) == len(seen) == len(source.stored_shapes())
    )


def test_families_that_add_to_their_norms(hybrid: Callable[..., Any]) -> None:
    """Qwen3-Next stores 1 less than a norm's weight, and several weights of the model in one tensor."""
    artifact = hybrid()
    assert check_plain_weights(artifact, Checkpoint(artifact.manifest.source)) > 0


@pytest.mark.parametrize(("name", "row", "first"), [(EMBEDDING, 90, [90, 0]), (HEAD, 3, [0, 3]), (DOWN, 5, [0, 5])])
def test_one_row_of_any_weight(name: str, row: int, first: list[int], exported: Exported, tmp_path: Path) -> None:
    """Linear layers are stored transposed: their rows are the checkpoint's columns."""
    checkpoint, artifact = exported()
    changed = shutil.copytree(artifact.directory, tmp_path / "artifact")
    change_row(changed, name, row, 1.0000002)
    with pytest.raises(CheckFailed) as caught:
        check_plain_weights(open_artifact(changed), Checkpoint(checkpoint))
    assert f"{name} is not the checkpoint's weight: " in str(caught.value) and f"first at {first}" in str(caught.value)
    assert "--checkpoint" in str(caught.value)


@pytest.mark.parametrize("stage", STAGES)
def test_a_graph_that_reads_another_weights_place(stage: str, exported: Exported, tmp_path: Path) -> None:
    checkpoint, artifact = exported()
    changed = shutil.copytree(artifact.directory, tmp_path / "artifact")

    def swap(model: onnx.ModelProto, _: str) -> None:
        gate, up = (
            t for t in model.graph.initializer if t.name.endswith(("0.mlp.gate_proj.weight", "0.mlp.up_proj.weight"))
        )
        for mine, other in zip(gate.external_data, up.external_data, strict=True):
            mine.value, other.value = other.value, mine.value

    edit_graphs(changed, swap, stages=(stage,))
    with pytest.raises(CheckFailed, match=r"prefill and decode read model\.layers\.0\.mlp\..*_proj.* different places"):
        check_plain_weights(open_artifact(changed), Checkpoint(checkpoint))


def test_a_graph_that_has_a_weight_of_its_own(exported: Exported, tmp_path: Path) -> None:
    checkpoint, artifact = exported()
    changed = shutil.copytree(artifact.directory, tmp_path / "artifact")

    def rename(model: onnx.ModelProto, _: str) -> None:
        for tensor in model.graph.initializer:
            tensor.name = tensor.name.replace(EMBEDDING, "other")
        for node in model.graph.node:
            node.input[:] = [name.replace(EMBEDDING, "other") for name in node.input]

    edit_graphs(changed, rename, stages=("prefill",))
    with pytest.raises(CheckFailed, match=f"the prefill graph does not read {EMBEDDING}"):
        check_plain_weights(open_artifact(changed), Checkpoint(checkpoint))


def test_other_weights_of_a_quantized_artifact(quantized: Callable[..., Any], tmp_path: Path) -> None:
    checkpoint, artifact = quantized("int4")
    source, record = Checkpoint(checkpoint), artifact.manifest.quantization
    names = plain_names(artifact, source)
    assert set(names) == source.stored_shapes().keys() - record.tensors.keys() and EMBEDDING in names
    changed = shutil.copytree(artifact.directory, tmp_path / "artifact")
    change_row(changed, EMBEDDING, 7, 2.0)
    with pytest.raises(CheckFailed, match=EMBEDDING):
        check_plain_weights(open_artifact(changed), source)


# Floating-point numbers of few bits

WEIGHT = torch.randn(24, 64, generator=torch.Generator().manual_seed(0)) * 0.05
WEIGHT[3, :16], WEIGHT[5, 16:32] = 0.0, WEIGHT[5, 16:32] * 1e-6


def rounded(scheme: str, weight: torch.Tensor) -> tuple[Quantization, np.ndarray, np.ndarray]:
    if scheme == "fp8":
        tensor = QuantizedTensor((24, 64), 64, granularity="tensor")
        quantization = Quantization("fp8", 8, "qdq", "float", {"w": tensor}, (), "a tool")
        parts = rounded_parts(weight, quantization)
        return quantization, parts[PACKED], parts[SCALES].view(np.float32)
    quantization = Quantization("nvfp4", 4, "qdq", "float", {"w": QuantizedTensor((24, 64), 16)}, (), "a tool")
    parts = rounded_parts(weight, quantization)
    scales = parts[SCALES].view(ml_dtypes.float8_e4m3fn).astype(np.float32) * parts[WHOLE_SCALE].view(np.float32)
    return quantization, parts[PACKED], scales


def difference(record: Quantization, packed: np.ndarray, scales: np.ndarray, weight: torch.Tensor) -> str | None:
    return _float_difference(record, "w", [packed, scales], weight.numpy())


@pytest.mark.parametrize("scheme", ["fp8", "nvfp4"])
@pytest.mark.parametrize("weight", [WEIGHT, torch.zeros(24, 64)], ids=["normal", "zeros"])
def test_what_is_rounded_to_nearest_is_right(scheme: str, weight: torch.Tensor) -> None:
    assert difference(*rounded(scheme, weight), weight) is None


@pytest.mark.parametrize("scheme", ["fp8", "nvfp4"])
def test_faults_are_found(scheme: str) -> None:
    quantization, packed, scales = rounded(scheme, WEIGHT)
    for place in (3, 70):  # in FP8 the first of them is 0
        moved = packed.copy()
        moved[place] ^= 1  # the next number, up or down
        assert "times its scale" in str(difference(quantization, moved, scales, WEIGHT))
    wrong = scales.copy()
    wrong.reshape(-1)[-1] *= 1.14  # more than half of the spacing of E4M3
    found = str(difference(quantization, packed, wrong, WEIGHT))
    assert found.startswith("the scale of row"), found
    if scheme == "fp8":
        assert "the scale" in str(difference(quantization, packed, scales * 1.00001, WEIGHT))
    other = WEIGHT.flip(0)
    assert difference(quantization, packed, scales, other) is not None


# Scales that equalization has put into weights

LAYER = "model.layers.0."
QKV = [f"{LAYER}self_attn.{part}_proj.weight" for part in "qkv"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(write_checkpoint(tmp_path_factory.mktemp("folding") / "c", tie_word_embeddings=False))


def scales_of(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Those of a norm and what it gives to, and of the final norm and the head."""
    hidden = checkpoint.config.hidden_size
    first, last = (np.random.default_rng(i).uniform(0.3, 3, hidden).astype(np.float32) for i in range(2))
    found = {f"{LAYER}input_layernorm.weight.outputs": first, "model.norm.weight.outputs": last}
    return found | {f"{name}.inputs": first for name in QKV} | {"lm_head.weight.inputs": last}


def test_scales_that_cancel(checkpoint: Checkpoint) -> None:
    check_folding(scales_of(checkpoint), checkpoint)


@pytest.mark.parametrize(
    ("missing", "changed"),
    [
        (QKV[0], "the logits"),
        (QKV[1], "the logits|the keys of layer 0"),
        ("lm_head.weight", "the logits"),
    ],
)
def test_scales_that_one_reader_lacks(missing: str, changed: str, checkpoint: Checkpoint) -> None:
    scales = scales_of(checkpoint)
    del scales[f"{missing}.inputs"]
    with pytest.raises(CheckFailed, match=f"do not cancel: without any rounding they change ({changed}) by "):
        check_folding(scales, checkpoint)


@pytest.mark.parametrize("off", [1.0001, 3.0])
def test_keys_of_another_size(off: float, checkpoint: Checkpoint) -> None:
    scales = scales_of(checkpoint)
    rows = len(checkpoint.tensor(QKV[1]))
    with pytest.raises(CheckFailed, match="do not cancel"):
        check_folding({**scales, f"{QKV[1]}.outputs": np.full(rows, off, np.float32)}, checkpoint)


# Quantized weights


def test_the_other_end_of_a_block_may_be_a_rounded_step_off() -> None:
    """Of ±8 steps the one is stored as -8 and the other as 7; float16 rounds the step by nearly half a unit."""
    step = 1 + 0.499 * 2.0**-10
    weight = torch.zeros(2, 32)
    weight[0, :2], weight[1, :2] = torch.tensor([8.0, -8.0]) * step, torch.tensor([-8.0, 8.0]) * step
    tensor = QuantizedTensor((2, 32), 32, scale_dtype="float16")
    ((packed, scales),) = quantize_matrix(weight, tensor, 4)
    record = Quantization("int4", 4, "matmulnbits", "int8", {"w": tensor}, (), "a tool")
    parts = [packed.reshape(-1), scales.astype(np.float16)]
    assert _nearest_difference(record, "w", parts, weight.numpy(), "float16") is None
    parts[0][0] -= 1  # 7 becomes 6
    assert "2 steps" in str(_nearest_difference(record, "w", parts, weight.numpy(), "float16"))
