"""OpenAI's Responses API, without stored answers: requests are read as chats, answers are translated back."""

from __future__ import annotations

import re
import secrets
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import msgspec

from lucid_deploy.json_fields import FieldError
from lucid_deploy.serving import fields
from lucid_deploy.serving.answers import Answer, Events
from lucid_deploy.serving.errors import ApiError
from lucid_deploy.serving.tool_parser import Delta

if TYPE_CHECKING:
    from lucid_deploy.serving.jobs import Job

# Values in the answer of fields that the request leaves out, or for which this server supports no other value.
DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(("error", "instructions", "max_output_tokens", "previous_response_id")),
    "metadata": {},
    "parallel_tool_calls": True,
    "store": False,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
}
# Patterns for the fields of chats that errors name, and the names of these fields in the Responses API.
_NAMES_HERE = {
    r"^messages\b.*": "input",
    r"^max_completion_tokens": "max_output_tokens",
    r"^response_format(\.json_schema)?": "text.format",
    r"^(tools\[\d+\])\.function": r"\1",
}


def prepare(raw: dict[str, Any]) -> None:
    """Drop fields without effect, and set the type of input items that have none to ``message``."""
    fields.drop_without_effect(raw)
    given = raw.get("input")
    for item in given if isinstance(given, list) else ():
        if isinstance(item, dict):
            item.setdefault("type", "message")


def with_names_of_responses(error: FieldError) -> FieldError:
    """Return an error about a chat's field with the name that the field has in ``/v1/responses``."""
    name = error.param or ""
    for pattern, here in _NAMES_HERE.items():
        name = re.sub(pattern, here, name)
    message = str(error).replace(error.param, name, 1) if error.param else str(error)
    return FieldError(message, name or None, error.code)


def as_chat(body: fields.ResponseRequest) -> fields.ChatRequest:
    """Convert a request to a chat; raise a FieldError if it cannot have the log-probabilities that it requests."""
    logprobs, choice, form = bool(body.include), body.tool_choice, None if body.text is None else body.text.format
    if body.top_logprobs is not None and not logprobs:
        raise FieldError(f'top_logprobs needs include: ["{fields.LOGPROBS}"].', "top_logprobs")
    if logprobs and body.tools and choice != "none":
        message = "include cannot be combined with tools: there are log-probabilities of text, but not of calls."
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
        tool_choice=choice.as_chat() if isinstance(choice, fields.ResponseToolChoice) else choice,
        parallel_tool_calls=body.parallel_tool_calls,
    )


def repeated_fields(body: fields.ResponseRequest) -> dict[str, bytes]:
    """Return the request's fields that the answer repeats, as JSON: encoding them here spares the event loop."""
    given = {name: getattr(body, name, None) for name in DEFAULTS}
    return {name: msgspec.json.encode(value) for name, value in given.items() if value is not None}


def _messages(body: fields.ResponseRequest) -> list[fields.Message]:
    """Convert the input to messages of a chat; calls join an assistant's message right before them, or a new one."""
    out = [] if body.instructions is None else [fields.Message(role="system", content=body.instructions)]
    items = body.input
    for item in [fields.InputMessage(role="user", content=items)] if isinstance(items, str) else items:
        if isinstance(item, fields.InputMessage):
            out.append(fields.Message(role=item.role, content=item.content))
        elif isinstance(item, fields.InputResult):
            out.append(fields.Message(role="tool", content=item.output, tool_call_id=item.call_id))
        else:
            before = out.pop() if out and out[-1].role == "assistant" else fields.Message(role="assistant")
            function = fields.CalledFunction(name=item.name, arguments=item.arguments)
            calls = [*(before.tool_calls or []), fields.ToolCall(id=item.call_id, function=function)]
            out.append(fields.Message(role="assistant", content=before.content, tool_calls=calls))
    return out


class ResponseAnswer(Answer):
    """Builds an answer of ``/v1/responses``, or its events, from the text and the calls of a chat."""

    end_of_stream = b""  # the type of the last event marks the end

    def __init__(self, job: Job, model: str) -> None:
        super().__init__(job, model)
        created, self.id = self._common["created"], "resp_" + secrets.token_hex(16)
        repeated = {name: msgspec.Raw(text) for name, text in (job.response or {}).items()}
        self._response = {**DEFAULTS, **repeated, "id": self.id, "object": "response", "model": model}
        self._response |= {"created_at": created, "status": "in_progress"}
        self._output: list[dict[str, Any]] = []  # items; all but the last are complete
        self._number = -1  # sequence number of the last event

    def whole(self) -> dict[str, Any]:
        reason = {"reason": "max_output_tokens"} if self._response["status"] == "incomplete" else None
        return {**self._response, "incomplete_details": reason, "output": self._output, "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        prompt = self.job.prompt_tokens
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": self.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": self.new_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + self.new_tokens,
        }

    def opening(self) -> Events:
        return [self._event(name, response=self.whole()) for name in ("created", "in_progress")]

    def closing(self, row: int, reason: str) -> Events:
        events = super().closing(row, reason)
        if not self._output:
            events += self._begin_text()
        status = self._response["status"] = "incomplete" if reason == "length" else "completed"
        return [*events, *self._end_item(status), self._event(status, response=self.whole())]

    def failure(self, error: ApiError) -> dict[str, Any]:
        return {**self._event(""), "type": "error", **error.body()}

    def _event(self, kind: str, **more: Any) -> dict[str, Any]:
        self._number += 1
        of_item = {"output_index": len(self._output) - 1, "item_id": self._output[-1]["id"]} if self._output else {}
        return {"type": f"response.{kind}", "sequence_number": self._number, **of_item, **deepcopy(more)}

    def _show(self, row: int, delta: Delta, logprobs: Any = None, reason: str | None = None) -> Events:
        """Return the events of new text, then those of new calls: no text comes after a call."""
        events: Events = []
        text, logprobs = delta.get("content", ""), (logprobs or {}).get("content", [])
        if text or logprobs:
            events += [] if self._output else self._begin_text()
            (part,) = self._output[-1]["content"]
            part["text"] += text
            part["logprobs"] += logprobs
            events.append(self._event("output_text.delta", content_index=0, delta=text, logprobs=logprobs))
        for call in delta.get("tool_calls", ()):
            called = call["function"]
            if "id" in call:
                events += self._begin("fc_", type="function_call", call_id=call["id"], **called)
            else:
                self._output[-1]["arguments"] += called["arguments"]
                events.append(self._event("function_call_arguments.delta", delta=called["arguments"]))
        return events

    def _begin_text(self) -> Events:
        begun = self._begin("msg_", type="message", role="assistant", content=[])
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self._output[-1]["content"].append(part)
        return [*begun, self._event("content_part.added", content_index=0, part=part)]

    def _begin(self, prefix: str, **item: Any) -> Events:
        """Begin an item of the output, after ending the previous one."""
        ended = self._end_item("completed") if self._output else []
        self._output.append({"id": prefix + secrets.token_hex(16), "status": "in_progress", **item})
        return [*ended, self._event("output_item.added", item=self._output[-1])]

    def _end_item(self, status: str) -> Events:
        item = self._output[-1]
        item["status"] = status
        if item["type"] == "function_call":
            called = {"name": item["name"], "arguments": item["arguments"]}
            done = [self._event("function_call_arguments.done", **called)]
        else:
            (part,) = item["content"]
            shown = {"text": part["text"], "logprobs": part["logprobs"]}
            done = [self._event("output_text.done", content_index=0, **shown)]
            done.append(self._event("content_part.done", content_index=0, part=part))
        return [*done, self._event("output_item.done", item=item)]
