"""The bodies of requests, as structs: what each field may be is said here, and published at ``/openapi.json``."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, inspect

from lucid_deploy.generation.constraint import GuidedChoice, GuidedGrammar, GuidedJson, GuidedRegex
from lucid_deploy.generation.sampling import BIASES
from lucid_deploy.json_fields import FieldError
from lucid_deploy.serving.tool_bodies import Choice, FunctionName, ResponseChoice, ResponseTools, ToolCall, Tools

MOST_LOGPROBS = 20
MOST_STOPS = 16
STOP_LENGTH = 1000  # characters
MOST_BAD_WORDS = 1000
SALT_LENGTH = 256  # characters
LOGPROBS = "message.output_text.logprobs"  # the one thing that include may ask for
MOST_SOLVE_TOKENS = 256  # the answer grows with their square
_PART = '"input_text" or "output_text", the only kinds that this server takes'
_KINDS = '"message", "function_call" or "function_call_output", the only kinds of item here'

StopText = Annotated[str, Meta(min_length=1, max_length=STOP_LENGTH)]
PromptItem = Annotated[
    str | int | list[int], Meta(extra={"expected": "a text, a whole number (a token id), or a list of token ids"})
]
_MIN_P = "Sample among tokens with at least this share of the likeliest one's probability."
_PRESENCE = "Taken off the logits of tokens that the answer has."
_FREQUENCY = "Taken off for each time that the answer has the token."
_REPETITION = "Divides positive logits of tokens that prompt or answer have, multiplies negative ones."
_SALT = "Stored prefixes are reused under the same salt only."
Temperature = Annotated[float, Meta(ge=0, le=2, description="0 is greedy; 1 if not given.")]
TopP = Annotated[float, Meta(gt=0, le=1, description="Sample among the likeliest up to this sum.")]
TopK = Annotated[int, Meta(ge=0, le=2**31, description="Sample among the K likeliest; 0 is all.")]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1, description="The same seed gives the same tokens.")]
IgnoreEos = Annotated[bool, Meta(description="Go on after an end-of-sequence token.")]
TokensAsIds = Annotated[bool, Meta(description="Log-probabilities name tokens as token_id:N, not by their text.")]
CacheSalt = Annotated[str, Meta(min_length=1, max_length=SALT_LENGTH, description=_SALT)]
Harmless = Annotated[Any, Meta(description="Accepted, without effect.")]
HarmlessText = Annotated[str, Meta(description="Accepted, without effect.")] | None
Metadata = Annotated[dict[str, str], Meta(description="Accepted, without effect on the answer.")] | None


def only(*neutral: Any) -> Meta:
    """Return what says that a field is not supported, and which values of it have no effect; null always is one."""
    accepted = "".join(f", {value!r}" for value in neutral)
    return Meta(description=f"Not supported: null{accepted} only.", extra={"neutral": neutral})


class StreamOptions(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How a stream ends."""

    include_usage: Annotated[bool, Meta(description="Whether a last chunk has the counts of tokens.")] | None = None
    include_obfuscation: Annotated[Any, only(False)] = None


