"""Items of the input of /v1/responses as a chat, and where errors of the chat are in them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from lucid_deploy.json_fields import FieldError
from lucid_deploy.serving.responses_api_items import Conversation, InputItem, conversation_of

CALL = {
    "type": "function_call",
    "call_id": "c1",
    "name": "time",
    "arguments": "{}",
    "id": "fc_1",
    "status": "completed",
}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "noon"}


def conversation(*items: dict[str, Any], instructions: str | None = None) -> Conversation:
    return conversation_of(instructions, [msgspec.convert(item, InputItem) for item in items])


def test_calls_stand_in_the_assistants_message_before_them() -> None:
    text = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]}
    second = {**CALL, "call_id": "c2"}
    found = conversation({"role": "user", "content": "When?"}, text, CALL, second, RESULT, {**RESULT, "call_id": "c2"})
    assert [message.role for message in found.messages] == ["user", "assistant", "tool", "tool"]
    assert found.messages[1].content == "Let me see."
    assert [call.id for call in found.messages[1].tool_calls or ()] == ["c1", "c2"]
    assert [message.tool_call_id for message in found.messages[2:]] == ["c1", "c2"]


def test_calls_without_a_text_are_a_message_of_their_own() -> None:
    found = conversation({"role": "user", "content": "When?"}, CALL, RESULT, CALL)
    assert [message.role for message in found.messages] == ["user", "assistant", "tool", "assistant"]
    assert found.messages[1].content is None


@pytest.mark.parametrize(
    ("param", "place"),
    [
        ("messages", "input"),
        ("messages[0].content", "instructions"),
        ("messages[1].role", "input[0].role"),
        ("messages[1].content", "input[0].content"),
        ("messages[2].content", "input[1].content"),
        ("messages[2].tool_calls[0].function.arguments", "input[2].arguments"),
        ("messages[2].tool_calls[1].function.arguments", "input[3].arguments"),
        ("messages[3].tool_call_id", "input[4].call_id"),
        ("messages[3].content", "input[4].output"),
        ("messages[4].tool_calls[0].function.arguments", "input[5].arguments"),
    ],
)
def test_fields_of_messages_have_the_names_of_the_request(param: str, place: str) -> None:
    said = [{"role": role, "content": "w"} for role in ("user", "assistant")]
    assert conversation(*said, CALL, CALL, RESULT, CALL, instructions="w").place_of(param) == place


def test_a_text_is_the_input_itself() -> None:
    assert conversation_of("w", "w5").place_of("messages[1].content") == "input"


@pytest.mark.parametrize(
    ("item", "param", "code"),
    [
        ({"role": "user"}, "content", "missing_field"),
        ({"content": "w"}, "role", "missing_field"),
        ({"role": "user", "content": "w", "output": "w"}, "output", "invalid_value"),
        ({**CALL, "role": "assistant"}, "role", "invalid_value"),
        ({**CALL, "arguments": None}, "arguments", "missing_field"),
        ({"type": "function_call_output", "call_id": "c1"}, "output", "missing_field"),
        ({**RESULT, "name": "time"}, "name", "invalid_value"),
    ],
)
def test_items_have_the_fields_of_their_type(item: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(FieldError) as caught:
        conversation({"role": "user", "content": "w"}, item)
    assert (caught.value.param, caught.value.code) == (f"input[1].{param}", code)
