"""Every element of a weight that is not quantized is compared with the checkpoint's, in both graphs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from lucid_deploy.artifact import STAGES, Artifact, open_artifact
from lucid_deploy.errors import CheckFailed
from lucid_deploy.model.checkpoint import Checkpoint
from lucid_deploy.parity.measure.plain_weights import check_plain_weights, plain_names
from tests.parity.faults import change_row, edit_graphs

Exported = Callable[..., tuple[Path, Artifact]]
EMBEDDING, HEAD, DOWN = "model.embed_tokens.weight", "lm_head.weight", "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dtype": "float16"},
        {"dtype": "bfloat16"},
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True},
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
