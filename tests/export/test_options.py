"""What is asked of an export: what is recorded of it, and what is refused before anything is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.export.options import check_request, check_target

Exported = Callable[..., tuple[Path, Artifact]]


def test_a_static_cache_in_fp8_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(LucidError, match=r"A static cache cannot be in fp8: .*--cache growing, or with"):
        export("demo", tmp_path / "artifact", ExportOptions("float16", cache="static", cache_dtype="fp8"))
    assert not any(tmp_path.iterdir())


def test_an_existing_artifact_is_replaced_only_with_overwrite(exported: Exported, artifact_copy: Path) -> None:
    checkpoint, _ = exported()
    (artifact_copy / "note.txt").write_text("mine")
    with pytest.raises(LucidError, match="--overwrite"):
        export(checkpoint, artifact_copy)
    assert (artifact_copy / "note.txt").exists()
    export(checkpoint, artifact_copy, ExportOptions(overwrite=True))
    assert not (artifact_copy / "note.txt").exists()
    open_artifact(artifact_copy)
    assert [path.name for path in artifact_copy.parent.iterdir()] == ["artifact"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ExportOptions("float8"), "dtype 'float8' is not supported; supported are float32, float16, bfloat16"),
        (ExportOptions(logits="some"), "logits must be last or all, not 'some'"),
        (ExportOptions(cache="rolling"), "cache must be growing or static, not 'rolling'"),
        (ExportOptions(state_dtype="int8"), "state_dtype must be float32 or model, not 'int8'"),
        (ExportOptions(diagonal="none"), "diagonal must be unit or training, not 'none'"),
        (ExportOptions(cache="growing", opset=24), "Graphs with a growing cache are written in opset 23, not 24"),
    ],
)
def test_unknown_options_are_refused(options: ExportOptions, message: str, tmp_path: Path) -> None:
    with pytest.raises(LucidError, match=message):
        check_request(tmp_path / "artifact", options)


def test_an_output_within_the_checkpoint_or_around_it_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "models" / "checkpoint"
    for output, message in (
        (checkpoint, "would replace the checkpoint"),
        (tmp_path / "models", "would replace the checkpoint"),
        (checkpoint / "artifact", "lies inside the checkpoint"),
    ):
        with pytest.raises(LucidError, match=message):
            check_target(checkpoint, output)
    check_target(checkpoint, tmp_path / "models" / "artifact")


def test_options_that_change_the_artifact_are_recorded(tmp_path: Path) -> None:
    recorded = ExportOptions("float16", overwrite=True, calibration=tmp_path).recorded()
    assert recorded["dtype"] == "float16" and recorded["calibration"] == str(tmp_path)
    assert not {"overwrite", "hub"} & recorded.keys()
