"""Quantized artifacts run and pass verification; with corrupted weights they fail it."""

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
from lucid_deploy.parity.stored_weights import compare_weights
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
    assert max(limits) < (1e-4 if activations == "float" else 0.2), "float inputs must have the gates of float32"
    found = report.to_dict()["quantization"]
    assert found["scheme"] == scheme and "--text FILE measures what it costs" in report.verdict()
    assert {check.name: check.detail for check in report.checks}["text"].endswith("costs was not measured")


@pytest.mark.parametrize("head_dim", [64, 40])
def test_with_the_library_a_prompt_may_be_cut_anywhere(head_dim: int, quantized: Made, built_library: Path) -> None:
    """Results are equal to the bit if onnxruntime's cosines fill whole vectors, which they do not at width 40."""
    changes = {"head_dim": head_dim, "intermediate_size": 128, "num_hidden_layers": 2, "lucid_layers": [0]}
    session = open_session(quantized("int4", changes=changes)[1])
    assert session.rounds and session.cuts_matter == (head_dim == 40)
    ids = np.random.default_rng(0).integers(97, size=(1, 300))

    def found(cuts: list[int]) -> list[np.ndarray]:
        cache = session.empty_cache(1)
        for part in np.split(ids, cuts, axis=1):
            logits = session.prefill(part, cache)
        return [logits, *(array for layer in session.layer_arrays(cache) for array in layer)]

    whole = found([])
    for cuts in ([1], [57, 100, 229], [*range(7, 300, 7)]):
        assert session.cuts_matter or all(map(np.array_equal, found(cuts), whole))


def damaged(artifact: Artifact, target: Path, name: str, factor: float) -> Artifact:
    """Copy an artifact, change one scale, and update the hash."""
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
        compare_weights(artifact, Checkpoint(make_checkpoint("other", seed=1)))
