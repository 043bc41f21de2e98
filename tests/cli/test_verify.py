"""``lucid-deploy verify`` on a real export, run by onnxruntime."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from lucid_deploy.artifact import MANIFEST, WEIGHTS
from lucid_deploy.cli import main
from lucid_deploy.errors import LucidError
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.parity.verification import find_checkpoint, verify_against
from lucid_deploy.runtimes.torch.session import TorchSession

CONTEXT = 48  # prompts of 35 tokens with 8 steps


@pytest.fixture
def example(exported, tmp_path):
    """A checkpoint and its artifact, both copies that a test may damage."""
    checkpoint, artifact = exported(max_position_embeddings=CONTEXT)
    shutil.copytree(checkpoint, tmp_path / "checkpoint")
    shutil.copytree(artifact.directory, tmp_path / "artifact")
    return tmp_path / "checkpoint", tmp_path / "artifact"


def run(*arguments):
    return CliRunner().invoke(main, ["verify", *map(str, arguments), "--steps", "8"], catch_exceptions=False)


def message(result):
    """The error, on one line."""
    return " ".join(result.stderr.split())


def change_weight(checkpoint, name, factor):
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    tensors[name] = tensors[name] * factor
    save_file(tensors, path)


def change_manifest(artifact, **changes):
    path = artifact / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_fresh_export_passes(example):
    _, artifact = example
    result = run(artifact)
    assert result.exit_code == 0, result.output
    assert "PASSED" in result.stdout
    assert "onnxruntime, float32" in result.stdout
    assert "FAILED" not in result.output


def test_the_checkpoint_can_be_elsewhere(example):
    checkpoint, artifact = example
    change_manifest(artifact, source="/no/such/place")
    result = run(artifact)
    assert result.exit_code == 2
    assert "exported from /no/such/place" in message(result) and "--checkpoint" in message(result)
    assert run(artifact, "--checkpoint", checkpoint, "--runtime", "torch").exit_code == 0


def test_json_on_stdout_is_json_alone(example):
    _, artifact = example
    result = run(artifact, "--json", "-", "--seed", "3")
    assert result.exit_code == 0
    data = json.loads(result.stdout)
    assert (data["passed"], data["runtime"], data["seed"], data["hashes_checked"]) == (True, "onnxruntime", 3, True)
    assert data["artifact"] == str(artifact)


def test_one_flipped_bit_in_the_weights_is_caught_by_its_hash(example):
    _, artifact = example
    path = artifact / WEIGHTS
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    result = run(artifact)
    assert result.exit_code == 1
    assert "sha256" in message(result) and WEIGHTS in message(result)


def test_a_failed_gate_names_layer_tensor_and_position(example, tmp_path):
    """The artifact is intact, but a weight of the checkpoint is another one."""
    checkpoint, artifact = example
    change_weight(checkpoint, "model.layers.1.self_attn.v_proj.weight", 1.01)
    target = tmp_path / "report.json"
    result = run(artifact, "--checkpoint", checkpoint, "--json", target)
    assert result.exit_code == 1
    assert "layer 1 Y leaves the gate at position 0 (random, one-shot): relative error 0.0099, allowed" in message(
        result
    )
    assert "FAILED" in result.stdout
    data = json.loads(target.read_text())
    assert data["passed"] is False
    assert data["first_failure"]["tensor"] == "layer 1 Y"


def test_json_on_stdout_of_a_failure_is_json_alone(example):
    checkpoint, artifact = example
    change_weight(checkpoint, "lm_head.weight", 1.01)
    result = run(artifact, "--checkpoint", checkpoint, "--json", "-", "--runtime", "torch")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["first_failure"]["tensor"] == "logits"
    assert "logits leaves the gate at position 34" in message(result)


def test_a_checkpoint_of_another_model_is_refused(example, make_checkpoint):
    _, artifact = example
    other = make_checkpoint("other", max_position_embeddings=CONTEXT, rope_theta=5e5, attention_type="llama")
    result = run(artifact, "--checkpoint", other)
    assert result.exit_code == 2
    assert "rope_theta is 10000.0 in the artifact and 500000.0 in the checkpoint" in message(result)
    assert "attention_type is lucid in the artifact and llama in the checkpoint" in message(result)
    assert "vocab_size" not in message(result)


def test_a_prompt_needs_a_tokenizer(example):
    _, artifact = example
    result = run(artifact, "--prompt", "hello")
    assert result.exit_code == 2
    assert "no tokenizer.json" in message(result)


def test_a_real_prompt_is_verified(example):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    _, artifact = example
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(artifact / "tokenizer.json"))
    result = run(artifact, "--prompt", "w5 w9 w2", "--json", "-")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["scenarios"][-1] == {"name": "prompt", "prompt_tokens": 3, "decode_steps": 8}
    assert run(artifact, "--prompt", " ").exit_code == 2


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--runtime", "abacus"]])
def test_bad_usage(example, arguments):
    assert CliRunner().invoke(main, ["verify", str(example[1]), *arguments]).exit_code == 2


def test_no_artifact(tmp_path):
    result = run(tmp_path / "nothing")
    assert result.exit_code == 2
    assert "no artifact" in message(result)


def test_the_recorded_source_is_the_default(example, exported):
    checkpoint, artifact = exported(max_position_embeddings=CONTEXT)
    assert find_checkpoint(artifact, None).directory == checkpoint
    with pytest.raises(LucidError, match="no checkpoint"):
        find_checkpoint(artifact, str(checkpoint / "nothing"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_held_to_a_baseline_of_that_precision(make_checkpoint, dtype):
    source = Checkpoint(make_checkpoint(max_position_embeddings=CONTEXT))
    candidate = TorchSession(load_model(source, getattr(torch, dtype), implementation="reference"))
    loaded = []
    report = verify_against(candidate, source, 8, 0, None, lambda what, done, total: loaded.append(what))
    assert report.passed, report.verdict()
    assert report.dtype == dtype
    assert list(dict.fromkeys(loaded)) == [
        f"Loading {dtype}",
        f"PyTorch {dtype}, greedy",
        "PyTorch float64",
        f"PyTorch {dtype}",
        f"torch {dtype}",
    ]
    assert max(item.gate.limit for item in report.comparisons) > 1e-3  # not the gates of float32
