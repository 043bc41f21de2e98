"""Items of an answer of /v1/responses, in the types that OpenAI's client has for them."""

from __future__ import annotations

from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage

from lucid_deploy.serving.responses_api_output import CallItem, MessageItem


def test_a_message() -> None:
    item = MessageItem()
    assert [kind for kind, _ in item.beginning()] == ["output_item.added", "content_part.added"]
    item.more("he", ())
    ((kind, event),) = item.more("llo", ())
    assert (kind, event["delta"], event["item_id"]) == ("output_text.delta", "llo", item.id)
    found = ResponseOutputMessage.model_validate(item.json("completed"))
    assert (found.id, found.content[0].to_dict()["text"], found.status) == (item.id, "hello", "completed")
    assert [kind for kind, _ in item.end("incomplete")][-1] == "output_item.done"


def test_a_call() -> None:
    item = CallItem("call_1", "time")
    assert item.beginning()[0][1]["item"]["arguments"] == ""
    item.more('{"a"')
    ((kind, event),) = item.more(": 1}")
    assert (kind, event["delta"]) == ("function_call_arguments.delta", ": 1}")
    found = ResponseFunctionToolCall.model_validate(item.json("completed"))
    assert (found.call_id, found.name, found.arguments) == ("call_1", "time", '{"a": 1}')
    done, whole = item.end("completed")
    assert (done[0], done[1]["arguments"]) == ("function_call_arguments.done", '{"a": 1}')
    assert whole == ("output_item.done", {"item": item.json("completed")})
