"""The JSON and the events of /v1/responses, in the types that OpenAI's client has for them."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from lucid_deploy.serving.errors import ApiError
from lucid_deploy.serving.jobs import Job, TextPiece, TokenLogprob, TokenText
from lucid_deploy.serving.requests import PreparedRequest
from lucid_deploy.serving.responses_api_answer import ResponseAnswer

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
REPEATED = {
    "text": {"format": {"type": "text"}},
    "instructions": None,
    "max_output_tokens": 5,
    "metadata": {},
    "temperature": 0.0,
    "top_p": 1.0,
}


def answer(top_logprobs: int | None = None) -> ResponseAnswer:
    job = Job(((1, 2, 3),), top_logprobs=top_logprobs)
    request = PreparedRequest(job, stream=False, include_usage=False, chat=True, response=REPEATED)
    return ResponseAnswer(request, "m", "f")


def piece(text: str, logprobs: bool = False) -> TextPiece:
    token = TokenText(text, text.encode(), -0.5)
    return TextPiece(0, text, 1, (TokenLogprob(token, (token,), 0),) if logprobs else ())


@pytest.mark.parametrize(("reason", "status"), [("stop", "completed"), ("length", "incomplete")])
def test_a_whole_answer(reason: str, status: str) -> None:
    made = answer(1)
    made.add(piece("hel", logprobs=True))
    made.add(piece("lo", logprobs=True))
    made.end(0, reason)
    whole = made.whole()
    found = Response.model_validate(whole)
    assert (found.status, found.output_text) == (status, "hello")
    assert whole["status"] == status and whole["store"] is False and whole["max_output_tokens"] == 5
    assert (found.incomplete_details is None) == (status == "completed")
    assert whole["usage"]["input_tokens"] == 3 and whole["usage"]["output_tokens"] == 2
    assert [item["token"] for item in whole["output"][0]["content"][0]["logprobs"]] == ["hel", "lo"]


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_the_events_of_a_stream(reason: str) -> None:
    made = answer()
    events = made.opening()
    for part in ("a", "", "é"):
        event = made.chunk(piece(part))
        assert (event is None) == (not part)
        events += [event] if event is not None else []
    events += made.closing(0, reason)
    assert made.ending() == [] and made.end_of_stream == b""
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
        assert EVENTS.validate_python(event).type == event["type"]
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "aé"
    assert events[0]["response"]["output"] == [] and events[0]["response"]["usage"] is None
    assert len({event["item_id"] for event in events if "item_id" in event}) == 1


def test_a_frame_has_the_event_s_name() -> None:
    made = answer()
    assert (
        made.frame({"type": "response.x", "text": "é"})
        == 'event: response.x\ndata: {"type":"response.x","text":"é"}\n\n'.encode()
    )


def test_an_error_within_a_stream_is_one_that_the_client_raises() -> None:
    event = answer().failure(ApiError(500, "broken", "engine_error"))
    assert (event["type"], event["sequence_number"], event["error"]["code"]) == ("error", 0, "engine_error")
