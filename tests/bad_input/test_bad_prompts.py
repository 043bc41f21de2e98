"""Prompts and options of run that must be refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from lucid_deploy.cli import main

Refused = Callable[..., str]


def ids(count: int) -> str:
    return ",".join(str(i % 97) for i in range(count))


@pytest.mark.parametrize("chunk", [[], ["--prefill-chunk", "100"]], ids=["at once", "in chunks"])
def test_a_prompt_longer_than_the_context_is_refused(refused: Refused, artifact_copy: Path, chunk: list[str]) -> None:
    message = refused("run", artifact_copy, "--prompt-ids", ids(513), *chunk)
    assert "513 tokens, the model was made for 512 (max_position_embeddings)" in message
    assert "--allow-extrapolation" in message


def test_a_prompt_longer_than_the_context_runs_if_allowed(artifact_copy: Path) -> None:
    options = ["--prompt-ids", ids(513), "-n", "3", "--ignore-eos", "--allow-extrapolation"]
    result = CliRunner().invoke(main, ["run", str(artifact_copy), *options])
    assert result.exit_code == 0
    assert len(result.stdout.split(",")) == 3


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
@pytest.mark.parametrize("wrong", ["97", "-1", "99999999999999999999"])
def test_ids_beyond_the_vocabulary_are_refused(refused: Refused, artifact_copy: Path, wrong: str, runtime: str) -> None:
    message = refused("run", artifact_copy, "--runtime", runtime, "--prompt-ids", f"5,{wrong},6")
    assert f"Token id {wrong} is outside the vocabulary (0 to 96)" in message


@pytest.mark.parametrize("garbage", ["x", "1.5", "1 2", "1;2", "0x10", "1_0", "٣", "--1"])
def test_ids_that_are_no_numbers_are_refused(refused: Refused, artifact_copy: Path, garbage: str) -> None:
    message = refused("run", artifact_copy, "--prompt-ids", f"5,,6,{garbage},7")
    assert f'--prompt-ids takes whole numbers separated by commas, not "{garbage}".' in message


@pytest.mark.parametrize("empty", ["", ",", " , "])
def test_an_empty_list_of_ids_is_refused(refused: Refused, artifact_copy: Path, empty: str) -> None:
    assert "The prompt is empty" in refused("run", artifact_copy, "--prompt-ids", empty)


@pytest.mark.parametrize("empty", ["", " \n\t"], ids=["empty", "whitespace"])
def test_an_empty_text_is_refused(refused: Refused, with_tokenizer: Path, empty: str) -> None:
    assert "The prompt is empty" in refused("run", with_tokenizer, "--prompt", empty)


def test_stdin_that_is_not_text_is_refused(refused: Refused, with_tokenizer: Path) -> None:
    assert "not valid UTF-8 text" in refused("run", with_tokenizer, "--prompt", "-", stdin=b"w1 \xff\xfe", process=True)


def test_text_and_ids_together_are_refused(refused: Refused, with_tokenizer: Path) -> None:
    assert "Give the prompt once" in refused("run", with_tokenizer, "--prompt", "w1", "--prompt-ids", "1")


def test_a_missing_prompt_is_refused(refused: Refused, with_tokenizer: Path) -> None:
    assert "Give the prompt once" in refused("run", with_tokenizer)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--max-new-tokens", "0", "max_new_tokens must be at least 1, not 0"),
        ("--prefill-chunk", "0", "at least one token, not 0"),
        ("--threads", "0", "threads must be 1 to"),
        ("--threads", "1000000", "threads must be 1 to"),
        ("--temperature", "nan", "temperature must be 0 or more"),
        ("--top-p", "0", "top_p must be above 0"),
        ("--top-k", "-1", "top_k must be 0 (all) or more"),
        ("--presence-penalty", "2.5", "presence_penalty must be -2 to 2"),
        ("--repetition-penalty", "0", "repetition_penalty must be 0.01 to 100"),
        ("--logit-bias", "97=5", "logit_bias: token id 97 is outside the vocabulary (0 to 96)"),
        ("--bad-word", "w1", "has no tokenizer.json"),
        ("--seed", "-1", "seed must be 0 or more"),
        ("--device", "cuda", "Choose --runtime torch"),
    ],
)
def test_bad_options_are_refused(refused: Refused, artifact_copy: Path, option: str, value: str, said: str) -> None:
    assert said in refused("run", artifact_copy, "--prompt-ids", "5", option, value)
