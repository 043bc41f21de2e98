"""``--speculate`` and ``--draft`` of ``lucid-deploy run``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lucid_deploy.artifact import Artifact
from lucid_deploy.cli import main
from lucid_deploy.cli._generation_options import drafts_text
from lucid_deploy.generation.speculation import DraftCounts

Exported = Callable[..., tuple[Path, Artifact]]


def run(artifact: Path, *options: Any) -> Result:
    result = CliRunner().invoke(main, ["run", str(artifact), *map(str, options)])
    assert result.exit_code == 0, result.stderr
    return result


@pytest.fixture
def generate(exported: Exported) -> Callable[..., dict[str, Any]]:
    """Return a function that runs the tiny artifact and returns what ``--json`` prints."""

    def call(*options: Any) -> dict[str, Any]:
        prompt = ("--prompt-ids", "5,17,80,5,17,33,2,9,9,41,60", "-n", 24, "--ignore-eos")
        facts: dict[str, Any] = json.loads(run(exported()[1].directory, *prompt, "--json", *options).stdout)
        return facts

    return call


@pytest.mark.parametrize("sampling", [[], ["--temperature", "1.5", "--seed", "7"]])
def test_speculation_gives_the_same_tokens_and_counts_drafts(generate: Callable[..., dict[str, Any]], sampling) -> None:
    plain, guessed = generate(*sampling), generate(*sampling, "--speculate", "lookup")
    assert guessed["ids"] == plain["ids"] and plain["speculation"] is None
    counts = guessed["speculation"]
    assert 0 <= counts["accepted"] <= counts["proposed"] and counts["proposed"] > 0


def test_a_draft_artifact_drafts(generate: Callable[..., dict[str, Any]], exported: Exported) -> None:
    artifact = exported()[1].directory
    guessed = generate("--speculate", "draft", "--draft", artifact)
    assert guessed["ids"] == generate()["ids"]
    assert guessed["speculation"]["accepted"] == guessed["speculation"]["proposed"] > 8  # it drafts for itself


@pytest.mark.parametrize("words", [1, 9])
def test_a_batch_counts_no_token_after_a_stop_string(with_tokenizer: Path, tmp_path: Path, words: int) -> None:
    """A single run chooses no token after a stop string; a batch of one row counts the same tokens."""
    options = ["-n", 24, "--ignore-eos", "--speculate", "draft", "--draft", with_tokenizer]  # it drafts for itself
    whole = run(with_tokenizer, "--prompt", "w5 w17 w80", *options).stdout.split()
    stop = ["--stop", " " + " ".join(whole[words : words + 2])]
    single = json.loads(run(with_tokenizer, "--prompt", "w5 w17 w80", *options, *stop, "--json").stdout)
    assert single["finish_reason"] == "stop" and len(single["ids"]) < 16
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "w5 w17 w80"}))
    batch = ["--batch", prompts, "--output", tmp_path / "answers.jsonl", "--rows", 1]
    found = json.loads(run(with_tokenizer, *batch, *options, *stop, "--json").stdout)
    assert found["generated_tokens"] == len(single["ids"])
    assert found["speculation"]["accepted"] == single["speculation"]["accepted"] < len(single["ids"])


def test_failed_drafters_are_counted_in_the_text() -> None:
    assert drafts_text(DraftCounts(9, 4)) == "4 of 9 drafted tokens accepted"
    assert drafts_text(DraftCounts(9, 4, 1, 2)) == "4 of 9 drafted tokens accepted, 1 near ties, 2 drafters failed"
