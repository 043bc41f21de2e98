"""OpenAI's Responses API, the part that needs no memory of earlier answers: read as a chat, answered by events."""

from __future__ import annotations

import re
import secrets
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import msgspec

from lucid_deploy.generation.text_stream import TextPiece
from lucid_deploy.json_fields import FieldError
from lucid_deploy.serving.answers import Answer, Events, logprob_json
from lucid_deploy.serving.errors import ApiError
from lucid_deploy.serving.fields import (
    LOGPROBS,
    ChatRequest,
    CommonFields,
    InputCall,
    InputMessage,
    InputPart,
    InputResult,
    Message,
    PlainText,
    ResponseRequest,
    SchemaFormat,
    TextSchema,
    drop_without_effect,
)
from lucid_deploy.serving.tool_bodies import CalledFunction, ResponseToolChoice, ToolCall
from lucid_deploy.serving.tool_parser import Delta, ToolCallParser

if TYPE_CHECKING:
    from lucid_deploy.serving.requests import PreparedRequest

# Fields of OpenAI's answers for what this server does not have or the request did not ask for.
NEUTRAL: dict[str, Any] = {
    "error": None,
    "background": False,
    "parallel_tool_calls": False,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "store": False,
    "tool_choice": "none",
    "tools": [],
    "truncation": "disabled",
}
# Fields of a chat and their names in this API; the first match counts.
_NAMES_HERE = (
    (r"messages(\[\d+\][\w.\[\]]*)?", "input"),
    (r"max_completion_tokens", "max_output_tokens"),
    (r"response_format(\.json_schema)?", "text.format"),
    (r"(tools\[\d+\])\.function", r"\1"),
)


def prepare(raw: dict[str, Any]) -> None:
    """Drop fields without effect, and add the type of items that have none: they are messages."""
    drop_without_effect(raw)
    given = raw.get("input")
    for item in given if isinstance(given, list) else ():
        if isinstance(item, dict):
            item.setdefault("type", "message")


def renamed(error: FieldError) -> FieldError:
    """Return an error of the chat with the names that its fields have in a request for a response."""
    field, message = error.param or "", str(error)
    name = next((re.sub(pattern, here, field) for pattern, here in _NAMES_HERE if re.match(pattern, field)), field)
    if field and message.removeprefix("The field ").startswith(field):
        message = message.replace(field, name, 1)
    return FieldError(message, name or None, error.code)


def as_chat(body: ResponseRequest) -> ChatRequest:
    """Return the chat that a request asks for."""
    logprobs, choice, form = bool(body.include), body.tool_choice, None if body.text is None else body.text.format
    if body.top_logprobs is not None and not logprobs:
        raise FieldError(f'top_logprobs needs include: ["{LOGPROBS}"].', "top_logprobs")
    if logprobs and body.tools and choice != "none":
        message = "include cannot be combined with tools: log-probabilities are of the text, and calls are not text."
        raise FieldError(message, "include")
    common = {name: getattr(body, name) for name in CommonFields.__struct_fields__}
    return ChatRequest(
        **common,
        messages=messages_of(body.instructions, body.input),
        max_completion_tokens=body.max_output_tokens,
        logprobs=logprobs or None,
        top_logprobs=body.top_logprobs,
        response_format=SchemaFormat(json_schema=form) if isinstance(form, TextSchema) else form,
        tools=None if body.tools is None else [tool.as_chat() for tool in body.tools],
        tool_choice=choice.as_chat() if isinstance(choice, ResponseToolChoice) else choice,
        parallel_tool_calls=body.parallel_tool_calls,
    )


def repeated(body: ResponseRequest) -> dict[str, Any]:
    """Return what an answer repeats of its request."""
    form = None if body.text is None else body.text.format
    shown = msgspec.to_builtins(form or PlainText())
    if shown["type"] == "json_schema":
        shown["strict"] = True
    out: dict[str, Any] = {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "top_logprobs": body.top_logprobs or 0,
        "text": {"format": shown},
    }
    if body.tools:
        out["tools"] = [{**msgspec.to_builtins(tool), "strict": True} for tool in body.tools]  # always enforced
        out["tool_choice"] = "auto" if body.tool_choice is None else msgspec.to_builtins(body.tool_choice)
        out["parallel_tool_calls"] = body.parallel_tool_calls is not False
    return out


