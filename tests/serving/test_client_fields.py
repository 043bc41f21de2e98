"""Every field of OpenAI's clients does something, or is refused by name, or stands in the docs as ignored."""

from __future__ import annotations

import json
import typing
from pathlib import Path
from typing import Any

import pytest
from openai.types import completion_create_params as completions
from openai.types.chat import completion_create_params as chats
from openai.types.responses import response_create_params as responses

from lucid_deploy.artifact.chat import load_chat_templates
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.serving.bodies import ChatRequest, CompletionRequest, ResponseRequest
from lucid_deploy.serving.errors import ApiError
from lucid_deploy.serving.requests import Kind, RequestReader
from tests.serving.reader_tools import MODEL, write_setup

USER = [{"role": "user", "content": "w5"}]
BASES: dict[Kind, dict[str, Any]] = {
    "chat": {"model": MODEL, "messages": USER},
    "completion": {"model": MODEL, "prompt": "w5"},
    "response": {"model": MODEL, "input": "w5"},
}
FIELDS: dict[Kind, set[str]] = {
    "chat": {*typing.get_type_hints(chats.CompletionCreateParamsStreaming), *ChatRequest.__struct_fields__},
    "completion": {
        *typing.get_type_hints(completions.CompletionCreateParamsStreaming),
        *CompletionRequest.__struct_fields__,
    },
    "response": {*typing.get_type_hints(responses.ResponseCreateParamsStreaming), *ResponseRequest.__struct_fields__},
}
TEXTS = ["x", "", "auto", "none", "text", "low", "default", "flex", "priority", "24h", "disabled"]
LISTS = [[], ["x"], ["text"], [{"a": 1}], [["w1", "w2"]]]
OBJECTS = [{}, {"a": "b"}, {"type": "text"}, {"id": "x"}, {"type": "json_object"}, {"enabled": True}]
VALUES: list[Any] = [True, False, 0, 1, 2, 0.5, *TEXTS, *LISTS, *OBJECTS]
TEXT_IGNORED = ("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
# What each field does if it is left out, and choices among what there is no more than one of.
NEUTRAL: dict[str, list[Any]] = {
    **{key: [False] for key in ("ignore_eos", "return_tokens_as_token_ids", "store", "stream", "echo", "background")},
    **{key: [0] for key in ("frequency_penalty", "presence_penalty", "min_p", "top_k")},
    **{key: [1] for key in ("n", "best_of", "repetition_penalty", "temperature", "top_p")},
    **{key: [[]] for key in ("bad_words", "functions", "stop", "tools", "context_management", "include")},
    **{key: [{}] for key in ("logit_bias", "reasoning", "stream_options", "text")},
    **{key: ["auto", "none"] for key in ("tool_choice", "function_call")},
    **dict.fromkeys(TEXT_IGNORED, TEXTS),
    "logprobs": [False],
    "metadata": [{}, {"a": "b"}, {"type": "text"}, {"id": "x"}, {"type": "json_object"}],
    "modalities": [["text"]],
    "parallel_tool_calls": [True, False],
    "response_format": [{"type": "text"}],
    "service_tier": ["auto", "default"],
    "suffix": [""],
    "truncation": ["disabled"],
}


@pytest.mark.parametrize("kind", BASES)
def test_no_value_is_accepted_and_ignored_without_a_word(kind: Kind, tmp_path: Path) -> None:
    setup = write_setup(tmp_path)
    reader = RequestReader(setup.model, setup.limits, TextTokenizer(tmp_path), load_chat_templates(tmp_path))
    plain = reader.read(kind, json.dumps(BASES[kind]).encode())
    for name in sorted(FIELDS[kind] - BASES[kind].keys()):
        ignored = []
        for value in VALUES:
            try:
                found = reader.read(kind, json.dumps({**BASES[kind], name: value}).encode())
            except ApiError as error:
                assert name in error.message, (name, value, error.message)
            else:
                ignored += [value] if found == plain else []
        allowed = list(map(json.dumps, NEUTRAL.get(name, [])))
        assert set(map(json.dumps, ignored)) <= set(allowed), f"{name} is ignored if it is {ignored}"


def test_the_docs_say_what_is_ignored() -> None:
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    said = text.split("The server accepts these fields and ignores them:")[1].split("\n\n")[0]
    assert all(f"`{name}`" in said for name in (*TEXT_IGNORED, "metadata"))
    assert "`store`" not in said and "`service_tier`" not in said
