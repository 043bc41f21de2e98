"""Versions of onnxruntime that are known to compute wrongly are refused by name, with the remedy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact
from lucid_deploy.cli import main
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.onnxruntime.versions import check_version

Exported = Callable[..., tuple[Path, Artifact]]


def test_1_23_0_is_refused_for_grouped_heads(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its logits were off by 0.35 (LUCID) and 0.70 (standard attention) of their size; 1.23.1 and 1.24.1 are right."""
    artifact = exported()[1]
    check_version("1.23.1", artifact)
    monkeypatch.setattr("onnxruntime.__version__", "1.23.0")
    result = CliRunner().invoke(main, ["run", str(artifact.directory), "--prompt-ids", "5"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"Error: onnxruntime 1.23.0 gives wrong logits for {artifact.directory}: it pairs the 4 query heads with other "
        'key/value heads than the model does. Install another version: pip install "onnxruntime>=1.23.1"\n'
    )


def test_older_ones_are_refused(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.__version__", "1.22.1")
    with pytest.raises(LucidError, match=r'onnxruntime 1\.22\.1 is too old for .* opset 23.*"onnxruntime>=1\.23\.1"$'):
        open_session(exported()[1])


@pytest.mark.parametrize("version", ["1.23.1", "1.24.4", "1.24.0+cu12"])
def test_static_caches_need_1_25(version: str, exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = exported(cache="static")[1]
    monkeypatch.setattr("onnxruntime.__version__", version)
    with pytest.raises(
        LucidError,
        match=r'static cache .* TensorScatter.* "onnxruntime>=1\.25", or .* --opset 23 or --cache growing',
    ):
        open_session(artifact)


def test_caches_in_fp8_need_1_24(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """1.23.1 computes with them, and has no type for their values in NumPy; tests/compat/ runs it and 1.24.1."""
    artifact = exported()[1]
    rounded = Artifact(artifact.directory, replace(artifact.manifest, cache_dtype="fp8"))
    check_version("1.24.1", rounded)
    with pytest.raises(
        LucidError, match=r'1\.23\.1 cannot read back the FP8 cache of .*"onnxruntime>=1\.24", or .*--cache-'
    ):
        check_version("1.23.1", rounded)


@pytest.mark.parametrize(("version", "reads"), [("1.23.1", False), ("1.24.4", False), ("1.25.0", True), ("2.0", True)])
def test_int8_caches_are_read_as_they_are_from_1_25_on(
    version: str, reads: bool, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older ones have no QuantizeLinear of opset 23, which ``tests/compat`` shows."""
    artifact = exported(cache_dtype="int8")[1]
    monkeypatch.setattr("onnxruntime.__version__", version)
    session = open_session(artifact, kernels="functions")
    assert session.reads_stored_cache == reads  # type: ignore[attr-defined]
