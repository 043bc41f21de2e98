"""Bodies become jobs: what the fields of a request mean, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lucid_deploy.artifact.chat import load_chat_templates
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.batching import Request
from lucid_deploy.generation.constraint import from_regex
from lucid_deploy.generation.sampling import Sampling
from lucid_deploy.serving.errors import ApiError
from lucid_deploy.serving.jobs import Job
from lucid_deploy.serving.requests import RequestReader
from tests.serving.reader_tools import chat, completion, write_setup


def reader(folder: Path, template: Any = "w1 {{ messages[0].content }}", **more: Any) -> RequestReader:
    setup = write_setup(folder, template, **more)
    return RequestReader(setup, TextTokenizer(folder), load_chat_templates(folder))


def refused(folder: Path, body: bytes, is_chat: bool = False, **more: Any) -> ApiError:
    read = reader(folder, **more)
    with pytest.raises(ApiError) as caught:
        read.read("chat" if is_chat else "completion", body)
    return caught.value


def test_a_chat_with_tools_is_rendered_with_the_template_for_tools(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "a"}}]
    for_tools = "w7 {{ messages[0].content }}{# <tool_call></tool_call> {{ tools }} #}"
    read = reader(tmp_path, [{"name": "default", "template": "w1"}, {"name": "tool_use", "template": for_tools}])
    asked: list[dict[str, Any]] = [{"tools": tools}, {"tools": tools, "tool_choice": "none"}, {"tools": []}, {}]
    assert [read.read("chat", chat("w5", **fields)).prompts[0] for fields in asked] == [(7, 5), (1,), (1,), (1,)]
    theirs, messages = AutoTokenizer.from_pretrained(str(tmp_path)), [{"role": "user", "content": "w5"}]
    assert theirs.apply_chat_template(messages, tools=tools, tokenize=False) == "w7 w5"
    assert theirs.apply_chat_template(messages, tokenize=False) == "w1"


def test_chats_without_tools_need_a_template_called_default(tmp_path: Path) -> None:
    read = reader(tmp_path, {"tool_use": "{{ tools }}"})
    with pytest.raises(ApiError, match=r"called default; the model has tool_use\.") as caught:
        read.read("chat", chat("w5"))
    assert (caught.value.status, caught.value.code) == (400, "no_chat_template")


def test_roles_are_those_of_openai(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ {'system': 'w1', 'user': 'w2'}[m.role] }} {{ m.content }} {% endfor %}"
    told, asked = {"role": "developer", "content": "w8"}, {"role": "user", "content": "w5"}
    body = json.dumps({"model": "m", "messages": [told, asked]})
    assert reader(tmp_path, template).read("chat", body.encode()).prompts == ((1, 8, 2, 5),)
    error = refused(tmp_path, body.replace("developer", "wizard").encode(), is_chat=True)
    assert error.param == "messages[0].role" and "'wizard'" in error.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"response_format": {"type": "json_object", "json_schema": {"name": "n"}}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"guided_regex": "zebra"}, "guided_regex"),  # no token begins a text that matches
        ({"response_format": {"type": "text", "json_schema": {"name": "n"}}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            "response_format.json_schema.schema",
        ),
    ],
)
def test_fields_that_would_be_ignored_are_refused(fields: dict[str, Any], param: str, tmp_path: Path) -> None:
    assert refused(tmp_path, chat("w5", **fields), is_chat=True).param == param


def test_a_constraint_becomes_part_of_the_job(tmp_path: Path) -> None:
    read = reader(tmp_path)
    assert read.read("completion", completion("w1", guided_regex=".*")).request.constraint == from_regex(".*")
    assert read.read("completion", completion("w1", response_format={"type": "text"})).request.constraint is None


def test_a_completion_without_options_has_defaults(tmp_path: Path) -> None:
    assert reader(tmp_path).read("completion", completion("w3 w4")) == Job(((3, 4),), Request([], 16, Sampling(1.0)))


def test_all_fields_of_a_completion_are_read(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "n": 2,
        "max_tokens": 9,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 3,
        "seed": 5,
        "stop": ["a", "b"],
        "ignore_eos": True,
        "logprobs": 20,
        "stream": True,
        "stream_options": {"include_usage": True, "include_obfuscation": False},
        "cache_salt": "s",
        "user": "me",
        "min_p": 0.1,
        "presence_penalty": -1,
        "frequency_penalty": 2,
        "repetition_penalty": 1.5,
        "logit_bias": {"7": -100, "8": 2.5},
        "bad_words": ["w3 w4", "w9"],
    }
    job = reader(tmp_path).read("completion", completion([[5], [6, 7]], **fields))
    sampling = Sampling(0.0, 3, 0.5, 5, 0.1, -1.0, 2.0, 1.5, ((7, -100.0), (8, 2.5)), ((3, 4), (9,)))
    answered = {"stream": True, "include_usage": True, "cache_salt": "s"}
    assert job == Job(((5,), (6, 7)), Request([], 9, sampling, False, 20), 2, ("a", "b"), **answered)
    assert job.prompt_tokens == 3


def test_fields_without_effect_are_accepted(tmp_path: Path) -> None:
    neutral = {"metadata": {"a": "b"}, "store": False, "response_format": {"type": "text"}, "presence_penalty": 0}
    neutral |= {"logit_bias": {}, "safety_identifier": "me", "prompt_cache_key": "k"}
    read = reader(tmp_path)
    given = completion("w5", best_of=1, suffix=None, top_k=0, **neutral)
    assert read.read("completion", given) == read.read("completion", completion("w5"))
    given = chat("w5", tools=[], tool_choice="none", frequency_penalty=0.0, **neutral)
    assert read.read("chat", given) == read.read("chat", chat("w5"))


def test_a_chat_may_fill_the_context(tmp_path: Path) -> None:
    read = reader(tmp_path, context=50)
    assert read.read("chat", chat("w7")).request.max_new_tokens == 48
    assert read.read("chat", chat("w7", max_tokens=5)).request.max_new_tokens == 5
    assert read.read("chat", chat("w7", max_tokens=5, max_completion_tokens=6)).request.max_new_tokens == 6
    assert read.read("chat", chat("w7", logprobs=True)).request.top_logprobs == 0
    assert read.read("chat", chat("w7", logprobs=False)).request.top_logprobs is None
    assert read.read("completion", completion("w7", logprobs=0, return_tokens_as_token_ids=True)).tokens_as_ids


def test_parts_of_a_message_become_one_text(tmp_path: Path) -> None:
    content: Any = [{"type": "text", "text": "w"}, {"type": "text", "text": "7"}]
    assert reader(tmp_path).read("chat", chat(content)).prompts == ((1, 7),)


def test_names_reach_the_template(tmp_path: Path) -> None:
    template = "{% for m in messages %}w{{ m.name if m.name is defined else '1' }} {% endfor %}"
    messages = [{"role": "user", "content": ""}, {"role": "user", "name": "2", "content": "", "refusal": None}]
    body = json.dumps({"model": "m", "messages": messages}).encode()
    assert reader(tmp_path, template).read("chat", body).prompts == ((1, 2),)


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        (completion(""), "The prompt is empty", "empty_prompt"),
        (completion("   "), "it has no tokens", "empty_prompt"),
        (completion([]), "The prompt is empty", "empty_prompt"),
        (completion([[1], []]), "it has no tokens", "empty_prompt"),
        (completion([1, 100]), "Token id 100 is outside the vocabulary (0 to 99)", "invalid_value"),
        (completion([10**30]), "outside the vocabulary", "invalid_value"),
        (completion(["w1", [1]]), "a mixture", "invalid_value"),
        (completion([[1]] * 9), "9 prompts x n 1 = 9 generations; this server takes at most 8", "invalid_value"),
        (completion([[1]] * 3, n=3), "3 prompts x n 3 = 9 generations", "invalid_value"),
        (completion("w1", n=9), "n must be 1 to 8", "invalid_value"),
        (completion("w1 " * 41), "41 tokens; this server takes at most 40", "context_length_exceeded"),
        (
            completion("w1", max_tokens=50),
            "and 50 new ones exceed the context, 50",
            "context_length_exceeded",
        ),
        (completion("w1", max_tokens=101), "max_tokens must be 1 to 100", "invalid_value"),
        (completion("w1", best_of=2), "best_of is not supported", "unsupported_parameter"),
        (completion("w1", echo=True), "echo is not supported", "unsupported_parameter"),
        (completion("w1", suffix="x"), "suffix is not supported", "unsupported_parameter"),
        (completion("w1", logit_bias={"-1": 1}), "'-1' is no token id", "invalid_value"),
        (completion("w1", logit_bias={"5": 1, "05": 2}), "logit_bias names token 5 twice", "invalid_value"),
        (completion("w1", logit_bias={"5": 101}), "The bias of token 5 must be -100 to 100, not 101", "invalid_value"),
        (completion("w1", bad_words=["zebra"]), 'no token for the bad word "zebra"', "invalid_value"),
        (completion("w1", bad_words=[" "]), "A bad word must be text that is not empty", "invalid_value"),
        (completion("w1", stream_options={}), "stream_options needs stream", "invalid_value"),
        (completion("w1", metadata=dict.fromkeys(map(str, range(17)), "")), "of length <= 16", "invalid_value"),
        (completion("w1", metadata={"a": "x" * 513}), "of length <= 512", "invalid_value"),
        (completion("w1", model="x"), "does not exist here", "model_not_found"),
        (completion("w1", n=1)[:-1] + b', "n": 2}', 'an object has the name "n" twice', "invalid_json"),
    ],
)
def test_invalid_completions_are_refused(body: bytes, message: str, code: str, tmp_path: Path) -> None:
    error = refused(tmp_path, body, context=50, prompt_tokens=40)
    assert (message in error.message, error.code) == (True, code)


def test_a_prompt_that_fills_the_context_is_refused(tmp_path: Path) -> None:
    assert "40 tokens; this server takes at most 39" in refused(tmp_path, completion("w1 " * 40), context=40).message


def test_tokens_outside_the_model_s_vocabulary_are_refused(tmp_path: Path) -> None:
    assert "Token id 50 is outside the vocabulary" in refused(tmp_path, completion("w50"), vocabulary=50).message
    error = refused(tmp_path, completion("w1", bad_words=["w50"]), vocabulary=50)
    assert (error.message, error.param) == ("bad_words: token id 50 is outside the vocabulary (0 to 49).", "bad_words")


@pytest.mark.parametrize(
    ("template", "fields", "message", "param"),
    [
        (None, {}, "has no chat template", None),
        ("{{ raise_exception('roles must alternate') }}", {}, "roles must alternate", "messages"),
        ("x", {"top_logprobs": 2}, "top_logprobs needs logprobs", "top_logprobs"),
        (
            "x",
            {"n": 9, "logprobs": True, "top_logprobs": 20},
            "x 9 generations are too many: at most 160",
            "top_logprobs",
        ),
        ("x", {"tools": [{"type": "function", "function": {"name": "f"}}]}, "template does not support tools", "tools"),
        ("", {}, "it has no tokens", "messages"),
    ],
)
def test_invalid_chats_are_refused(
    template: str | None, fields: dict[str, Any], message: str, param: str | None, tmp_path: Path
) -> None:
    error = refused(tmp_path, chat("w1", **fields), is_chat=True, template=template, choices=9)
    assert (message in error.message, error.param) == (True, param)
