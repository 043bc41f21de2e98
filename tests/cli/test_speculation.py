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


def test_the_summary_says_how_far_drafts_were_right(exported: Exported) -> None:
    result = run(
        exported()[1].directory, "--prompt-ids", "5,6,5,6,5,6", "-n", 9, "--ignore-eos", "--speculate", "lookup"
    )
    assert " drafted tokens accepted" in result.stderr


@pytest.mark.parametrize(
    "options", [["--speculate", "draft"], ["--draft", "x"], ["--speculate", "lookup", "--draft", "x"]]
)
def test_a_draft_and_its_mode_go_together(exported: Exported, options: list[str]) -> None:
    result = CliRunner().invoke(main, ["run", str(exported()[1].directory), "--prompt-ids", "5", *options])
    assert result.exit_code == 2 and "go together" in result.stderr
