"""Tools of a request: what the template shows, what the answer must be, and the calls among earlier messages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from lucid_deploy.artifact.chat import ChatTemplates
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.constraint import NAMES, Constraint, from_json_schema
from lucid_deploy.json_fields import FieldError, named_field
from lucid_deploy.serving.fields import ChatRequest, Message, PlainText, Tool, ToolChoice
from lucid_deploy.serving.tool_formats import ToolFormat, tool_format_of, tool_grammar


@dataclass(frozen=True)
class ToolUse:
    """What the tools of a request mean for its prompt and its answer."""

    shown: list[dict[str, Any]]  # the tools as the template gets them
    form: ToolFormat  # how the answer writes calls
    constraint: Constraint  # what the answer must be
    trigger_token: int | None  # the special token that spells the format's trigger; None if there is none


def tool_use_of(body: ChatRequest, templates: ChatTemplates, tokenizer: TextTokenizer) -> ToolUse | None:
    """Return what a body's tools mean; None with no tools or ``tool_choice: none``. FieldError if they are wrong."""
    tools, choice = body.tools or [], body.tool_choice
    if not tools:
        if choice not in (None, "none", "auto"):
            raise FieldError("tool_choice needs tools.", "tool_choice")
        return None
    try:
        form = tool_format_of(templates.chosen(tools=True).source)
    except LucidError as error:
        raise FieldError(f"tools: {error}", "tools", "unsupported_parameter") from error
    if form is None:
        message = "tools: the model's chat template supports none, or writes calls in a format unknown to this server."
        raise FieldError(message, "tools", "unsupported_parameter")
    schemas = _schemas(tools)
    if isinstance(choice, ToolChoice):
        name = choice.function.name
        if name not in schemas:
            message = f"tool_choice names {name[:64]!r}, which is none of the tools."
            raise FieldError(message, "tool_choice")
        schemas = {name: schemas[name]}
    if choice == "none":
        return None
    other = "response_format" if not isinstance(body.response_format, PlainText | None) else None
    other = next((name for name in NAMES if getattr(body, name) is not None), other)
    if other is not None:
        raise FieldError(f"{other} cannot be combined with tools.", other)
    special = tokenizer.special_id(form.trigger)
    must_call = choice == "required" or isinstance(choice, ToolChoice)
    several = body.parallel_tool_calls is not False and not isinstance(choice, ToolChoice)
    constraint = tool_grammar(form, schemas, must_call, several, special)
    return ToolUse([_shown(tool) for tool in tools], form, constraint, special)


def _schemas(tools: Sequence[Tool]) -> dict[str, dict[str, Any]]:
    """Return the JSON schemas of the tools' arguments by name; raise a FieldError for tools that are wrong."""
    found: dict[str, dict[str, Any]] = {}
    for index, tool in enumerate(tools):
        where = f"tools[{index}].function"
        if tool.function.name in found:
            message = f"{where}.name: another tool is called {tool.function.name}."
            raise FieldError(message, f"{where}.name")
        schema = tool.function.parameters
        if schema is None:
            schema = {"type": "object", "properties": {}, "additionalProperties": False}
        elif schema.get("type") != "object":
            message = f'{where}.parameters must be a JSON schema of the type "object".'
            raise FieldError(message, f"{where}.parameters")
        with named_field(f"{where}.parameters"):
            from_json_schema(schema)
        found[tool.function.name] = schema
    return found


def _shown(tool: Tool) -> dict[str, Any]:
    shown: dict[str, Any] = msgspec.to_builtins(tool)
    function = {name: value for name, value in shown["function"].items() if value is not None and name != "strict"}
    return {"type": "function", "function": function}


def messages_of(given: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages as templates expect them: content as one text, arguments as objects; FieldError if wrong."""
    out: list[dict[str, Any]] = []
    known: set[str] = set()
    for index, message in enumerate(given):
        where = f"messages[{index}]"
        calls = message.tool_calls or []
        if calls and message.role != "assistant":
            raise FieldError(f"{where}.tool_calls: only the assistant calls tools.", f"{where}.tool_calls")
        if message.content is None and not calls:
            raise FieldError(f"The field {where}.content is missing.", f"{where}.content", "missing_field")
        content = message.content
        # Most templates expect one text.
        text = "" if content is None else content if isinstance(content, str) else "".join(p.text for p in content)
        role = "system" if message.role == "developer" else message.role
        made: dict[str, Any] = {"role": role, "content": text}
        if message.name is not None:
            made["name"] = message.name
        if calls:
            made["tool_calls"] = [_call(f"{where}.tool_calls[{i}]", call) for i, call in enumerate(calls)]
            known |= {call.id for call in calls}
        _check_result(where, message, known)
        if message.tool_call_id is not None:
            made["tool_call_id"] = message.tool_call_id
        out.append(made)
    return out


def _check_result(where: str, message: Message, known: set[str]) -> None:
    field = f"{where}.tool_call_id"
    if message.role != "tool":
        if message.tool_call_id is not None:
            raise FieldError(f"{field}: only messages of the role tool have one.", field)
    elif message.tool_call_id is None:
        raise FieldError(f"The field {field} is missing.", field, "missing_field")
    elif message.tool_call_id not in known:
        raise FieldError(f"{field}: no earlier assistant message has a tool call with this id.", field)


def _call(where: str, call: Any) -> dict[str, Any]:
    field = f"{where}.function.arguments"
    arguments = None
    with suppress(ValueError, RecursionError):
        arguments = json.loads(call.function.arguments)
    if not isinstance(arguments, dict):
        raise FieldError(f"{field} is not the text of a JSON object.", field)
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}
