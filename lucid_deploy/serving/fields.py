"""Structs of request bodies: types and fixed ranges of all fields, published at ``/openapi.json``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from lucid_deploy.generation.constraint import GuidedChoice, GuidedGrammar, GuidedJson, GuidedRegex
from lucid_deploy.json_fields import FieldError

LOGPROBS = "message.output_text.logprobs"  # the only value that the field ``include`` may list
PROMPT = "a text, a list of texts, token ids, or a list of lists of token ids"
DEVELOPER = "The chat template receives developer messages as system messages."
# Fields that are dropped: HARMLESS ones always, those in NEUTRAL if their value is false, empty or listed there.
HARMLESS = ("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
UNSUPPORTED = ("store", "echo", "background", "stream_options.include_obfuscation", "reasoning_effort", "reasoning")
NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys((*UNSUPPORTED, "text.verbosity", "previous_response_id", "suffix", "functions"), ()),
    "service_tier": ("auto", "default"),
    "best_of": (1,),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "truncation": ("disabled",),
}
_REPETITION = "For tokens in the prompt or the answer: divides positive logits, multiplies negative ones."


def about(text: str) -> Meta:
    """Return the msgspec annotation with a field's description in ``/openapi.json``."""
    return Meta(description=text)


StopText = Annotated[str, Meta(min_length=1, max_length=1000)]
Texts = Annotated[list[StopText], Meta(max_length=16)]
Tokens = Annotated[int, about("Maximum number of new tokens; all that fit if not given.")] | None
Logprobs = Annotated[int, about("How many likely tokens to report at each position."), Meta(ge=0, le=20)] | None
_PENALTY = "Subtracted from logits of tokens in the answer: presence once, frequency for each occurrence."
Penalty = Annotated[float, about(_PENALTY), Meta(ge=-2, le=2)] | None
Harmless = Annotated[Any, about("Accepted, without effect.")]
Salt = Annotated[str, about("Cached prefixes are reused under the same salt only."), Meta(min_length=1, max_length=256)]
_PAIRS = dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]]
Metadata = Annotated[_PAIRS, about("Accepted, without effect on the answer."), Meta(max_length=16)]
FunctionKind = Literal["function"]
FunctionName = Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]
_TOOLS, _TOOLS_LENGTH = about("The tools that the model may call."), Meta(max_length=128)


