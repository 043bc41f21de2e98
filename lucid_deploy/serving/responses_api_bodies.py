"""The body of ``POST /v1/responses``: the part of OpenAI's Responses API that needs no memory of earlier answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from lucid_deploy.json_fields import FieldError
from lucid_deploy.serving.bodies import (
    MOST_LOGPROBS,
    CacheSalt,
    ChatRequest,
    HarmlessText,
    IgnoreEos,
    JsonSchema,
    ResponseFormat,
    Seed,
    Temperature,
    TopK,
    TopP,
    only,
    refuse_unsupported,
)
from lucid_deploy.serving.responses_api_items import InputItem, conversation_of
from lucid_deploy.serving.tool_bodies import (
    Choice,
    ChosenFunction,
    ResponseChoice,
    ResponseTool,
    ResponseToolChoice,
    ResponseTools,
    Tool,
    ToolChoice,
    ToolFunction,
)

LOGPROBS = "message.output_text.logprobs"  # the one thing that include may ask for
# Fields of a chat; of several that fit, the first.
_NAMES_HERE = {
    "max_completion_tokens": "max_output_tokens",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
}
_INPUT = "a text, or a list of messages"  # and of calls and results


class ResponseStreamOptions(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How a stream of events is sent."""

    include_obfuscation: Annotated[Any, only(False)] = None


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
        str | Annotated[list[InputItem], Meta(min_length=1)],
        Meta(description="The user's text, or all that was said and called so far.", extra={"expected": _INPUT}),
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
    tools: ResponseTools = None
    tool_choice: ResponseChoice = None
    parallel_tool_calls: Annotated[bool, Meta(description="Whether there may be several calls.")] | None = None
    store: Annotated[Any, only(False)] = None
    previous_response_id: Annotated[Any, only()] = None
    conversation: Annotated[Any, only()] = None
    prompt: Annotated[Any, only()] = None
    background: Annotated[Any, only(False)] = None
    context_management: Annotated[Any, only([])] = None
    truncation: Annotated[Any, only("disabled")] = None
    reasoning: Annotated[Any, only({})] = None
    max_tool_calls: Annotated[Any, only()] = None
    moderation: Annotated[Any, only()] = None


def as_chat(body: ResponseRequest) -> ChatRequest:
    """Return the chat that a request asks for.

    Raises:
        FieldError: ``top_logprobs`` without the ``include`` that asks for them, that beside tools, a format without its
            schema, a schema with another format, or an item with fields of another.
    """
    if body.text is not None:
        refuse_unsupported(body.text, "text.")
    if body.stream_options is not None:
        refuse_unsupported(body.stream_options, "stream_options.")
    logprobs = bool(body.include)
    if body.top_logprobs is not None and not logprobs:
        raise FieldError(f'top_logprobs needs include: ["{LOGPROBS}"].', "top_logprobs", "invalid_value")
    if logprobs and body.tools and body.tool_choice != "none":
        message = "include cannot be combined with tools: log-probabilities are of the text, and calls are not text."
        raise FieldError(message, "include", "invalid_value")
    return ChatRequest(
        model=body.model,
        messages=conversation_of(body.instructions, body.input).messages,
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
        tools=None if body.tools is None else list(map(_chat_tool, body.tools)),
        tool_choice=_chat_choice(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls,
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
        **(_repeated_tools(body) if body.tools else {}),
    }


def in_our_words(error: FieldError, body: ResponseRequest | None) -> FieldError:
    """Return an error of the chat with the names that its fields have here.

    Args:
        error: The error.
        body: The request, if it could be read.
    """
    name = error.param
    here = None if name is None or body is None else _name_here(name, body)
    if name is None or here is None:
        return error
    message = str(error)
    for opening in ("", "The field "):
        if message.startswith(opening + name):
            message = opening + here + message.removeprefix(opening + name)
            break
    return FieldError(message, here, error.code)


def _name_here(name: str, body: ResponseRequest) -> str | None:
    """Return what a field of the chat is called here; None if it is the same."""
    if name.startswith("messages"):
        return conversation_of(body.instructions, body.input).place_of(name)
    if name.startswith("tools["):
        return name.replace("].function", "]", 1)
    for known, here in _NAMES_HERE.items():
        if name.startswith(known):
            return here + name.removeprefix(known)
    return None


def _repeated_tools(body: ResponseRequest) -> dict[str, Any]:
    tools = [{**msgspec.to_builtins(tool), "strict": True} for tool in body.tools or ()]  # arguments follow the schema
    choice = "auto" if body.tool_choice is None else msgspec.to_builtins(body.tool_choice)
    several = body.parallel_tool_calls is not False
    return {"tools": tools, "tool_choice": choice, "parallel_tool_calls": several}


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


def _chat_choice(choice: ResponseChoice) -> Choice:
    if isinstance(choice, ResponseToolChoice):
        return ToolChoice(type=choice.type, function=ChosenFunction(name=choice.name))
    return choice


def _chat_tool(tool: ResponseTool) -> Tool:
    function = ToolFunction(name=tool.name, description=tool.description, parameters=tool.parameters)
    return Tool(type=tool.type, function=function)
