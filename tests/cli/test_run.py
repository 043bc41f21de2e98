"""``lucid-deploy run`` on a tiny artifact."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from lucid_deploy.artifact import Artifact
from lucid_deploy.cli import main
from lucid_deploy.runtimes import open_session

Exported = Callable[..., tuple[Path, Artifact]]
PROMPT = [5, 17, 80, 5, 17, 33, 2, 9, 9, 41, 60]


def run(artifact: Path, *options: Any, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(main, ["run", str(artifact), *map(str, options)], input=stdin)
    assert result.exit_code == 0, result.stderr
    return result


@pytest.fixture
def generate(exported: Exported) -> Callable[..., dict[str, Any]]:
    """Return a function that runs the tiny artifact on PROMPT and returns what ``--json`` prints."""
    prompt = ",".join(map(str, PROMPT))

    def call(*options: Any) -> dict[str, Any]:
        _, artifact = exported()
        facts: dict[str, Any] = json.loads(
            run(artifact.directory, "--prompt-ids", prompt, "-n", 24, "--ignore-eos", "--json", *options).stdout
        )
        return facts

    return call


def greedy(artifact: Artifact, count: int) -> list[int]:
    """The plain loop: prefill once, then feed the most likely token back."""
    session = open_session(artifact)
    cache = session.empty_cache()
    logits = session.prefill(np.array([PROMPT]), cache)
    tokens = []
    for _ in range(count):
        tokens.append(int(logits[0, -1].argmax()))
        logits = session.decode(np.array([tokens[-1:]]), cache)
    return tokens


def test_greedy_is_the_plain_loop(generate: Callable[..., dict[str, Any]], exported: Exported) -> None:
    tokens = greedy(exported()[1], 24)
    assert len(set(tokens)) > 2  # a model that repeats itself would pass with almost any fault
    assert generate()["ids"] == tokens


def test_json_says_what_was_done(generate: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lucid_deploy.cli.run.time", SimpleNamespace(perf_counter=itertools.count().__next__))
    facts = generate("--kernels", "functions")
    assert facts.pop("seconds_to_first_token") == 1
    assert facts.pop("tokens_per_second") == 23  # after the first
    assert len(facts.pop("ids")) == 24
    assert facts == {
        "text": None,
        "prompt_tokens": len(PROMPT),
        "finish_reason": "length",
        "runtime": "onnxruntime",
        "provider": "cpu",
        "kernels": "functions",
        "dtype": "float32",
        "speculation": None,
    }


def test_stdout_has_the_tokens_and_stderr_the_timings(exported: Exported) -> None:
    _, artifact = exported()
    result = run(artifact.directory, "--prompt-ids", ",".join(map(str, PROMPT)), "-n", 5, "--ignore-eos")
    assert result.stdout == ",".join(map(str, greedy(artifact, 5))) + "\n"
    assert result.stderr.startswith("11 prompt tokens, 5 new (length), ")


def test_eos_ends_a_generation(artifact_copy: Path, exported: Exported) -> None:
    tokens = greedy(exported()[1], 24)
    last = next(i for i, token in enumerate(tokens) if i > 2 and token not in tokens[:i])
    manifest = artifact_copy / "lucid.json"
    data = json.loads(manifest.read_text())
    data["config"]["eos_token_ids"] = [96, tokens[last]]
    manifest.write_text(json.dumps(data))
    options = ["--prompt-ids", ",".join(map(str, PROMPT)), "-n", 24, "--json"]
    stopped = json.loads(run(artifact_copy, *options).stdout)
    assert (stopped["ids"], stopped["finish_reason"]) == (tokens[:last], "eos")
    ignored = json.loads(run(artifact_copy, *options, "--ignore-eos").stdout)
    assert (ignored["ids"], ignored["finish_reason"]) == (tokens, "length")


def test_text_in_and_text_out(with_tokenizer: Path, exported: Exported) -> None:
    text = " ".join(f"w{i}" for i in PROMPT)
    tokens = greedy(exported()[1], 5)
    expected = " ".join(f"w{i}" for i in tokens)
    options = ["--prompt", text, "-n", 5, "--ignore-eos"]
    assert run(with_tokenizer, *options).stdout == expected + "\n"
    assert json.loads(run(with_tokenizer, *options, "--json").stdout)["text"] == expected


def test_the_prompt_is_an_argument_and_a_dash_reads_it_from_stdin(with_tokenizer: Path) -> None:
    text = " ".join(f"w{i}" for i in PROMPT)
    as_argument = run(with_tokenizer, text, "-n", 5, "--ignore-eos").stdout
    assert as_argument == run(with_tokenizer, "-", "-n", 5, "--ignore-eos", stdin=text + "\n").stdout
    assert as_argument == run(with_tokenizer, "--prompt", text, "-n", 5, "--ignore-eos").stdout
    for more in (["--prompt", "w5"], ["--batch", "x.jsonl", "--output", "y.jsonl"]):
        assert CliRunner().invoke(main, ["run", str(with_tokenizer), "w5", *more]).exit_code == 2


def test_words_that_the_tokenizer_does_not_know_are_named(with_tokenizer: Path) -> None:
    said = run(with_tokenizer, "--prompt", "w5 zebra w9 gnu zebra", "-n", 1).stderr
    assert said.startswith("Note: the model's tokenizer does not know zebra, gnu.\n")
    assert "does not know" not in run(with_tokenizer, "--prompt", "w5 w9", "-n", 1).stderr


def test_a_tokenizer_that_panics_gives_one_error_line(with_tokenizer: Path) -> None:
    from tokenizers import Regex, Tokenizer, pre_tokenizers

    path = str(with_tokenizer / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("^(a+)+$"), "isolated")
    tokenizer.save(path)
    result = CliRunner().invoke(main, ["run", str(with_tokenizer), "--prompt", "a" * 40 + "b"])
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: The tokenizer failed on this text: ")
    assert result.stderr.count("\n") == 1


def test_hashes_are_compared_on_request(artifact_copy: Path) -> None:
    path = artifact_copy / "weights.bin"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(64))
    result = CliRunner().invoke(main, ["run", str(artifact_copy), "--prompt-ids", "5", "--check"])
    assert (result.exit_code, "sha256 of weights.bin differs" in result.stderr) == (1, True)
