"""``/v1/responses`` read as a chat: the part of OpenAI's Responses API that needs no memory of earlier answers."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from lucid_deploy.json_fields import FieldError
from lucid_deploy.serving.fields import (
    LOGPROBS,
    ChatRequest,
    InputItem,
    JsonSchema,
    Message,
    ResponseFormat,
    ResponseRequest,
    TextFormat,
    refuse_unsupported,
)
from lucid_deploy.serving.tool_bodies import CalledFunction, ResponseToolChoice, ToolCall

# The fields of each type of item.
_FIELDS = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
}
# Fields of a chat, and what they are called here; of several that fit, the first.
_NAMES_HERE = (
    (r"messages(\[\d+\][\w.\[\]]*)?", "input"),
    (r"max_completion_tokens", "max_output_tokens"),
    (r"response_format(\.json_schema)?", "text.format"),
    (r"(tools\[\d+\])\.function", r"\1"),
)


def renamed(error: FieldError) -> FieldError:
    """Return an error of the chat with the names that its fields have in a request for a response."""
    for pattern, here in _NAMES_HERE:
        name, count = re.subn("^" + pattern, here, error.param or "")
        if count and error.param:
            message = str(error)
            if message.removeprefix("The field ").startswith(error.param):
                message = message.replace(error.param, name, 1)
            return FieldError(message, name, error.code)
    return error


def as_chat(body: ResponseRequest) -> ChatRequest:
    """Return the chat that a request asks for."""
    if body.text is not None:
        refuse_unsupported(body.text, "text.")
    if body.stream_options is not None:
        refuse_unsupported(body.stream_options, "stream_options.")
    logprobs, choice = bool(body.include), body.tool_choice
    if body.top_logprobs is not None and not logprobs:
        raise FieldError(f'top_logprobs needs include: ["{LOGPROBS}"].', "top_logprobs", "invalid_value")
    if logprobs and body.tools and choice != "none":
        message = "include cannot be combined with tools: log-probabilities are of the text, and calls are not text."
        raise FieldError(message, "include", "invalid_value")
    return ChatRequest(
        model=body.model,
        messages=messages_of(body.instructions, body.input),
        max_completion_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        seed=body.seed,
        stream=body.stream,
        ignore_eos=body.ignore_eos,
        cache_salt=body.cache_salt,
        logprobs=logprobs or None,
        top_logprobs=body.top_logprobs,
        response_format=_format(None if body.text is None else body.text.format),
        tools=None if body.tools is None else [tool.as_chat() for tool in body.tools],
        tool_choice=choice.as_chat() if isinstance(choice, ResponseToolChoice) else choice,
        parallel_tool_calls=body.parallel_tool_calls,
    )


def repeated(body: ResponseRequest) -> dict[str, Any]:
    """Return what an answer repeats of its request."""
    form = None if body.text is None else body.text.format
    shown: dict[str, Any] = {"type": "text" if form is None else form.type}
    if form is not None and form.type == "json_schema":
        shown |= {"name": form.name or "answer", "schema": form.schema, "strict": True}
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


def _format(form: TextFormat | None) -> ResponseFormat | None:
    if form is None:
        return None
    if form.type == "json_schema":
        if form.schema is None:
            raise FieldError("The field text.format.schema is missing.", "text.format.schema", "missing_field")
        return ResponseFormat(type=form.type, json_schema=JsonSchema(name=form.name or "answer", schema=form.schema))
    for name in ("name", "schema", "description", "strict"):
        if getattr(form, name) not in (None, False) or (name == "schema" and form.schema is False):
            field = f"text.format.{name}"
            raise FieldError(f"{field} is for the type json_schema.", field, "invalid_value")
    return ResponseFormat(type=form.type)


def messages_of(instructions: str | None, given: str | list[InputItem]) -> list[Message]:
    """Return the input as messages of a chat; an assistant's calls in a row are one message."""
    out = [] if instructions is None else [Message(role="system", content=instructions)]
    if isinstance(given, str):
        return [*out, Message(role="user", content=given)]
    for index, item in enumerate(given):
        _check_fields(item, f"input[{index}]")
        message, before = _message(item), out[-1] if out else None
        if message.tool_calls and before is not None and before.role == "assistant":
            calls = [*(before.tool_calls or []), *message.tool_calls]
            out[-1] = Message(role="assistant", content=before.content, tool_calls=calls)
        else:
            out.append(message)
    return out


def _check_fields(item: InputItem, place: str) -> None:
    for name in _FIELDS[item.type]:
        if getattr(item, name) is None:
            raise FieldError(f"The field {place}.{name} is missing.", f"{place}.{name}", "missing_field")
    for name in sorted({name for names in _FIELDS.values() for name in names}.difference(_FIELDS[item.type])):
        if getattr(item, name) is not None:
            message = f"{place}.{name} does not belong to an item of the type {item.type}."
            raise FieldError(message, f"{place}.{name}", "invalid_value")


def _message(item: InputItem) -> Message:
    if item.type == "function_call":
        assert item.call_id is not None and item.name is not None and item.arguments is not None  # checked
        call = ToolCall(id=item.call_id, function=CalledFunction(name=item.name, arguments=item.arguments))
        return Message(role="assistant", tool_calls=[call])
    given = item.content if item.type == "message" else item.output
    text = given if isinstance(given, str) else "".join(part.text for part in given or ())
    if item.type == "function_call_output":
        return Message(role="tool", content=text, tool_call_id=item.call_id)
    return Message(role="system" if item.role == "developer" else str(item.role), content=text)
