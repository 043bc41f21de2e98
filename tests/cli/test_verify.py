"""``lucid-deploy verify`` on a real export, run by onnxruntime."""

import json
import shutil

import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from lucid_deploy.artifact import MANIFEST, WEIGHTS
from lucid_deploy.cli import main
from tests.parity.faults import change_weight

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


def change_manifest(artifact, **changes):
    path = artifact / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_checkpoint_can_be_elsewhere(example):
    checkpoint, artifact = example
    change_manifest(artifact, source="/no/such/place")
    result = run(artifact)
    assert result.exit_code == 2
    assert "exported from /no/such/place" in message(result) and "--checkpoint" in message(result)
    assert run(artifact, "--checkpoint", checkpoint, "--runtime", "torch").exit_code == 0


def test_a_checkpoint_of_another_model_is_refused(example, make_checkpoint):
    _, artifact = example
    other = make_checkpoint("other", max_position_embeddings=CONTEXT, rope_theta=5e5, attention_type="llama")
    result = run(artifact, "--checkpoint", other)
    assert result.exit_code == 2
    assert "rope_theta is 10000.0 in the artifact and 500000.0 in the checkpoint" in message(result)
    assert "attention_type is lucid in the artifact and llama in the checkpoint" in message(result)
    assert "vocab_size" not in message(result)


def test_a_real_prompt_is_verified(example):
    _, artifact = example
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(artifact / "tokenizer.json"))
    result = run(artifact, "--prompt", "w5 w9 w2", "--json", "-")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["scenarios"][-1] == {"name": "prompt", "prompt_tokens": 3, "decode_steps": 8}
    assert run(artifact, "--prompt", " ").exit_code == 2


def test_nothing_expensive_is_run_unless_asked_or_failed(example):
    _, directory = example
    data = json.loads(run(directory, "--json", "-").stdout)
    assert data["explanation"] is None
    assert data["error_against_position"]
    data = json.loads(run(directory, "--explain", "--json", "-").stdout)
    assert data["explanation"]["own_errors"] and data["perplexity"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", ""], "prompt to verify with is empty"),
        (["--seed", "-1"], "The seed must be 0 or more, not -1."),
        (["--report", "{tmp}/none/page.html"], "there is no folder"),
        (["--report", "{tmp}"], "it is a folder"),
        (["--report", "-"], "needs a file name, not -"),
        (["--text", "{tmp}/none.txt"], "cannot be read"),
        (["--text", "{tmp}"], "cannot be read"),
        (["--text", "{tmp}/empty.txt"], "takes at least 2"),
        (["--text", "{tmp}/binary.txt"], "is not valid UTF-8 text"),
        (["--text", "{tmp}/empty.txt", "--text-tokens", "1"], "--text-tokens"),
    ],
)
def test_bad_usage_is_refused_before_the_long_run(with_tokenizer, tmp_path, arguments, words):
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "binary.txt").write_bytes(b"w1 \xff\xfe")
    result = run(with_tokenizer, *(argument.format(tmp=tmp_path) for argument in arguments))
    assert result.exit_code == 2
    assert words in message(result)


# What a run says while it runs, and how much it does


def test_a_quick_run_says_what_it_left_out(exported, tmp_path):
    _, artifact = exported(max_position_embeddings=200)
    target, page = tmp_path / "data.json", tmp_path / "page.html"
    arguments = ["verify", str(artifact.directory), "--quick", "--json", str(target), "--report", str(page)]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    data = json.loads(target.read_text())
    assert [s["name"] for s in data["scenarios"]] == ["one token", "correlated", "greedy"]
    assert {s["prompt_tokens"] for s in data["scenarios"]} == {187}
    assert {s["decode_steps"] for s in data["scenarios"]} == {8}
    words = " ".join(result.stdout.split())
    assert words.index("Parts of a full verification were left out") < words.index("worst case of each tensor")
    assert "Prompts are not fed by token or in turns" in words
    assert "Prompts are not fed by token or in turns" in page.read_text() and len(data["left_out"]) == 4


def test_a_quick_run_finds_a_fault_too(exported, tmp_path):
    _, artifact = exported(max_position_embeddings=200)
    copy = shutil.copytree(artifact.directory, tmp_path / "artifact")
    change_weight(copy, "model.layers.1.self_attn.v_proj.weight")
    result = CliRunner().invoke(main, ["verify", str(copy), "--quick"], catch_exceptions=False)
    assert result.exit_code == 1 and "The error starts in layer 1 Y" in message(result)


def test_a_damaged_file_ends_the_verification_and_is_in_the_json(example, tmp_path):
    _, artifact = example
    with open(artifact / WEIGHTS, "r+b") as file:
        file.write(b"damage")
    target = tmp_path / "data.json"
    result = run(artifact, "--json", target)
    assert result.exit_code == 1 and "sha256" in message(result) and WEIGHTS in message(result)
    data = json.loads(target.read_text())
    assert (data["passed"], data["hashes_checked"]) == (False, True)
    outcomes = {check["name"]: check["outcome"] for check in data["checks"]}
    assert outcomes["files"] == "failed" and outcomes["tensors"] == outcomes["weights"] == "not done"
    assert "tensors, free generation, causes: an earlier check failed" in " ".join(result.stdout.split())