class Fields(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Base class of all objects in a body; unknown fields are refused."""


class StreamOptions(Fields, kw_only=True, frozen=True):
    """How a stream ends."""

    include_usage: Annotated[bool, about("Report token counts at the end (/v1/responses: always).")] | None = None


class PlainText(Fields, kw_only=True, frozen=True, tag_field="type", tag="text"):
    """An answer that may be any text."""


class AnyObject(Fields, kw_only=True, frozen=True, tag_field="type", tag="json_object"):
    """An answer that is a JSON object."""


class JsonSchema(Fields, kw_only=True, frozen=True):
    """A JSON schema that the answer follows."""

    schema: dict[str, Any] | bool
    name: str = "answer"
    description: Harmless = None
    strict: Annotated[bool, about("Accepted: schemas are always enforced.")] | None = None


class SchemaFormat(Fields, kw_only=True, frozen=True, tag_field="type", tag="json_schema"):
    """An answer that follows a JSON schema, in chats and completions."""

    json_schema: JsonSchema


class TextSchema(JsonSchema, kw_only=True, frozen=True, tag_field="type", tag="json_schema"):
    """An answer that follows a JSON schema, in ``/v1/responses``."""


class CommonFields(Fields, kw_only=True, frozen=True):
    """The fields that all kinds of requests share."""

    model: Annotated[str, about("The name of the served model or of an adapter.")]
    temperature: Annotated[float, about("0 is greedy; 1 if not given."), Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, about("Total probability of the tokens to sample from."), Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, about("Sample from the K likeliest tokens; 0: all."), Meta(ge=0, le=2**31)] | None = None
    seed: Annotated[int, about("The same seed gives the same tokens."), Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stream: Annotated[bool, about("Send tokens as they are generated, as server-sent events.")] | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: Annotated[bool, about("Continue after an end-of-sequence token.")] | None = None
    cache_salt: Salt | None = None
    metadata: Metadata | None = None


class SamplingFields(CommonFields, kw_only=True, frozen=True):
    """The fields that completions and chats share."""

    n: Annotated[int, about("Generations of each prompt; 1 if not given.")] | None = None
    min_p: Annotated[float, about("Least probability, as a share of the largest."), Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty = None
    frequency_penalty: Penalty = None
    repetition_penalty: Annotated[float, about(_REPETITION), Meta(ge=0.01, le=100)] | None = None
    logit_bias: Annotated[dict[str, float] | None, about("By token id, -100 to 100 to add to its logit.")] = None
    bad_words: Annotated[list[StopText], about("Texts that are never generated."), Meta(max_length=1000)] | None = None
    stop: Annotated[StopText | Texts | None, about("Texts that end an answer.")] = None
    return_tokens_as_token_ids: Annotated[bool, about("Log-probabilities name tokens as token_id:N.")] | None = None
    response_format: PlainText | AnyObject | SchemaFormat | None = None
    guided_json: GuidedJson = None
    guided_regex: GuidedRegex = None
    guided_choice: GuidedChoice = None
    guided_grammar: GuidedGrammar = None


class CompletionRequest(SamplingFields, kw_only=True, frozen=True):
    """The body of ``POST /v1/completions``."""

    prompt: Annotated[str | list[str | int | list[int]], about("The text or texts to continue, or their token ids.")]
    max_tokens: Annotated[int, about("Maximum number of new tokens; 16 if not given.")] | None = None
    logprobs: Logprobs = None


class ToolFunction(Fields, kw_only=True, frozen=True):
    """A function that the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Annotated[bool, about("Accepted: arguments always follow the schema.")] | None = None


class Tool(Fields, kw_only=True, frozen=True):
    """A tool that the model may call."""

    type: FunctionKind
    function: ToolFunction


class ChosenFunction(Fields, kw_only=True, frozen=True):
    """The name of the function that must be called."""

    name: str


class ToolChoice(Fields, kw_only=True, frozen=True):
    """The one tool that must be called."""

    type: FunctionKind
    function: ChosenFunction


class ResponseTool(ToolFunction, kw_only=True, frozen=True):
    """A tool in a request to ``/v1/responses``."""

    type: FunctionKind

    def as_chat(self) -> Tool:
        function = ToolFunction(name=self.name, description=self.description, parameters=self.parameters)
        return Tool(type=self.type, function=function)


class ResponseToolChoice(Fields, kw_only=True, frozen=True):
    """The one tool that must be called, in a request to ``/v1/responses``."""

    type: FunctionKind
    name: str

    def as_chat(self) -> ToolChoice:
        return ToolChoice(type=self.type, function=ChosenFunction(name=self.name))


class CalledFunction(Fields, kw_only=True, frozen=True):
    """A called function and its arguments, the JSON text of an object."""

    name: FunctionName
    arguments: str


class ToolCall(Fields, kw_only=True, frozen=True):
    """A call in an earlier answer."""

    id: str
    function: CalledFunction
    type: FunctionKind = "function"
    index: Annotated[int, about("Accepted, without effect.")] | None = None


class TextPart(Fields, kw_only=True, frozen=True):
    """A text part of a message, with the types of chats and of responses: output can be sent back unchanged."""

    type: Literal["text", "input_text", "output_text"]
    text: str
    annotations: Harmless = None
    logprobs: Harmless = None


class Message(Fields, kw_only=True, frozen=True):
    """A message of a chat."""

    role: Annotated[Literal["system", "developer", "user", "assistant", "tool"], about(DEVELOPER)]
    content: Annotated[str | list[TextPart] | None, about("May be left out if there are tool_calls.")] = None
    name: str | None = None
    refusal: Literal[""] | None = None
    annotations: Harmless = None
    tool_calls: Annotated[list[ToolCall] | None, about("The calls in an assistant's message.")] = None
    tool_call_id: Annotated[str | None, about("With the role tool: the id of the call that this answers.")] = None
    function_call: None = None
    audio: None = None


class ChatRequest(SamplingFields, kw_only=True, frozen=True):
    """The body of ``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_tokens: Annotated[int, about("Older name of max_completion_tokens, which takes precedence.")] | None = None
    max_completion_tokens: Tokens = None
    logprobs: Annotated[bool, about("Report log-probabilities.")] | None = None
    top_logprobs: Logprobs = None
    tools: Annotated[Annotated[list[Tool], _TOOLS_LENGTH] | None, _TOOLS] = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: Annotated[bool, about("Whether an answer may have several calls.")] | None = None


class InputItem(Fields, kw_only=True, frozen=True):
    """Base class of messages, calls and results of calls. Output of earlier answers can be sent back unchanged."""

    id: Harmless = None
    status: Harmless = None


class InputMessage(InputItem, kw_only=True, frozen=True, tag_field="type", tag="message"):
    """A message; an item without ``type`` is read as one."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    phase: Harmless = None


class InputCall(InputItem, kw_only=True, frozen=True, tag_field="type", tag="function_call"):
    """A tool call in an earlier answer."""

    call_id: str
    name: FunctionName
    arguments: Annotated[str, about("The text of a JSON object.")]


class InputResult(InputItem, kw_only=True, frozen=True, tag_field="type", tag="function_call_output"):
    """The result of a tool call."""

    call_id: str
    output: str | list[TextPart]


InputItems = Annotated[list[InputMessage | InputCall | InputResult], Meta(min_length=1)]


class TextSettings(Fields, kw_only=True, frozen=True):
    """The format of the answer's text."""

    format: PlainText | AnyObject | TextSchema | None = None


class ResponseRequest(CommonFields, kw_only=True, frozen=True):
    """The body of ``POST /v1/responses``."""

    input: Annotated[str | InputItems, about("The user's text, or all messages and calls so far.")]
    instructions: Annotated[str, about("A system message in front of the input.")] | None = None
    max_output_tokens: Tokens = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    top_logprobs: Logprobs = None
    text: TextSettings | None = None
    tools: Annotated[Annotated[list[ResponseTool], _TOOLS_LENGTH] | None, _TOOLS] = None
    tool_choice: Literal["none", "auto", "required"] | ResponseToolChoice | None = None
    parallel_tool_calls: Annotated[bool, about("Whether an answer may have several calls.")] | None = None


Kind = Literal["completion", "chat", "response"]
BODIES: dict[Kind, type[CompletionRequest | ChatRequest | ResponseRequest]] = {
    "completion": CompletionRequest,
    "chat": ChatRequest,
    "response": ResponseRequest,
}


def drop_without_effect(raw: dict[str, Any]) -> None:
    """Drop fields without effect from a parsed body; FieldError for :data:`NEUTRAL` fields with other values."""
    for name in HARMLESS:
        raw.pop(name, None)
    for path, neutral in NEUTRAL.items():
        parent, _, name = path.rpartition(".")
        holder = raw.get(parent) if parent else raw
        value = holder.pop(name, None) if isinstance(holder, dict) else None
        if value and value not in neutral:
            raise FieldError(f"{path} is not supported by this server; leave it out.", path, "unsupported_parameter")
