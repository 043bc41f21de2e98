"""The baseline with standard attention differs from the artifact in nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.bench import standard
from lucid_deploy.bench.standard import export_standard
from lucid_deploy.errors import LucidError
from lucid_deploy.export import ExportOptions
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.export.quantize.plan import plan_quantization
from lucid_deploy.model.checkpoint import Checkpoint

Exported = Callable[..., tuple[Path, Artifact]]
MakeCheckpoint = Callable[..., Path]


def test_the_same_checkpoint_with_another_attention(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Path, Path, ExportOptions]] = []
    monkeypatch.setattr(standard, "export", lambda *given: asked.append(given))
    checkpoint, artifact = exported()
    target = export_standard(artifact, tmp_path)
    [(source, output, options)] = asked
    assert output == target and not target.is_relative_to(artifact.directory)
    theirs, ours = (json.loads((folder / "config.json").read_text()) for folder in (checkpoint, source))
    assert ours == {**theirs, "attention_type": "llama", "use_qknorm": False}
    assert (source / "model.safetensors").samefile(checkpoint / "model.safetensors")
    assert (options.dtype, options.logits, options.cache, options.cache_dtype) == ("float32", "last", "growing", "auto")


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"cache": "static", "cache_dtype": "int8"}, {"cache": "static", "cache_dtype": "int8"}),
        ({"logits": "all", "assumed_unused": {"zeta": 3}}, {"logits": "all", "assume_unused": ("zeta",)}),
    ],
)
def test_it_is_exported_as_the_artifact_was(
    changes: dict[str, Any],
    wanted: dict[str, Any],
    exported: Exported,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[ExportOptions] = []
    monkeypatch.setattr(standard, "export", lambda source, target, options: asked.append(options))
    _, artifact = exported()
    export_standard(Artifact(artifact.directory, replace(artifact.manifest, **changes)), tmp_path)
    assert {name: getattr(asked[0], name) for name in wanted} == wanted


def artifact_of(checkpoint: Path, like: Artifact) -> Artifact:
    """Return an artifact as an export of the checkpoint would be described; its graphs are not made."""
    described = replace(like.manifest, config=Checkpoint(checkpoint).config, source=str(checkpoint))
    return Artifact(checkpoint.parent / "artifact", described)


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"lucid_layers": [1]}, ("standard", "standard")),
        ({"layer_kinds": ["standard", "lucid"]}, ("standard", "standard")),
    ],
    ids=["lucid_layers", "layer_kinds"],
)
def test_layers_of_several_kinds(
    changes: dict[str, Any],
    kinds: tuple[str, ...],
    exported: Exported,
    make_checkpoint: MakeCheckpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(standard, "export", lambda source, *_: asked.append(source))
    export_standard(artifact_of(make_checkpoint(**changes), exported()[1]), tmp_path)
    assert [Checkpoint(source).config.kinds for source in asked] == [kinds]


@pytest.mark.parametrize(
    ("tied", "options"),
    [
        (False, QuantizeOptions("int8", "qdq", keep_float=("lm_head", "layers.0.self_attn.k_proj"))),
        (True, QuantizeOptions("int4", block_size=16, method="hqq", frequent_rows=40)),
    ],
)
def test_the_same_weights_are_quantized(
    tied: bool,
    options: QuantizeOptions,
    exported: Exported,
    make_checkpoint: MakeCheckpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[ExportOptions] = []
    monkeypatch.setattr(standard, "export", lambda *given: asked.append(given[2]))
    checkpoint = make_checkpoint(tie_word_embeddings=tied)
    shapes, artifact = Checkpoint(checkpoint).stored_shapes(), artifact_of(checkpoint, exported()[1])
    record = plan_quantization(shapes, tied, options)
    export_standard(Artifact(artifact.directory, replace(artifact.manifest, quantization=record)), tmp_path)
    assert asked[0].quantize is not None and plan_quantization(shapes, tied, asked[0].quantize) == record


def test_a_checkpoint_that_is_gone(exported: Exported, tmp_path: Path) -> None:
    _, artifact = exported()
    gone = Artifact(artifact.directory, replace(artifact.manifest, source=str(tmp_path / "gone")))
    with pytest.raises(
        LucidError, match=r"no longer there\. Export the artifact again, or leave out --baseline standard"
    ):
        export_standard(gone, tmp_path)
