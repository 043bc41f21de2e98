"""Quantized artifacts run, verify, and keep the bundled model's accuracy; faults in them are found."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.cli.verify import command as verify_command
from lucid_deploy.errors import CheckFailed
from lucid_deploy.model.checkpoint import Checkpoint
from lucid_deploy.parity.stored_weights import check_weights
from lucid_deploy.parity.verification import VerifyOptions, verify_against
from lucid_deploy.runtimes import open_session

BIASED = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}
Made = Callable[..., tuple[Path, Artifact]]


def verified(artifact: Artifact, checkpoint: Path) -> Any:
    candidate = open_session(artifact)
    return verify_against(candidate, Checkpoint(checkpoint), VerifyOptions(prompt_tokens=140, steps=4), artifact)


@pytest.mark.parametrize(
    ("scheme", "form", "activations", "cache", "more"),
    [
        ("int8", "matmulnbits", "int8", "growing", {}),
        ("int4", "matmulnbits", "int8", "growing", {"frequent_rows": 40}),
        ("int8", "qdq", "float", "growing", {}),
    ],
)
def test_the_runtime_computes_the_quantized_model(
    scheme: str, form: str, activations: str, cache: str, more: dict[str, Any], quantized: Made
) -> None:
    checkpoint, artifact = quantized(scheme, form, cache=cache, changes=BIASED, activations=activations, **more)
    report = verified(artifact, checkpoint)
    assert report.passed, report.verdict()
    limits = [comparison.gate.limit for comparison in report.comparisons if comparison.tensor.is_logits]
    assert max(limits) < (1e-4 if activations == "float" else 0.2), "inputs in float leave the gates of float32"
    found = report.to_dict()["quantization"]
    assert found["scheme"] == scheme and "--text FILE measures what it costs" in report.verdict()
    assert {check.name: check.detail for check in report.checks}["text"].endswith("costs was not measured")


def damaged(artifact: Artifact, target: Path, name: str, factor: float) -> Artifact:
    """Copy an artifact, change one scale, and bring the hash in line."""
    import onnx

    directory = Path(shutil.copytree(artifact.directory, target))
    graph = onnx.load(str(artifact.graph_path("decode")), load_external_data=False).graph
    place = {e.key: e.value for t in graph.initializer if t.name == name for e in t.external_data}
    data = bytearray((directory / "weights.bin").read_bytes())
    scales = np.frombuffer(data, np.float32, offset=int(place["offset"]), count=int(place["length"]) // 4)
    scales[3] *= factor
    (directory / "weights.bin").write_bytes(data)
    manifest = json.loads((directory / "lucid.json").read_text())
    manifest["files"]["weights.bin"]["sha256"] = hashlib.sha256(data).hexdigest()
    (directory / "lucid.json").write_text(json.dumps(manifest))
    return open_artifact(directory)


def test_a_corrupted_scale_fails_verification(quantized: Made, tmp_path: Path) -> None:
    _, artifact = quantized("int8")
    name = "model.layers.0.mlp.up_proj.weight.scales"
    wrong = damaged(artifact, tmp_path / "b", name, 1.01)
    result = CliRunner().invoke(verify_command, [str(wrong.directory), "--steps", "2"])
    assert isinstance(result.exception, CheckFailed)
    assert "layers.0.mlp.up_proj.weight is not the checkpoint's weight quantized" in str(result.exception)


def test_weights_of_another_checkpoint_are_found(quantized: Made, make_checkpoint: Any) -> None:
    _, artifact = quantized("int4")
    with pytest.raises(CheckFailed, match="not the checkpoint's weight"):
        check_weights(artifact, Checkpoint(make_checkpoint("other", seed=1)))
