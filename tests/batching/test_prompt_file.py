"""Files of prompts: the fields of lines, their defaults, and messages about bad lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.batching.prompt_file import Prompt, PromptDefaults, check_prompts, read_prompts
from lucid_deploy.batching.request import Request
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.sampling import Sampling
from tests.generation.sample_tokenizers import make

DEFAULTS = PromptDefaults(7, Sampling(0.5, 3, 0.9, 11), ("end",), stop_at_eos=False)


def read(folder: Path, *lines: Any, defaults: PromptDefaults = DEFAULTS) -> list[Prompt]:
    path = folder / "prompts.jsonl"
    path.write_bytes(b"".join((x.encode() if isinstance(x, str) else json.dumps(x).encode()) + b"\n" for x in lines))
    return read_prompts(path, defaults).prompts


def refusal(folder: Path, *lines: Any) -> str:
    with pytest.raises(LucidError) as caught:
        read(folder, *lines)
    return str(caught.value)


def test_fields_that_a_line_leaves_out_have_defaults(tmp_path: Path) -> None:
    sampling = Sampling(0.5, 3, 0.9, 11)
    assert read(tmp_path, {"prompt": "a"}, "", " ", {"prompt_ids": [1], "seed": None, "stop": None}) == [
        Prompt(1, None, "a", None, 7, sampling, ("end",), False),
        Prompt(4, None, None, (1,), 7, sampling, ("end",), False),
    ]


def test_fields_of_a_line_override_the_defaults(tmp_path: Path) -> None:
    fields = {"id": 5, "max_new_tokens": 1, "temperature": 0, "top_k": 0, "top_p": 1, "seed": 0, "stop": "x"}
    (prompt,) = read(tmp_path, {"prompt": "a", **fields})
    assert prompt == Prompt(1, 5, "a", None, 1, Sampling(0.0, 0, 1.0, 0), ("x",), False)
    assert read(tmp_path, {"prompt": "a", "stop": ["x", "y"], "id": "i"})[0].stop == ("x", "y")
    assert read(tmp_path, {"prompt": "a", "stop": []})[0].stop == ()
    assert read(tmp_path, {"prompt": "a", "temperature": 5.5})[0].sampling.temperature == 5.5


def test_penalties_biases_and_bad_words_of_a_line_are_read(tmp_path: Path) -> None:
    fields = {"min_p": 0.2, "presence_penalty": 1, "frequency_penalty": -1, "repetition_penalty": 1.1}
    (prompt,) = read(tmp_path, {"prompt": "a", **fields, "logit_bias": {"3": -2}, "bad_words": ["fox", "the"]})
    assert prompt.sampling == Sampling(0.5, 3, 0.9, 11, 0.2, 1.0, -1.0, 1.1, ((3, -2.0),))
    assert prompt.request(make("word level", tmp_path)).sampling.bad_words == ((2,), (1,))


def test_a_prompt_becomes_a_request(tmp_path: Path) -> None:
    prompts = read(tmp_path, {"prompt": "the fox"}, {"prompt_ids": [4, 5]})
    tokenizer = make("word piece", tmp_path)
    ids = [prompt.request(tokenizer) for prompt in prompts]
    assert ids[1] == Request([4, 5], 7, Sampling(0.5, 3, 0.9, 11), stop_at_eos=False)
    assert ids[0].prompt_ids == tokenizer.encode("the fox")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 3: The line is not valid JSON"),
        ("[1]", "line 3: The line must be a JSON object"),
        ('{"prompt": "w1", "prompt_ids": [1]}', "either"),
        ('{"prompt": "w1", "max_tokens": 5}', 'Unknown field: "max_tokens". Leave it out. Known fields are id,'),
        ('{"prompt": "  "}', "prompt must be text that is not empty"),
        ('{"prompt": "\\ud800"}', "The line has half a character (a lone surrogate)"),
        ('{"prompt_ids": [1, true]}', "prompt_ids[1]: expected `int`, got `bool`"),
        ('{"prompt": "w1", "temperature": NaN}', "NaN is not a JSON number"),
        ('{"prompt": "w1", "temperature": -1}', "line 3: The temperature must be 0 or more"),
        ('{"prompt": "w1", "logit_bias": {"a": 1}}', "'a' is no token id"),
        ('{"prompt": "w1", "logit_bias": {"1": true}}', "logit_bias: expected `float`, got `bool`"),
        ('{"prompt": "w1", "seed": 1.5}', "seed: expected `int | null`, got `float`"),
        ('{"prompt": "w1", "stop": [""]}', "stop[0]: expected `str` of length >= 1"),
        ('{"prompt": "w1", "id": "\\ud800"}', "The line has half a character"),
        ('{"prompt": "w1", "id": "a"}', "lines 1 and 3 have the same id, 'a'"),
        ("[" * 100_000, "line 3: The line is not valid JSON: it is nested too deeply"),
    ],
)
def test_bad_lines_are_named(line: str, message: str, tmp_path: Path) -> None:
    assert message in refusal(tmp_path, {"prompt": "w1", "id": "a"}, "", line, {"prompt": "w2"})


def test_at_most_ten_bad_lines_are_named(tmp_path: Path) -> None:
    said = refusal(tmp_path, *["{}"] * 13)
    assert "line 1:" in said and "line 10:" in said and "line 11:" not in said and "and 3 more" in said


def test_a_missing_or_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LucidError, match="cannot be read: No such file"):
        read_prompts(tmp_path / "missing", DEFAULTS)
    with pytest.raises(LucidError, match="cannot be read: Is a directory"):
        read_prompts(tmp_path, DEFAULTS)
    assert "has no prompts" in refusal(tmp_path)
    assert "has no prompts" in refusal(tmp_path, "", "  ")


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "cat"}\n{"prompt": "\ufeffcat"}\n', encoding="utf-8-sig")
    assert [prompt.text for prompt in read_prompts(path, DEFAULTS).prompts] == ["cat", "\ufeffcat"]


def test_an_empty_stop_string_is_refused_before_anything_runs() -> None:
    with pytest.raises(LucidError, match="stop string must not be empty"):
        PromptDefaults(7, Sampling(), ("",))


def test_without_a_tokenizer_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p"
    session: Any = None
    for line in ({"prompt": "a"}, {"prompt_ids": [1], "stop": "x"}):
        path.write_text(json.dumps(line))
        with pytest.raises(LucidError, match=r"line 1: the artifact has no tokenizer\.json"):
            check_prompts(read_prompts(path, PromptDefaults(7, Sampling())), session, None)
