"""Quantized artifacts run, verify, and keep the bundled model's accuracy; faults in them are found."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.bench import Contender, Plan, run_plan
from lucid_deploy.cli.verify import command as verify_command
from lucid_deploy.demo import recall
from lucid_deploy.errors import CheckFailed
from lucid_deploy.model.checkpoint import Checkpoint
from lucid_deploy.model.quantized_activations import round_to_int8
from lucid_deploy.parity import words
from lucid_deploy.parity.stored_weights import check_weights
from lucid_deploy.parity.verification import VerifyOptions, verify_against
from lucid_deploy.runtimes import RuntimeOptions, open_session

BIASED = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}
Made = Callable[..., tuple[Path, Artifact]]


def verified(artifact: Artifact, checkpoint: Path) -> Any:
    candidate = open_session(artifact)
    return verify_against(candidate, Checkpoint(checkpoint), VerifyOptions(prompt_tokens=140, steps=4), artifact)


@pytest.mark.parametrize(
    ("scheme", "form", "activations", "cache"),
    [
        ("int8", "matmulnbits", "int8", "growing"),
        ("int4", "matmulnbits", "int8", "static"),
        ("int4", "matmulnbits", "float", "growing"),
        ("int8", "qdq", "float", "growing"),
        ("int4", "qdq", "int8", "growing"),
    ],
)
def test_the_runtime_computes_the_quantized_model(
    scheme: str, form: str, activations: str, cache: str, quantized: Made
) -> None:
    checkpoint, artifact = quantized(scheme, form, cache=cache, changes=BIASED, activations=activations)
    report = verified(artifact, checkpoint)
    assert report.passed, report.verdict()
    limits = [comparison.gate.limit for comparison in report.comparisons if comparison.tensor.is_logits]
    assert max(limits) < (1e-4 if activations == "float" else 0.2), "inputs in float leave the gates of float32"
    found = report.to_dict()["quantization"]
    assert found["scheme"] == scheme and 0 < found["cost"]["weights"]["relative_error"] < 1
    assert any("weights alone" in line for line in words.quantization_lines(report))


def test_float16(quantized: Made) -> None:
    checkpoint, artifact = quantized("int4", dtype="float16")
    assert verified(artifact, checkpoint).passed


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


def test_the_emulated_inputs_are_what_onnxruntime_rounds() -> None:
    x = torch.tensor([[1.0, -2.0, 0.4, 127.0] * 4 + [0.0] * 16 + [3.0]])
    rounded = round_to_int8(x, 16)
    assert torch.equal(rounded[0, :16], torch.tensor([1.0, -2.0, 0.0, 127.0] * 4))
    assert (rounded[0, 16:32] == 0).all() and rounded[0, 32] == 3 and rounded.shape == x.shape


def test_contenders_accept_quantized_artifacts(
    quantized: Made, preloaded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(preloaded / "python"))  # of the contenders' processes
    path = str(quantized("int8")[1].directory)
    one = RuntimeOptions(threads=1)
    contenders = [Contender("ort", "artifact", path, one), Contender("torch", "torch-blocked", path, one)]
    measurements, _ = run_plan(contenders, Plan((16,), stages=("decode",), repeats=1, steps=1), "float32")
    assert len(measurements) == 2


def answers(artifact: Artifact, examples: list[recall.Example]) -> int:
    """How many prompts are answered right, the end included."""
    session, tokenizer = open_session(artifact, threads=1), TextTokenizer(artifact.directory)
    groups: dict[int, list[recall.Example]] = {}
    for example in examples:
        groups.setdefault(example.pairs, []).append(example)
    right = 0
    for group in groups.values():
        cache, tokens = session.empty_cache(len(group)), []
        logits = session.prefill(np.array([tokenizer.encode(example.prompt) for example in group]), cache)
        for step in range(3):
            tokens.append(logits[:, -1].argmax(axis=-1)[:, None])
            if step < 2:
                logits = session.decode(tokens[-1], cache)
        ends = session.config.eos_token_ids
        for example, row in zip(group, np.concatenate(tokens, axis=1).tolist(), strict=True):
            right += tokenizer.decode(row[:2]).strip() == example.answer and row[2] in ends
    return right


def test_the_bundled_model_keeps_its_accuracy(quantized: Made) -> None:
    examples = recall.held_out(200)
    plain = answers(quantized(None, source="demo")[1], examples)
    assert plain >= 190
    for scheme, share in (("int8", 0.99), ("int4", 0.97)):
        assert answers(quantized(scheme, source="demo")[1], examples) >= share * plain
