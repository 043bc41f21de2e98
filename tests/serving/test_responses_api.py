"""The body of /v1/responses is read as a chat, and errors name the fields as /v1/responses does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lucid_deploy.artifact.chat import load_chat_templates
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.generation.sampling import Sampling
from lucid_deploy.serving.errors import ApiError
from lucid_deploy.serving.fields import ChatRequest, ResponseRequest
from lucid_deploy.serving.jobs import Job
from lucid_deploy.serving.requests import RequestReader
from lucid_deploy.serving.responses_api import as_chat, repeated_fields
from tests.serving.reader_tools import MODEL, write_setup

TEMPLATE = (
    "{% for m in messages %}{{ {'system': 'w1', 'user': 'w2', 'assistant': 'w3'}[m.role] or raise_exception('who?') }}"
    " {{ m.content }} {% endfor %}"
)


TOOL: dict[str, Any] = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "w8"}
LOGPROBS = ["message.output_text.logprobs"]


def read(folder: Path, given: Any, template: str | None = TEMPLATE, **fields: Any) -> Job:
    setup = write_setup(folder, template)
    reader = RequestReader(setup, TextTokenizer(folder), load_chat_templates(folder))
    return reader.read("response", json.dumps({"model": MODEL, "input": given, **fields}).encode())


def refused(folder: Path, given: Any, **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(folder, given, **fields)
    return caught.value


def test_a_text_becomes_a_message_of_the_user(tmp_path: Path) -> None:
    found = read(tmp_path, "w5 w6", instructions="w9", max_output_tokens=7, temperature=0.5, top_p=0.9, stream=True)
    assert found.prompts == ((1, 9, 2, 5, 6),)
    assert (found.request.max_new_tokens, found.request.sampling) == (7, Sampling(0.5, top_p=0.9))
    assert (found.stream, found.include_usage, found.chat) == (True, False, True)
    assert found.response is not None and found.response["instructions"] == b'"w9"'


def test_messages_and_an_earlier_answer_become_a_chat(tmp_path: Path) -> None:
    earlier = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "w6 ", "annotations": [], "logprobs": []}],
    }
    parts = [{"type": "input_text", "text": "w7 "}, {"type": "input_text", "text": "w8"}]
    given = [{"role": "developer", "content": "w4"}, {"role": "user", "content": "w5"}, earlier]
    found = read(tmp_path, [*given, {"role": "user", "content": parts, "type": "message"}])
    assert found.prompts == ((1, 4, 2, 5, 3, 6, 2, 7, 8),)


def test_tools_calls_and_results_are_those_of_a_chat() -> None:
    given = [{"type": "message", "role": "user", "content": "w5"}, CALL, {**CALL, "call_id": "c2"}, RESULT]
    choice, called = {"type": "function", "name": "f"}, {"name": "f", "arguments": "{}"}
    fields = {"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False}
    body = msgspec.convert({"model": MODEL, "input": given, **fields}, ResponseRequest)
    chat = {
        "model": MODEL,
        "messages": [
            {"role": "user", "content": "w5"},
            {
                "role": "assistant",
                "tool_calls": [{"id": i, "type": "function", "function": called} for i in ("c1", "c2")],
            },
            {"role": "tool", "content": "w8", "tool_call_id": "c1"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": TOOL["parameters"]}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": False,
    }
    assert as_chat(body) == msgspec.convert(chat, ChatRequest)
    shown = {**TOOL, "description": None, "strict": None}
    found = {name: msgspec.json.decode(text) for name, text in repeated_fields(body).items()}
    assert (found["tools"], found["tool_choice"], found["parallel_tool_calls"]) == ([shown], choice, False)


def test_log_probabilities_are_asked_for_by_include(tmp_path: Path) -> None:
    wanted = ["message.output_text.logprobs"]
    assert read(tmp_path, "w5").request.top_logprobs is None
    assert read(tmp_path, "w5", include=wanted).request.top_logprobs == 0
    assert read(tmp_path, "w5", include=wanted, top_logprobs=4).request.top_logprobs == 4


@pytest.mark.parametrize(
    ("given", "fields", "message", "param"),
    [
        ("w5", {"store": True}, "store is not supported", "store"),
        ("w5", {"previous_response_id": "resp_1"}, "previous_response_id is not supported", "previous_response_id"),
        ("w5", {"text": {"verbosity": "low"}}, "text.verbosity is not supported", "text.verbosity"),
        ("w5", {"text": {"format": {"type": "json_schema"}}}, "text.format.schema is missing", "text.format.schema"),
        (
            "w5",
            {"text": {"format": {"type": "text", "schema": {}}}},
            "Unknown field",
            "text.format.schema",
        ),
        (
            "w5",
            {"stream_options": {"include_obfuscation": True}},
            "not supported",
            "stream_options.include_obfuscation",
        ),
        ("w5", {"tool_choice": "required"}, "tool_choice needs tools", "tool_choice"),
        ("w5", {"tools": [TOOL], "include": LOGPROBS}, "cannot be combined with tools", "include"),
        (
            [{"role": "user", "content": "w5"}, RESULT],
            {"instructions": "w9"},
            "input: no",
            "input",
        ),
        ("w5", {"include": ["file_search_call.results"]}, "include[0]: unsupported value", "include[0]"),
        ("w5", {"top_logprobs": 2}, "top_logprobs needs include", "top_logprobs"),
        ("w5", {"stop": "x"}, "Unknown field", "stop"),
        ("w5", {"max_output_tokens": 101}, "max_output_tokens must be 1 to 100", "max_output_tokens"),
        ("", {"template": "{{ messages[0].content }}"}, "prompt is empty", "input"),
        ([], {}, "input: expected", "input"),
        (
            [{"role": "user", "content": [{"type": "input_image"}]}],
            {},
            "unsupported value",
            "input[0].content[0].type",
        ),
        ([{"type": "reasoning", "summary": []}], {}, "value 'reasoning'", "input[0].type"),
        ([{"type": "function_call_output", "output": "w5"}], {}, "is missing", "input[0].call_id"),
        ([{"role": "wizard", "content": "w5"}], {}, "unsupported value 'wizard'", "input[0].role"),
        ("w5", {"template": None}, "no chat template", None),
    ],
)
def test_faults_are_named(given: Any, fields: dict[str, Any], message: str, param: str | None, tmp_path: Path) -> None:
    error = refused(tmp_path, given, **fields)
    assert message in error.message and error.param == param


def test_fields_without_effect_are_accepted(tmp_path: Path) -> None:
    neutral = {"store": False, "truncation": "disabled", "tools": [], "text": {"format": {"type": "text"}}}
    assert read(tmp_path, "w5", **neutral, previous_response_id=None, user="me", metadata={"a": "b"}).response
