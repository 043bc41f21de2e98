"""Tools in the bodies of requests: what may be called, and what was called before."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

MOST_TOOLS = 128

FunctionKind = Literal["function"]
FunctionName = Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]


class ToolFunction(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A function that may be called."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Annotated[bool, Meta(description="Accepted: arguments always follow the schema.")] | None = None


class Tool(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A tool."""

    type: FunctionKind
    function: ToolFunction


class ChosenFunction(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The name of a function."""

    name: str


class ToolChoice(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The one tool that must be called."""

    type: FunctionKind
    function: ChosenFunction


class ResponseTool(ToolFunction, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A tool, as ``/v1/responses`` has it."""

    type: FunctionKind

    def as_chat(self) -> Tool:
        function = ToolFunction(name=self.name, description=self.description, parameters=self.parameters)
        return Tool(type=self.type, function=function)


class ResponseToolChoice(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The one tool that must be called, as ``/v1/responses`` has it."""

    type: FunctionKind
    name: str

    def as_chat(self) -> ToolChoice:
        return ToolChoice(type=self.type, function=ChosenFunction(name=self.name))


class CalledFunction(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A function with its arguments, as the text of a JSON object."""

    name: FunctionName
    arguments: str


class ToolCall(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A call in an earlier answer."""

    id: str
    function: CalledFunction
    type: FunctionKind = "function"
    index: Annotated[int, Meta(description="Accepted, without effect.")] | None = None


_TOOLS = Meta(description="What may be called.")
Tools = Annotated[Annotated[list[Tool], Meta(max_length=MOST_TOOLS)] | None, _TOOLS]
Choice = Literal["none", "auto", "required"] | ToolChoice | None
ResponseTools = Annotated[Annotated[list[ResponseTool], Meta(max_length=MOST_TOOLS)] | None, _TOOLS]
ResponseChoice = Literal["none", "auto", "required"] | ResponseToolChoice | None
