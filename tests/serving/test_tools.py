"""Tools through the server and OpenAI's client, whole and streamed, from a model of random weights."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import openai
import pytest

from tests.serving.serving_tools import MODEL
from tests.serving.tool_examples import TIME, WEATHER

USER: Any = [{"role": "user", "content": "weather?"}]
TOOLS: Any = [WEATHER, TIME]
SAMPLED: dict[str, Any] = {"model": MODEL, "temperature": 1.0, "seed": 3, "max_tokens": 250, "tools": TOOLS}
SCHEMAS = {"get_weather": WEATHER["function"]["parameters"], "time-now": {"type": "object", "maxProperties": 0}}


def test_calls_follow_their_schemas_and_streams_give_the_same(client: openai.OpenAI) -> None:
    fields: Any = {"messages": USER, "tool_choice": "required", "parallel_tool_calls": False, "n": 3, **SAMPLED}
    answers = client.chat.completions.create(**fields)
    whole = []
    for choice in answers.choices:
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        (call,) = choice.message.tool_calls or []
        assert call.type == "function" and call.id.startswith("call_")
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
        whole.append((call.function.name, call.function.arguments))
    streamed, reasons = [["", ""] for _ in whole], [""] * 3
    for chunk in client.chat.completions.create(stream=True, **fields):
        for part in chunk.choices:
            reasons[part.index] = part.finish_reason or reasons[part.index]
            for delta in part.delta.tool_calls or []:
                assert delta.index == 0 and delta.function is not None
                assert (delta.id is not None) == (delta.function.name is not None) == (delta.type == "function")
                streamed[part.index][0] += delta.function.name or ""
                streamed[part.index][1] += delta.function.arguments or ""
    assert list(map(tuple, streamed)) == whole and reasons == ["tool_calls"] * 3


def responses_fields(choice: Any = "required") -> dict[str, Any]:
    """Return the fields for /v1/responses that mean the same as :data:`SAMPLED` means for a chat."""
    tools = [{"type": "function", "parameters": None, **tool["function"]} for tool in TOOLS]
    more = {"tools": tools, "tool_choice": choice, "parallel_tool_calls": False, "extra_body": {"seed": 3}}
    return {"model": MODEL, "temperature": 1.0, "max_output_tokens": 250, "input": USER, **more}


def test_responses_make_the_calls_of_a_chat(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(messages=USER, tool_choice="required", parallel_tool_calls=False, **SAMPLED)
    (wanted,) = chat.choices[0].message.tool_calls or []
    whole = client.responses.create(**responses_fields())
    with client.responses.stream(**responses_fields()) as stream:
        deltas = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
        streamed = stream.get_final_response()
    for answer in (whole, streamed):
        (call,) = answer.output
        assert call.type == "function_call" and answer.status == "completed"
        assert (call.name, call.arguments) == (wanted.function.name, wanted.function.arguments)
    assert "".join(deltas) == wanted.function.arguments and len(deltas) > 2


@pytest.mark.parametrize("stop", ["city", "unit", "</tool_call>"])
def test_a_call_cut_by_a_stop_string_does_not_finish_as_tool_calls(stop: str, client: openai.OpenAI) -> None:
    choice: Any = {"type": "function", "function": {"name": "get_weather"}}
    fields: Any = {**SAMPLED, "messages": USER, "stop": stop, "tool_choice": choice}
    (whole,) = client.chat.completions.create(**fields).choices
    last = [part for chunk in client.chat.completions.create(stream=True, **fields) for part in chunk.choices][-1]
    (call,) = whole.message.tool_calls or []
    assert call.type == "function"
    if stop == "</tool_call>":  # comes after the arguments
        assert json.loads(call.function.arguments)["unit"] in ("C", "F")
    else:
        with pytest.raises(json.JSONDecodeError):
            json.loads(call.function.arguments)
    assert whole.finish_reason == last.finish_reason == ("tool_calls" if stop == "</tool_call>" else "stop")
