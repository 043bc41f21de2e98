"""``run --json-schema``, ``--regex``, ``--choice`` and ``--grammar``, alone and as the default of a batch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact
from lucid_deploy.cli import main

SCHEMA = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}


@pytest.fixture(scope="module")
def run(with_byte_level_tokenizer: Callable[..., tuple[Path, Artifact]]) -> Callable[..., Any]:
    _, artifact = with_byte_level_tokenizer()

    def call(*words: Any) -> Any:
        result = CliRunner().invoke(main, ["run", str(artifact.directory), *map(str, words)])
        return result

    return call


def answer(run: Callable[..., Any], *words: Any) -> dict[str, Any]:
    result = run("--prompt", "keys", "-n", 60, "--temperature", 1, "--seed", 3, "--json", *words)
    assert result.exit_code == 0, result.stderr
    facts: dict[str, Any] = json.loads(result.stdout)
    assert facts["finish_reason"] == "eos"
    return facts


def test_answers_are_what_the_options_ask_for(run: Callable[..., Any], tmp_path: Path) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text(json.dumps(SCHEMA), encoding="utf-8-sig")  # as Windows' programs do
    grammar.write_text('start: "yes" | "no"\n', encoding="utf-8-sig")
    jsonschema.validate(json.loads(answer(run, "--json-schema", schema)["text"]), SCHEMA)
    assert re.fullmatch("[0-9]{3}", answer(run, "--regex", "[0-9]{3}")["text"])
    assert answer(run, "--choice", "left", "--choice", "right")["text"] in ("left", "right")
    assert answer(run, "--grammar", grammar)["text"] in ("yes", "no")


def test_lines_of_a_batch_may_have_their_own_constraints(run: Callable[..., Any], tmp_path: Path) -> None:
    lines = [{"prompt": "a", "guided_json": SCHEMA}, {"prompt": "b"}, {"prompt": "c", "guided_regex": "[xyz]{2}"}]
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ("--batch", prompts, "--output", output, "-n", 60, "--temperature", 1, "--choice", "left")
    assert run(*words, "--seed", 5).exit_code == 0
    texts = {line["line"]: line["text"] for line in map(json.loads, output.read_text().splitlines())}
    jsonschema.validate(json.loads(texts[1]), SCHEMA)
    assert texts[2] == "left" and re.fullmatch("[xyz]{2}", texts[3])
    assert "begun with other options" in run(*words[:-1], "right", "--seed", 5).stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--regex", "("), "--regex: The constraint cannot be enforced"),
        (("--regex", "a", "--choice", "b"), "--choice cannot be combined with --regex"),
        (("--choice", ""), "--choice: A choice must be text"),
        (("--json-schema", "/nowhere"), "--json-schema /nowhere cannot be read"),
        (("--json-schema", __file__), "--json-schema: The schema is not JSON"),
    ],
)
def test_wrong_options_are_named(words: tuple[str, ...], said: str, run: Callable[..., Any]) -> None:
    result = run("--prompt", "keys", *words)
    assert result.exit_code == 2 and said in " ".join(result.stderr.split())