class JsonSchema(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A schema, as ``response_format`` has it."""

    name: str
    schema: Annotated[
        dict[str, Any] | bool | None, Meta(description="What the answer follows.", extra={"expected": "a JSON schema"})
    ] = None
    description: HarmlessText = None
    strict: Annotated[bool, Meta(description="Accepted: schemas are always enforced.")] | None = None


class ResponseFormat(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What the answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: Annotated[JsonSchema | None, Meta(description="With the type json_schema.")] = None


class CommonFields(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What all requests for answers have in common."""

    model: Annotated[str, Meta(description="The name of the served model.")]
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    seed: Seed | None = None
    stream: Annotated[bool, Meta(description="Send tokens as they come, by server-sent events.")] | None = None
    ignore_eos: IgnoreEos | None = None
    cache_salt: CacheSalt | None = None
    user: HarmlessText = None
    metadata: Metadata = None
    store: Annotated[Any, only(False)] = None
    service_tier: Annotated[Any, only("auto", "default")] = None
    safety_identifier: HarmlessText = None
    prompt_cache_key: HarmlessText = None
    prompt_cache_retention: HarmlessText = None


class SamplingFields(CommonFields, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What completions and chats have in common."""

    n: Annotated[int, Meta(description="Generations of each prompt; 1 if not given.")] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1, description=_MIN_P)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2, description=_PRESENCE)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2, description=_FREQUENCY)] | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100, description=_REPETITION)] | None = None
    logit_bias: Annotated[
        dict[str, float] | None, Meta(description="Added to logits, -100 to 100.", extra={"expected": BIASES})
    ] = None
    bad_words: Annotated[
        Annotated[list[StopText], Meta(max_length=MOST_BAD_WORDS)] | None,
        Meta(description="Texts that no answer contains.", extra={"expected": "a list of texts"}),
    ] = None
    stop: Annotated[
        StopText | Annotated[list[StopText], Meta(max_length=MOST_STOPS)] | None,
        Meta(
            description="Texts that end an answer.",
            extra={"expected": f"a text or a list of at most {MOST_STOPS} texts"},
        ),
    ] = None
    stream_options: StreamOptions | None = None
    return_tokens_as_token_ids: TokensAsIds | None = None
    response_format: ResponseFormat | None = None
    guided_json: GuidedJson = None
    guided_regex: GuidedRegex = None
    guided_choice: GuidedChoice = None
    guided_grammar: GuidedGrammar = None


class CompletionRequest(SamplingFields, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /v1/completions``."""

    prompt: Annotated[
        str | list[PromptItem],
        Meta(
            description="What to continue.",
            extra={"expected": "a text, a list of texts, token ids, or a list of lists of token ids"},
        ),
    ]
    max_tokens: Annotated[int, Meta(description="Most new tokens; 16 if not given.")] | None = None
    logprobs: (
        Annotated[int, Meta(ge=0, le=MOST_LOGPROBS, description="Report log-probabilities of so many tokens.")] | None
    ) = None
    echo: Annotated[bool, Meta(description="Put the prompt in front of the answer.")] | None = None
    best_of: Annotated[int, Meta(description="Not supported: as many as n only.")] | None = None
    suffix: Annotated[Any, only("")] = None


class TextPart(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A part of a message."""

    type: Annotated[Literal["text"], Meta(extra={"expected": '"text", the only kind that this server takes'})]
    text: str


class Message(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A message of a chat."""

    role: str
    content: Annotated[str | list[TextPart] | None, Meta(description="May be left out beside tool_calls.")] = None
    name: str | None = None
    refusal: Annotated[Any, only("")] = None
    annotations: Harmless = None
    tool_calls: Annotated[list[ToolCall] | None, Meta(description="What an assistant's message called.")] = None
    tool_call_id: Annotated[str | None, Meta(description="With the role tool: whose result it is.")] = None
    function_call: Annotated[Any, only()] = None
    audio: Annotated[Any, only()] = None


class ChatRequest(SamplingFields, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Meta(min_length=1, extra={"expected": "a list of at least one message"})]
    max_tokens: Annotated[int, Meta(description="The older name of max_completion_tokens, which wins.")] | None = None
    max_completion_tokens: Annotated[int, Meta(description="Most new tokens; all that fit if not given.")] | None = None
    logprobs: Annotated[bool, Meta(description="Report log-probabilities.")] | None = None
    top_logprobs: (
        Annotated[int, Meta(ge=0, le=MOST_LOGPROBS, description="Alternatives to report for each token.")] | None
    ) = None
    tools: Tools = None
    functions: Annotated[Any, only([])] = None
    tool_choice: Choice = None
    parallel_tool_calls: Annotated[bool, Meta(description="Whether an answer may have several calls.")] | None = None
    function_call: Annotated[Any, only("none", "auto")] = None
    modalities: Annotated[Any, only(["text"])] = None
    audio: Annotated[Any, only()] = None
    prediction: Annotated[Any, only()] = None
    reasoning_effort: Annotated[Any, only()] = None
    verbosity: Annotated[Any, only()] = None
    web_search_options: Annotated[Any, only()] = None


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


class ResponseRequest(CommonFields, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /v1/responses``."""

    input: Annotated[
        str | Annotated[list[InputItem], Meta(min_length=1)],
        Meta(
            description="The user's text, or all that was said and called so far.",
            extra={"expected": "a text, or a list of messages"},
        ),
    ]
    instructions: Annotated[str, Meta(description="A system message in front of the input.")] | None = None
    max_output_tokens: Annotated[int, Meta(description="Most new tokens; all that fit if not given.")] | None = None
    stream_options: ResponseStreamOptions | None = None
    include: (
        list[Annotated[Literal["message.output_text.logprobs"], Meta(extra={"expected": f'"{LOGPROBS}"'})]] | None
    ) = None
    top_logprobs: (
        Annotated[int, Meta(ge=0, le=MOST_LOGPROBS, description=f"With {LOGPROBS}: alternatives of each token.")] | None
    ) = None
    text: TextSettings | None = None
    tools: ResponseTools = None
    tool_choice: ResponseChoice = None
    parallel_tool_calls: Annotated[bool, Meta(description="Whether there may be several calls.")] | None = None
    previous_response_id: Annotated[Any, only()] = None
    conversation: Annotated[Any, only()] = None
    prompt: Annotated[Any, only()] = None
    background: Annotated[Any, only(False)] = None
    context_management: Annotated[Any, only([])] = None
    truncation: Annotated[Any, only("disabled")] = None
    reasoning: Annotated[Any, only({})] = None
    max_tool_calls: Annotated[Any, only()] = None
    moderation: Annotated[Any, only()] = None


class SolveRequest(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /v1/lucid/solve``."""

    model: Annotated[str, Meta(description="The name of the served model.")]
    prompt: Annotated[
        str | list[int],
        Meta(
            description=f"A text of at most {MOST_SOLVE_TOKENS} tokens.",
            extra={"expected": "a text, or a list of token ids"},
        ),
    ]
    layer: Annotated[int, Meta(ge=0, le=2**31, description="A layer that solves a system, counted from 0.")]
    head: Annotated[int, Meta(ge=0, le=2**31, description="Its key/value head, counted from 0.")]


def refuse_unsupported(body: Struct, where: str = "") -> None:
    """Refuse fields that would change the result and are not supported, unless they have a value without effect.

    Args:
        where: Path of that part, such as ``messages[0].``.
    """
    for name, neutral in _unsupported(type(body)).items():
        value = getattr(body, name)
        if value is not None and not any(value == item and type(value) is type(item) for item in neutral):
            message = f"{where}{name} is not supported by this server; leave it out."
            raise FieldError(message, where + name, "unsupported_parameter")


@cache
def _unsupported(form: type[Struct]) -> dict[str, tuple[Any, ...]]:
    """Return the fields that are not supported, each with its values without effect."""
    found = inspect.type_info(form)
    assert isinstance(found, inspect.StructType)
    kinds = {field.name: field.type for field in found.fields}
    return {
        name: kind.extra["neutral"]
        for name, kind in kinds.items()
        if isinstance(kind, inspect.Metadata) and kind.extra and "neutral" in kind.extra
    }
