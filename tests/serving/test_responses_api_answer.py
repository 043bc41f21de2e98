"""The JSON and the events of /v1/responses, in the types that OpenAI's client has for them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from lucid_deploy.batching import Request
from lucid_deploy.generation.text_stream import TextPiece, TokenLogprob, TokenText
from lucid_deploy.serving.errors import ApiError
from lucid_deploy.serving.jobs import Job
from lucid_deploy.serving.responses_api import ResponseAnswer
from lucid_deploy.serving.tool_formats import ToolFormat, tool_format_of
from tests.serving.tool_server import HERMES

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
REPEATED = {
    "text": {"format": {"type": "text"}},
    "instructions": None,
    "max_output_tokens": 5,
    "metadata": {},
    "temperature": 0.0,
    "top_p": 1.0,
}


def answer(top_logprobs: int | None = None, tools: ToolFormat | None = None) -> ResponseAnswer:
    repeated = {name: msgspec.json.encode(value) for name, value in REPEATED.items()}
    job = Job(((1, 2, 3),), Request([], 9, top_logprobs=top_logprobs), chat=True, response=repeated, tools=tools)
    return ResponseAnswer(job, "m")


def piece(text: str, logprobs: bool = False) -> TextPiece:
    token = TokenText(text, text.encode(), -0.5)
    return TextPiece(0, text, 1, (TokenLogprob(token, (token,), 0),) if logprobs else ())


@pytest.mark.parametrize(("reason", "status"), [("stop", "completed"), ("length", "incomplete")])
def test_a_whole_answer_is_valid_for_openai_s_client(reason: str, status: str) -> None:
    made = answer(1)
    made.take(piece("hel", logprobs=True))
    made.take(piece("lo", logprobs=True))
    made.closing(0, reason)
    whole = msgspec.json.decode(msgspec.json.encode(made.whole()))
    found = Response.model_validate(whole)
    assert (found.status, found.output_text) == (status, "hello")
    assert whole["status"] == status and whole["store"] is False and whole["max_output_tokens"] == 5
    assert (found.incomplete_details is None) == (status == "completed")
    assert whole["usage"]["input_tokens"] == 3 and whole["usage"]["output_tokens"] == 2
    assert [item["token"] for item in whole["output"][0]["content"][0]["logprobs"]] == ["hel", "lo"]


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_the_events_of_a_stream_are_valid_and_in_order(reason: str) -> None:
    made = answer()
    events = made.opening()
    for part in ("a", "", "é"):
        new = made.take(piece(part))
        assert [event["delta"] for event in new if event["type"].endswith("text.delta")] == [part] * bool(part)
        events += new
    events += made.closing(0, reason)
    assert made.ending() == b""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed" if reason == "stop" else "incomplete",
    ]
    for event in events:
        assert EVENTS.validate_json(msgspec.json.encode(event)).type == event["type"]
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "aé"
    assert events[0]["response"]["output"] == [] and events[0]["response"]["usage"]["total_tokens"] == 3
    assert len({event["item_id"] for event in events if "item_id" in event}) == 1


CALL = '<tool_call>\n{"name": "%s", "arguments": {"a": [1]}}\n</tool_call>'
TWO_CALLS = f"Wait. {CALL % 'f'}\n{CALL % 'g'}"


def test_calls_are_items_after_the_text() -> None:
    made = answer(tools=tool_format_of(HERMES))
    for place in range(0, len(TWO_CALLS), 3):
        made.take(piece(TWO_CALLS[place : place + 3]))
    made.closing(0, "stop")
    found = Response.model_validate_json(msgspec.json.encode(made.whole()))
    assert [item.type for item in found.output] == ["message", "function_call", "function_call"]
    assert found.output_text == "Wait. "
    calls = [item for item in found.output if item.type == "function_call"]
    assert [(call.name, call.arguments, call.status) for call in calls] == [
        ("f", '{"a": [1]}', "completed"),
        ("g", '{"a": [1]}', "completed"),
    ]
    assert calls[0].call_id != calls[1].call_id


@pytest.mark.parametrize("text", ["", "Wait.", CALL % "f", TWO_CALLS, (CALL % "f")[:-30]])
def test_the_events_of_items_fit_together(text: str) -> None:
    made = answer(tools=tool_format_of(HERMES))
    events = made.opening()
    for sign in text:
        events += made.take(piece(sign))
    cut = text.startswith("<") and not text.endswith(">")
    events += made.closing(0, "length" if cut else "stop")
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    items: list[dict[str, Any]] = []
    for event in events:
        assert EVENTS.validate_json(msgspec.json.encode(event)).type == event["type"]
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert event["output_index"] == len(items)
            items.append({**event["item"], "pieces": ""})
        elif "output_index" in event:
            assert event["output_index"] == len(items) - 1 and event.get("item_id", items[-1]["id"]) == items[-1]["id"]
        if kind.endswith(".delta"):
            items[-1]["pieces"] += event["delta"]
        if kind in ("output_text.done", "function_call_arguments.done"):
            assert items[-1]["pieces"] == event.get("text", event.get("arguments"))
    whole = events[-1]["response"]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert whole["output"] == done and [item["id"] for item in done] == [item["id"] for item in items]
    assert (done[-1]["status"], whole["status"]) == (("incomplete",) * 2 if cut else ("completed",) * 2)


def test_an_error_within_a_stream_is_one_that_the_client_raises() -> None:
    event = answer().failure(ApiError(500, "broken", "engine_error"))
    assert (event["type"], event["sequence_number"], event["error"]["code"]) == ("error", 0, "engine_error")
