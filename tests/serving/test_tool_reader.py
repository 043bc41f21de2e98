"""The constraint that a request's tools make, and messages with calls and results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.artifact.chat import ChatTemplates, TemplateText
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.json_fields import FieldError, decode
from lucid_deploy.serving.fields import ChatRequest
from lucid_deploy.serving.requests import messages_of
from lucid_deploy.serving.tool_reader import tool_use_of
from tests.generation.guided_walks import tokenizer_of
from tests.serving.tool_examples import TEMPLATES, TIME, WEATHER

CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
ASKED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "warm"}
NAMED = {"type": "function", "function": {"name": "time-now"}}
USER = [{"role": "user", "content": "x"}]


def read(**fields: Any) -> ChatRequest:
    return decode(json.dumps({"model": "m", "messages": USER, **fields}).encode(), ChatRequest, "body")


@pytest.fixture
def tokenizer(tmp_path: Path) -> TextTokenizer:
    return tokenizer_of("byte-level bpe", tmp_path)


def templates(**texts: str) -> ChatTemplates:
    return ChatTemplates({name: TemplateText(text, "here") for name, text in texts.items()}, {})


def template(name: str = "hermes") -> ChatTemplates:
    return templates(default=TEMPLATES[name])


@pytest.mark.parametrize("name", TEMPLATES)
def test_tools_make_a_constraint(name: str, tokenizer: TextTokenizer) -> None:
    use = tool_use_of(read(tools=[WEATHER, TIME]), template(name), tokenizer)
    assert use is not None and use.form.name == name and use.trigger_token is None
    assert use.shown == [WEATHER, TIME]
    one = tool_use_of(read(tools=[WEATHER, TIME], tool_choice=NAMED), template(name), tokenizer)
    assert one is not None and "get_weather" not in one.constraint.grammar and "TEXT" not in one.constraint.grammar
    assert '"additionalProperties": false' in one.constraint.grammar  # TIME has no parameters
    alone = tool_use_of(
        read(tools=[TIME], tool_choice="required", parallel_tool_calls=False), template(name), tokenizer
    )
    assert alone is not None and ")*" not in alone.constraint.grammar


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tools": [TIME], "tool_choice": {**NAMED, "function": {"name": "x"}}}, "tool_choice", "none of the tools"),
        ({"tools": [TIME, TIME]}, "tools[1].function.name", "another tool is called time-now"),
        (
            {"tools": [{**TIME, "function": {"name": "a", "parameters": {}}}]},
            "tools[0].function.parameters",
            '"object"',
        ),
        (
            {"tools": [{**TIME, "function": {"name": "a", "parameters": {"type": "object", "not": {}}}}]},
            "tools[0].function.parameters",
            "keyword not cannot be enforced",
        ),
        ({"tools": [TIME], "guided_regex": "a"}, "guided_regex", "cannot be combined with tools"),
        ({"tools": [TIME], "response_format": {"type": "json_object"}}, "response_format", "cannot be combined"),
    ],
)
def test_wrong_tools_are_named(fields: dict[str, Any], param: str, said: str, tokenizer: TextTokenizer) -> None:
    with pytest.raises(FieldError) as caught:
        tool_use_of(read(**fields), template(), tokenizer)
    assert caught.value.param == param and said in str(caught.value), caught.value


def test_the_format_is_that_of_the_template_for_tools(tokenizer: TextTokenizer) -> None:
    plain, other = "{{ messages[0].content }}", "{{ tools }}"
    for texts in ({"default": plain, "tool_use": TEMPLATES["hermes"]}, {"default": TEMPLATES["hermes"], "rag": other}):
        use = tool_use_of(read(tools=[TIME]), templates(**texts), tokenizer)
        assert use is not None and use.form.name == "hermes"
    with pytest.raises(FieldError, match="template does not support tools"):
        tool_use_of(read(tools=[TIME]), templates(default=TEMPLATES["hermes"], tool_use=plain), tokenizer)
    with pytest.raises(FieldError, match=r"called tool_use or default; the model has extra, rag\.") as caught:
        tool_use_of(read(tools=[TIME]), templates(rag=plain, extra=other), tokenizer)
    assert caught.value.param == "tools"


def test_calls_and_results_reach_the_template() -> None:
    messages = messages_of(read(messages=[{"role": "user", "content": "?"}, ASKED, RESULT]).messages)
    assert messages[1]["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": {"city": "Rome"}}
    assert messages[2] == {"role": "tool", "content": "warm", "tool_call_id": "c1"}
    for name in TEMPLATES:
        assert '"Rome"' in template(name).chosen().render(messages)


@pytest.mark.parametrize(
    ("messages", "param", "said"),
    [
        ([RESULT], "messages[0].tool_call_id", "no earlier assistant message"),
        ([ASKED, {**RESULT, "tool_call_id": "c2"}], "messages[1].tool_call_id", "no earlier assistant message"),
        ([ASKED, {"role": "tool", "content": "warm"}], "messages[1].tool_call_id", "is missing"),
        (
            [{"role": "user", "content": "x", "tool_call_id": "c"}],
            "messages[0].tool_call_id",
            "only messages of the role",
        ),
        ([{**ASKED, "role": "user"}], "messages[0].tool_calls", "only the assistant"),
        ([{"role": "assistant"}], "messages[0].content", "is missing"),
        *(
            (
                [{**ASKED, "tool_calls": [{**CALL, "function": {"name": "a", "arguments": text}}]}],
                "messages[0].tool_calls[0].function.arguments",
                "not the text of a JSON object",
            )
            for text in ("[1]", "[" * 100_000)
        ),
    ],
)
def test_wrong_messages_are_named(messages: list[dict[str, Any]], param: str, said: str) -> None:
    with pytest.raises(FieldError) as caught:
        messages_of(read(messages=messages).messages)
    assert caught.value.param == param and said in str(caught.value), caught.value
