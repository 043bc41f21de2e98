"""TensorRT builds engines of artifacts in the format ``qdq``, without a GPU, and says what to do about others."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.cli.build import command as build_command
from lucid_deploy.errors import LucidError
from lucid_deploy.model.checkpoint import Checkpoint
from lucid_deploy.parity.stored_weights import check_weights
from lucid_deploy.runtimes.tensorrt.build import BuildOptions, build_engines

pytest.importorskip("tensorrt_rtx", reason='building engines needs TensorRT-RTX: pip install -e ".[rtx]"')

Made = Callable[..., tuple[Path, Artifact]]
SMALL: dict[str, Any] = {"max_batch": 2, "max_context": 64, "prefill_chunk": 16}
# In half precision TensorRT-RTX 1.7 fails with attention of some head widths, 36 among them, quantized or not.
WIDTH = {"head_dim": 64}


@pytest.mark.parametrize(
    ("scheme", "dtype", "cache", "changes"),
    [
        ("int8", "float32", "growing", {}),
        ("int4", "float16", "static", WIDTH),
        ("int8", "float16", "static", {"attention_type": "llama", **WIDTH}),
        ("fp8", "float32", "static", WIDTH),
        ("fp8", "float16", "growing", WIDTH),
        ("nvfp4", "float16", "growing", {"attention_type": "llama", **WIDTH}),
        ("nvfp4", "float16", "growing", WIDTH),
        ("nvfp4", "bfloat16", "growing", WIDTH),
    ],
)
def test_both_engines_are_built(
    scheme: str, dtype: str, cache: str, changes: Any, quantized: Made, make_checkpoint: Any, plugin: Path
) -> None:
    """Rows of zeros, as a padded vocabulary has them, included: TensorRT wants int8 scales to be positive."""
    checkpoint = make_checkpoint(num_hidden_layers=1, **changes)
    weights = load_file(checkpoint / "model.safetensors")
    weights["lm_head.weight"][-3:] = 0
    save_file(weights, checkpoint / "model.safetensors")
    _, made = quantized(scheme, "qdq", dtype, cache, str(checkpoint))
    check_weights(made, Checkpoint(checkpoint))
    artifact = open_artifact(shutil.copytree(made.directory, checkpoint.parent / "artifact"))
    capabilities = {"fp8": ("8.9",), "nvfp4": ("12.0",)}.get(scheme, ())
    report = build_engines(artifact, BuildOptions(plugin=plugin, capabilities=capabilities, **SMALL))
    assert set(report.manifest.engines) == {"prefill", "decode"}
    assert all(engine.size > 100_000 for engine in report.manifest.engines.values())


def test_onnxruntime_s_own_operators_are_refused(quantized: Made) -> None:
    _, artifact = quantized("int8")
    result = CliRunner().invoke(build_command, [str(artifact.directory)])
    assert isinstance(result.exception, LucidError) and result.exception.exit_code == 2
    assert "Export it for TensorRT with --quantize int8 --quantize-format qdq" in str(result.exception)
    assert not (artifact.directory / "engines").exists()
