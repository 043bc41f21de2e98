"""OpenAI's Responses API, the part that needs no memory of earlier answers: read as a chat, answered by events."""

from __future__ import annotations

import re
import secrets
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import msgspec

from lucid_deploy.generation.text_stream import TextPiece
from lucid_deploy.json_fields import FieldError
from lucid_deploy.serving import fields
from lucid_deploy.serving.answers import Answer, Events
from lucid_deploy.serving.errors import ApiError
from lucid_deploy.serving.tool_bodies import CalledFunction, ResponseToolChoice, ToolCall

if TYPE_CHECKING:
    from lucid_deploy.serving.requests import PreparedRequest

# What answers have where the request says nothing, and for what this server does not have.
DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(("error", "instructions", "max_output_tokens", "previous_response_id")),
    "background": False,
    "metadata": {},
    "parallel_tool_calls": True,
    "reasoning": {"effort": None, "summary": None},
    "store": False,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
}
# Fields of a chat as patterns, and their names in this API.
_NAMES_HERE = {
    r"^messages\b.*": "input",
    r"^max_completion_tokens": "max_output_tokens",
    r"^response_format(\.json_schema)?": "text.format",
    r"^(tools\[\d+\])\.function": r"\1",
}


def prepare(raw: dict[str, Any]) -> None:
    """Drop fields without effect, and add the type of items that have none: they are messages."""
    fields.drop_without_effect(raw)
    given = raw.get("input")
    for item in given if isinstance(given, list) else ():
        if isinstance(item, dict):
            item.setdefault("type", "message")


def with_names_of_responses(error: FieldError) -> FieldError:
    """Return an error of the chat with the names that its fields have in a request for a response."""
    name = error.param or ""
    for pattern, here in _NAMES_HERE.items():
        name = re.sub(pattern, here, name)
    message = str(error).replace(error.param, name, 1) if error.param else str(error)
    return FieldError(message, name or None, error.code)


def as_chat(body: fields.ResponseRequest) -> fields.ChatRequest:
    """Return the chat that a request asks for."""
    logprobs, choice, form = bool(body.include), body.tool_choice, None if body.text is None else body.text.format
    if body.top_logprobs is not None and not logprobs:
        raise FieldError(f'top_logprobs needs include: ["{fields.LOGPROBS}"].', "top_logprobs")
    if logprobs and body.tools and choice != "none":
        message = "include cannot be combined with tools: log-probabilities are of the text, and calls are not text."
        raise FieldError(message, "include")
    common = {name: getattr(body, name) for name in fields.CommonFields.__struct_fields__}
    return fields.ChatRequest(
        **common,
        messages=_messages(body),
        max_completion_tokens=body.max_output_tokens,
        logprobs=logprobs or None,
        top_logprobs=body.top_logprobs,
        response_format=fields.SchemaFormat(json_schema=form) if isinstance(form, fields.TextSchema) else form,
        tools=None if body.tools is None else [tool.as_chat() for tool in body.tools],
        tool_choice=choice.as_chat() if isinstance(choice, ResponseToolChoice) else choice,
        parallel_tool_calls=body.parallel_tool_calls,
    )


def repeated_fields(body: fields.ResponseRequest) -> dict[str, bytes]:
    """Return what an answer repeats of its request, as JSON, which costs the event loop nothing to copy."""
    given = msgspec.to_builtins(body)
    found = {name: given[name] for name in DEFAULTS if given.get(name) is not None}
    schemas = [*found.get("tools", ()), found.get("text", {}).get("format") or {}]
    for schema in schemas:
        if "strict" in schema:
            schema["strict"] = True  # always enforced
    return {name: msgspec.json.encode(value) for name, value in found.items()}


def _messages(body: fields.ResponseRequest) -> list[fields.Message]:
    """Return the input as messages of a chat; an assistant's calls in a row are one message."""
    out = [] if body.instructions is None else [fields.Message(role="system", content=body.instructions)]
    items = body.input
    for item in [fields.InputMessage(role="user", content=items)] if isinstance(items, str) else items:
        if isinstance(item, fields.InputMessage):
            out.append(fields.Message(role=item.role, content=_text(item.content)))
        elif isinstance(item, fields.InputResult):
            out.append(fields.Message(role="tool", content=_text(item.output), tool_call_id=item.call_id))
        else:
            before = out.pop() if out and out[-1].role == "assistant" else fields.Message(role="assistant")
            call = ToolCall(id=item.call_id, function=CalledFunction(name=item.name, arguments=item.arguments))
            calls = [*(before.tool_calls or []), call]
            out.append(fields.Message(role="assistant", content=before.content, tool_calls=calls))
    return out


