"""Tools in bodies are read strictly."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lucid_deploy.json_fields import FieldError, decode
from lucid_deploy.serving.bodies import ChatRequest
from tests.serving.tool_examples import TIME, WEATHER

USER = [{"role": "user", "content": "x"}]


def read(**fields: Any) -> ChatRequest:
    return decode(json.dumps({"model": "m", "messages": USER, **fields}).encode(), ChatRequest, "body")


def test_tools_are_read() -> None:
    body = read(tools=[WEATHER, TIME], tool_choice={"type": "function", "function": {"name": "time-now"}})
    assert body.tools is not None and [tool.function.name for tool in body.tools] == ["get_weather", "time-now"]
    assert read(tool_choice="required").tool_choice == "required"


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", '"function", the only kind'),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "A-Z a-z 0-9"),
        ({"tools": "all"}, "tools", "a list of at most 128 tools"),
        ({"tools": [TIME] * 129}, "tools", "at most 128"),
        ({"tool_choice": "some"}, "tool_choice", '"none", "auto", "required"'),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function", "missing"),
        ({"parallel_tool_calls": "yes"}, "parallel_tool_calls", "true or false"),
    ],
)
def test_wrong_tools_are_named(fields: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(FieldError) as caught:
        read(**fields)
    assert caught.value.param == param and said in str(caught.value), caught.value