def messages_of(instructions: str | None, given: str | list[InputMessage | InputCall | InputResult]) -> list[Message]:
    """Return the input as messages of a chat; an assistant's calls in a row are one message."""
    out = [] if instructions is None else [Message(role="system", content=instructions)]
    if isinstance(given, str):
        return [*out, Message(role="user", content=given)]
    for item in given:
        if isinstance(item, InputMessage):
            out.append(Message(role=item.role, content=_text(item.content)))
        elif isinstance(item, InputResult):
            out.append(Message(role="tool", content=_text(item.output), tool_call_id=item.call_id))
        else:
            before = out.pop() if out and out[-1].role == "assistant" else Message(role="assistant")
            call = ToolCall(id=item.call_id, function=CalledFunction(name=item.name, arguments=item.arguments))
            calls = [*(before.tool_calls or []), call]
            out.append(Message(role="assistant", content=before.content, tool_calls=calls))
    return out


def _text(given: str | list[InputPart]) -> str:
    return given if isinstance(given, str) else "".join(part.text for part in given)


class ResponseAnswer(Answer):
    """Builds an answer of ``/v1/responses``."""

    end_of_stream = b""  # the last event says that it is the last

    def __init__(self, request: PreparedRequest, model: str, fingerprint: str) -> None:
        super().__init__(request, model, fingerprint)
        created = self._common.pop("created")
        self.id = "resp_" + secrets.token_hex(16)
        self._common |= {"object": "response", "created_at": created, **NEUTRAL, **(request.response or {})}
        self._common["id"] = self.id
        self._parser = None if request.tools is None else ToolCallParser(request.tools)
        self._output: list[dict[str, Any]] = []  # items; all but the last are complete
        self._texts: list[str] = []  # of the last item
        self._status = "in_progress"
        self._number = -1

    def whole(self) -> dict[str, Any]:
        ended = self._status != "in_progress"
        return {
            **self._common,
            "status": self._status,
            "incomplete_details": {"reason": "max_output_tokens"} if self._status == "incomplete" else None,
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
        return begun if self._parser is not None else begun + self._begin_text()

    def chunks(self, piece: TextPiece) -> Events:
        self.new_tokens += piece.tokens
        if self._parser is None:
            return self._add_text(piece.text, [logprob_json(item) for item in piece.logprobs])
        return self._take(self._parser.push(piece.text))

    def closing(self, row: int, reason: str) -> Events:
        events = [] if self._parser is None else self._take(self._parser.finish())
        if not self._output:
            events += self._begin_text()
        self._status = "incomplete" if reason == "length" else "completed"
        return [*events, *self._end_item(self._status), self._event(self._status, response=self.whole())]

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
        item, place = self._output[-1], {"output_index": len(self._output) - 1}
        return self._event(kind, **place, item_id=item["id"], **more)

    def _take(self, delta: Delta) -> Events:
        """Return what is new of text and calls as events; no text comes after a call."""
        events = self._add_text(delta.get("content", ""), [])
        for part in delta.get("tool_calls", ()):
            called = part["function"]
            if "id" in part:
                item = {"type": "function_call", "status": "in_progress", "call_id": part["id"], **called}
                events += self._begin({"id": "fc_" + secrets.token_hex(16), **item})
            else:
                self._texts.append(called["arguments"])
                events.append(self._item_event("function_call_arguments.delta", delta=called["arguments"]))
        return events

    def _add_text(self, text: str, logprobs: Events) -> Events:
        if not text and not logprobs:
            return []
        begun = [] if self._output else self._begin_text()
        self._texts.append(text)
        self._output[-1]["content"][0]["logprobs"] += logprobs
        return [*begun, self._item_event("output_text.delta", content_index=0, delta=text, logprobs=logprobs)]

    def _begin_text(self) -> Events:
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item = {"id": "msg_" + secrets.token_hex(16), "type": "message", "role": "assistant", "status": "in_progress"}
        begun = self._begin({**item, "content": []})
        self._output[-1]["content"].append(part)
        return [*begun, self._item_event("content_part.added", content_index=0, part=part)]

    def _begin(self, item: dict[str, Any]) -> Events:
        """Begin an item, which ends the one before."""
        ended = self._end_item("completed") if self._output else []
        self._output.append(item)
        self._texts = []
        return [*ended, self._event("output_item.added", output_index=len(self._output) - 1, item=item)]

    def _end_item(self, status: str) -> Events:
        item, text = self._output[-1], "".join(self._texts)
        item["status"] = status
        if item["type"] == "function_call":
            item["arguments"] = text
            done = [self._item_event("function_call_arguments.done", name=item["name"], arguments=text)]
        else:
            (part,) = item["content"]
            part["text"] = text
            more = {"text": text, "logprobs": part["logprobs"]}
            done = [self._item_event("output_text.done", content_index=0, **more)]
            done.append(self._item_event("content_part.done", content_index=0, part=part))
        return [*done, self._event("output_item.done", output_index=len(self._output) - 1, item=item)]
