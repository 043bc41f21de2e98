"""What a request of ``/v1/responses`` says so far, as a chat: messages, calls of functions and their results."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from lucid_deploy.json_fields import FieldError
from lucid_deploy.serving.bodies import Harmless, Message
from lucid_deploy.serving.tool_bodies import CalledFunction, FunctionName, ToolCall

_PART = '"input_text" or "output_text", the only kinds that this server takes'
_KINDS = '"message", "function_call" or "function_call_output", the only kinds of item here'
# What an item of each type has.
_FIELDS = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
}


class InputPart(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A part of a message; what an earlier answer said of its parts is accepted, so that it can be sent back."""

    type: Annotated[Literal["input_text", "output_text"], Meta(extra={"expected": _PART})]
    text: str
    annotations: Harmless = None
    logprobs: Harmless = None


class InputItem(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A message, a call that an earlier answer made, or the result of one."""

    type: Annotated[Literal["message", "function_call", "function_call_output"], Meta(extra={"expected": _KINDS})] = (
        "message"
    )
    role: Annotated[str | None, Meta(description="Of a message; developer is the template's system.")] = None
    content: Annotated[str | list[InputPart] | None, Meta(description="Of a message.")] = None
    call_id: Annotated[str | None, Meta(description="Of a call and its result.")] = None
    name: Annotated[FunctionName | None, Meta(description="Of a call.")] = None
    arguments: Annotated[str | None, Meta(description="Of a call: the text of a JSON object.")] = None
    output: Annotated[str | list[InputPart] | None, Meta(description="Of a result.")] = None
    id: Harmless = None
    status: Harmless = None
    phase: Harmless = None


@dataclass
class Conversation:
    """A chat's messages, and which fields of the request they come from.

    Attributes:
        messages: The messages; an assistant's calls stand in one message with the text before them, as a chat has them.
        places: For each message the field of its text, then those of its calls.
    """

    messages: list[Message] = field(default_factory=list)
    places: list[list[str]] = field(default_factory=list)

    def add(self, message: Message, place: str) -> None:
        """Put a message behind the others, or a call into the assistant's message before it."""
        calls = message.tool_calls
        before = self.messages[-1] if self.messages else None
        if calls and before is not None and before.role == "assistant":
            merged = [*(before.tool_calls or []), *calls]
            self.messages[-1] = Message(role="assistant", content=before.content, tool_calls=merged)
            self.places[-1].append(place)
            return
        self.messages.append(message)
        self.places.append([place, place] if calls else [place])

    def place_of(self, param: str) -> str:
        """Return the request's name of a field of the messages, such as ``messages[1].tool_calls[0].id``."""
        number, _, rest = param.removeprefix("messages[").partition("]")
        if not number.isdigit():
            return "input" + param.removeprefix("messages")
        places, role = self.places[int(number)], self.messages[int(number)].role
        if rest.startswith(".tool_calls["):
            call, _, rest = rest.removeprefix(".tool_calls[").partition("]")
            return places[1 + int(call)] + rest.removeprefix(".function")
        if not places[0].startswith("input["):
            return places[0]
        renamed = {".tool_call_id": ".call_id", ".content": ".output" if role == "tool" else ".content"}
        return places[0] + renamed.get(rest, rest)


def conversation_of(instructions: str | None, given: str | list[InputItem]) -> Conversation:
    """Return what a request says so far.

    Raises:
        FieldError: An item lacks a field of its type, or has one of another.
    """
    found = Conversation()
    if instructions is not None:
        found.add(Message(role="system", content=instructions), "instructions")
    if isinstance(given, str):
        found.add(Message(role="user", content=given), "input")
        return found
    for index, item in enumerate(given):
        place = f"input[{index}]"
        _check_fields(item, place)
        found.add(_message(item), place)
    return found


def _check_fields(item: InputItem, place: str) -> None:
    mine = _FIELDS[item.type]
    for name in mine:
        if getattr(item, name) is None:
            raise FieldError(f"The field {place}.{name} is missing.", f"{place}.{name}", "missing_field")
    for name in sorted({name for names in _FIELDS.values() for name in names}.difference(mine)):
        if getattr(item, name) is not None:
            message = f"{place}.{name} does not belong to an item of the type {item.type}."
            raise FieldError(message, f"{place}.{name}", "invalid_value")


def _message(item: InputItem) -> Message:
    if item.type == "function_call":
        assert item.call_id is not None and item.name is not None and item.arguments is not None  # checked
        call = ToolCall(id=item.call_id, function=CalledFunction(name=item.name, arguments=item.arguments))
        return Message(role="assistant", tool_calls=[call])
    if item.type == "function_call_output":
        return Message(role="tool", content=_text(item.output), tool_call_id=item.call_id)
    assert item.role is not None
    return Message(role="system" if item.role == "developer" else item.role, content=_text(item.content))


def _text(given: Any) -> str:
    return given if isinstance(given, str) else "".join(part.text for part in given)