def _text(given: str | list[fields.TextPart]) -> str:
    return given if isinstance(given, str) else "".join(part.text for part in given)


class ResponseAnswer(Answer):
    """Translates the chunks of a chat to the events and the answer of ``/v1/responses``."""

    end_of_stream = b""  # the last event says that it is the last

    def __init__(self, request: PreparedRequest, model: str) -> None:
        super().__init__(request, model)
        created, self.id = self._common["created"], "resp_" + secrets.token_hex(16)
        repeated = {name: msgspec.Raw(text) for name, text in (request.response or {}).items()}
        self._response = {**DEFAULTS, **repeated, "id": self.id, "object": "response", "model": model}
        self._response |= {"created_at": created, "status": "in_progress"}
        self._output: list[dict[str, Any]] = []  # items; all but the last are complete
        self._number = -1

    def whole(self) -> dict[str, Any]:
        status = self._response["status"]
        ended = status != "in_progress"
        return {
            **self._response,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": self._output if ended else [],
            "usage": self.usage() if ended else None,
        }

    def usage(self) -> dict[str, Any]:
        prompt = self.request.prompt_tokens
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": self.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": self.new_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + self.new_tokens,
        }

    def opening(self) -> Events:
        begun = [self._event(name, response=self.whole()) for name in ("created", "in_progress")]
        return begun if self.request.tools is not None else begun + self._begin_text()

    def chunks(self, piece: TextPiece) -> Events:
        return [event for chunk in super().chunks(piece) for event in self._translate(chunk)]

    def closing(self, row: int, reason: str) -> Events:
        events = [event for chunk in super().closing(row, reason) for event in self._translate(chunk)]
        if not self._output:
            events += self._begin_text()
        status = self._response["status"] = "incomplete" if reason == "length" else "completed"
        return [*events, *self._end_item(status), self._event(status, response=self.whole())]

    def ending(self) -> Events:
        return []  # the last event has the counts

    def failure(self, error: ApiError) -> dict[str, Any]:
        return {**self._event(""), "type": "error", **error.body()}

    def frame(self, event: dict[str, Any]) -> bytes:
        return b"event: %s\ndata: %s\n\n" % (event["type"].encode(), msgspec.json.encode(event))

    def _event(self, kind: str, **more: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": f"response.{kind}", "sequence_number": self._number, **deepcopy(more)}

    def _item_event(self, kind: str, **more: Any) -> dict[str, Any]:
        return self._event(kind, output_index=len(self._output) - 1, item_id=self._output[-1]["id"], **more)

    def _translate(self, chunk: dict[str, Any]) -> Events:
        """Return a chunk of the chat as events: text, then calls, as no text comes after a call."""
        events: Events = []
        (choice,) = chunk["choices"]
        text, logprobs = choice["delta"].get("content", ""), (choice["logprobs"] or {}).get("content", [])
        if text or logprobs:
            events += [] if self._output else self._begin_text()
            (part,) = self._output[-1]["content"]
            part["text"] += text
            part["logprobs"] += logprobs
            events.append(self._item_event("output_text.delta", content_index=0, delta=text, logprobs=logprobs))
        for call in choice["delta"].get("tool_calls", ()):
            called = call["function"]
            if "id" in call:
                events += self._begin("fc_", type="function_call", call_id=call["id"], **called)
            else:
                self._output[-1]["arguments"] += called["arguments"]
                events.append(self._item_event("function_call_arguments.delta", delta=called["arguments"]))
        return events

    def _begin_text(self) -> Events:
        begun = self._begin("msg_", type="message", role="assistant", content=[])
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self._output[-1]["content"].append(part)
        return [*begun, self._item_event("content_part.added", content_index=0, part=part)]

    def _begin(self, prefix: str, **item: Any) -> Events:
        """Begin an item, which ends the one before."""
        ended = self._end_item("completed") if self._output else []
        self._output.append({"id": prefix + secrets.token_hex(16), "status": "in_progress", **item})
        return [*ended, self._event("output_item.added", output_index=len(self._output) - 1, item=self._output[-1])]

    def _end_item(self, status: str) -> Events:
        item = self._output[-1]
        item["status"] = status
        if item["type"] == "function_call":
            called = {"name": item["name"], "arguments": item["arguments"]}
            done = [self._item_event("function_call_arguments.done", **called)]
        else:
            (part,) = item["content"]
            shown = {"text": part["text"], "logprobs": part["logprobs"]}
            done = [self._item_event("output_text.done", content_index=0, **shown)]
            done.append(self._item_event("content_part.done", content_index=0, part=part))
        return [*done, self._event("output_item.done", output_index=len(self._output) - 1, item=item)]
