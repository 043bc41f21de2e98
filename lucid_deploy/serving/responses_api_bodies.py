"""The body of ``POST /v1/responses``: the part of OpenAI's Responses API that needs no memory of earlier answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from lucid_deploy.json_fields import FieldError
from lucid_deploy.serving.bodies import (
    MOST_LOGPROBS,
    CacheSalt,
    ChatRequest,
    Harmless,
    HarmlessText,
    IgnoreEos,
    JsonSchema,
    Message,
    ResponseFormat,
    Seed,
    Temperature,
    TopK,
    TopP,
    only,
    refuse_unsupported,
)

LOGPROBS = "message.output_text.logprobs"  # the one thing that include may ask for
_PART = '"input_text" or "output_text", the only kinds that this server takes'
# Fields of a chat; of several that fit, the first.
_NAMES_HERE = {
    "max_completion_tokens": "max_output_tokens",
    "messages": "input",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
}
_INPUT = "a text, or a list of messages"


class ResponseStreamOptions(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How a stream of events is sent."""

    include_obfuscation: Annotated[Any, only(False)] = None


class InputPart(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A part of a message; what an earlier answer said of its parts is accepted, so that it can be sent back."""

    type: Annotated[Literal["input_text", "output_text"], Meta(extra={"expected": _PART})]
    text: str
    annotations: Harmless = None
    logprobs: Harmless = None


class InputMessage(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A message of the input, or one that an earlier answer gave."""

    role: Annotated[str, Meta(description="developer is the template's system.")]
    content: str | list[InputPart]
    type: Annotated[Literal["message"], Meta(extra={"expected": '"message", the only kind of item here'})] = "message"
    id: Harmless = None
    status: Harmless = None
    phase: Harmless = None


class TextFormat(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What the text must be."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema: Annotated[
        dict[str, Any] | bool | None,
        Meta(description="With the type json_schema.", extra={"expected": "a JSON schema"}),
    ] = None
    description: HarmlessText = None
    strict: Annotated[bool, Meta(description="Accepted: schemas are always enforced.")] | None = None


class TextSettings(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What the answer's text is like."""

    format: TextFormat | None = None
    verbosity: Annotated[Any, only()] = None


class ResponseRequest(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /v1/responses``."""

    model: Annotated[str, Meta(description="The name of the served model.")]
    input: Annotated[
        str | Annotated[list[InputMessage], Meta(min_length=1)],
        Meta(description="The user's text, or all messages so far.", extra={"expected": _INPUT}),
    ]
    instructions: Annotated[str, Meta(description="A system message in front of the input.")] | None = None
    max_output_tokens: Annotated[int, Meta(description="Most new tokens; all that fit if not given.")] | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    seed: Seed | None = None
    stream: Annotated[bool, Meta(description="Send typed events as tokens come.")] | None = None
    stream_options: ResponseStreamOptions | None = None
    ignore_eos: IgnoreEos | None = None
    cache_salt: CacheSalt | None = None
    include: (
        list[Annotated[Literal["message.output_text.logprobs"], Meta(extra={"expected": f'"{LOGPROBS}"'})]] | None
    ) = None
    top_logprobs: (
        Annotated[int, Meta(ge=0, le=MOST_LOGPROBS, description=f"With {LOGPROBS}: alternatives of each token.")] | None
    ) = None
    text: TextSettings | None = None
    metadata: dict[str, str] | None = None
    user: HarmlessText = None
    service_tier: Annotated[Any, only("auto", "default")] = None
    safety_identifier: HarmlessText = None
    prompt_cache_key: HarmlessText = None
    prompt_cache_retention: HarmlessText = None
    parallel_tool_calls: Annotated[bool, Meta(description="Accepted, without effect.")] | None = None
    store: Annotated[Any, only(False)] = None
    previous_response_id: Annotated[Any, only()] = None
    conversation: Annotated[Any, only()] = None
    prompt: Annotated[Any, only()] = None
    background: Annotated[Any, only(False)] = None
    context_management: Annotated[Any, only([])] = None
    truncation: Annotated[Any, only("disabled")] = None
    reasoning: Annotated[Any, only({})] = None
    tools: Annotated[Any, only([])] = None
    tool_choice: Annotated[Any, only("none", "auto")] = None
    max_tool_calls: Annotated[Any, only()] = None
    moderation: Annotated[Any, only()] = None


def as_chat(body: ResponseRequest) -> ChatRequest:
    """Return the chat that a request asks for.

    Raises:
        FieldError: ``top_logprobs`` without the ``include`` that asks for them, a format without its schema, or a
            schema with another format.
    """
    if body.text is not None:
        refuse_unsupported(body.text, "text.")
    if body.stream_options is not None:
        refuse_unsupported(body.stream_options, "stream_options.")
    logprobs = bool(body.include)
    if body.top_logprobs is not None and not logprobs:
        raise FieldError(f'top_logprobs needs include: ["{LOGPROBS}"].', "top_logprobs", "invalid_value")
    given = [InputMessage(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    opening = [] if body.instructions is None else [Message(role="system", content=body.instructions)]
    return ChatRequest(
        model=body.model,
        messages=[*opening, *map(_message, given)],
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
        response_format=_format(body),
    )


def repeated(body: ResponseRequest) -> dict[str, Any]:
    """Return what an answer repeats of its request."""
    form = None if body.text is None else body.text.format
    return {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "top_logprobs": body.top_logprobs or 0,
        "text": {"format": {"type": "text"} if form is None else _shown(form)},
    }


def in_our_words(error: FieldError) -> FieldError:
    """Return an error of the chat with the names that its fields have here."""
    for name, here in _NAMES_HERE.items():
        if error.param is not None and error.param.startswith(name):
            message = str(error)
            message = here + message.removeprefix(name) if message.startswith(name) else message
            return FieldError(message, here + error.param.removeprefix(name), error.code)
    return error


def _format(body: ResponseRequest) -> ResponseFormat | None:
    form = None if body.text is None else body.text.format
    if form is None:
        return None
    if form.type != "json_schema":
        for name in ("name", "schema", "description", "strict"):
            value = getattr(form, name)
            if value is not None and not (name == "strict" and value is False):  # which asks for nothing
                field = f"text.format.{name}"
                raise FieldError(f"{field} is for the type json_schema.", field, "invalid_value")
        return ResponseFormat(type=form.type)
    if form.schema is None:
        raise FieldError("The field text.format.schema is missing.", "text.format.schema", "missing_field")
    return ResponseFormat(type=form.type, json_schema=JsonSchema(name=form.name or "answer", schema=form.schema))


def _shown(form: TextFormat) -> dict[str, Any]:
    if form.type != "json_schema":
        return {"type": form.type}
    return {"type": form.type, "name": form.name or "answer", "schema": form.schema, "strict": True}


def _message(given: InputMessage) -> Message:
    content = given.content
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    return Message(role="system" if given.role == "developer" else given.role, content=text)
