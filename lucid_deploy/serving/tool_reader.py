"""Read a chat request's tools: what the chat template gets, and the grammar that constrains the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from lucid_deploy.artifact.chat import ChatTemplates
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.constraint import NAMES, Constraint, from_json_schema
from lucid_deploy.json_fields import FieldError, named_field
from lucid_deploy.serving.fields import ChatRequest, PlainText, Tool, ToolChoice
from lucid_deploy.serving.tool_formats import ToolFormat, tool_format_of, tool_grammar


@dataclass(frozen=True)
class ToolUse:
    """The effect of a request's tools on its prompt and its answer."""

    shown: list[dict[str, Any]]  # the tools as the template gets them
    form: ToolFormat  # how the answer writes calls
    constraint: Constraint  # grammar of the answer
    trigger_token: int | None  # the special token that spells the format's trigger; None if there is none


def tool_use_of(body: ChatRequest, templates: ChatTemplates, tokenizer: TextTokenizer) -> ToolUse | None:
    """Return how a request uses its tools, None without tools or with ``tool_choice: none``; FieldError if invalid."""
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
        message = "tools: the model's chat template does not support tools, or its format of calls is unknown here."
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
    """Return the JSON schema of each tool's arguments, by the tool's name; raise a FieldError for invalid tools."""
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
