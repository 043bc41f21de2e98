"""The two requests of the API: fields in, a job out. What would change the result and is not supported is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError
from lucid_deploy.serving.chat import ChatTemplate
from lucid_deploy.serving.errors import invalid
from lucid_deploy.serving.fields import Fields, checked_text, shown, wrong
from lucid_deploy.serving.jobs import Job

DEFAULT_MAX_TOKENS = 16  # of /v1/completions, as OpenAI has it
MOST_LOGPROBS = 20
MOST_STOPS = 16
STOP_LENGTH = 1000  # characters
HARMLESS = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
)
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "logit_bias": ({},),
}
UNSUPPORTED_COMPLETION = {**UNSUPPORTED, "suffix": ("",)}
UNSUPPORTED_CHAT = {
    **UNSUPPORTED,
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
}


@dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes:
        context: Tokens of prompt and answer together.
        vocabulary: Words the model knows.
        prompt_tokens: Tokens of one prompt.
        new_tokens: New tokens of one generation.
        rows: Generations of one request.
        body_bytes: Size of a request.
        seconds: Time from the request's first byte to the answer's last.
    """

    context: int
    vocabulary: int
    prompt_tokens: int
    new_tokens: int
    rows: int
    body_bytes: int = 4 << 20
    seconds: float = 300.0


@dataclass(frozen=True)
class Ask:
    """A request, understood.

    Attributes:
        job: What to generate.
        stream: Whether tokens are sent as they come.
        include_usage: Whether a stream ends with counts.
        chat: Whether it is a chat.
        echo: What each prompt's answers begin with.
    """

    job: Job
    stream: bool
    include_usage: bool
    chat: bool
    echo: tuple[str, ...] = field(default=())

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted once."""
        return sum(len(prompt) for prompt in self.job.prompts)


def read_completion(fields: Fields, tokenizer: TextTokenizer, limits: Limits) -> Ask:
    """Read the body of ``/v1/completions``; the model's name was taken before.

    Raises:
        ApiError: A field is wrong, unknown or not supported.
    """
    given = fields.take("prompt")
    texts, prompts = _prompts(given, tokenizer, limits)
    new = fields.integer("max_tokens", DEFAULT_MAX_TOKENS, 1, limits.new_tokens)
    logprobs = fields.integer("logprobs", None, 0, MOST_LOGPROBS)
    n = fields.integer("n", 1, 1, limits.rows) or 1
    best_of = fields.integer("best_of", None, 1, 2**31)
    if best_of not in (None, n):
        raise invalid("best_of is not supported by this server; leave it out.", "best_of", "unsupported_parameter")
    echo = fields.boolean("echo")
    if echo and logprobs is not None:
        raise invalid("echo together with logprobs is not supported.", "echo", "unsupported_parameter")
    job = _job(fields, prompts, n, new, logprobs, limits)
    stream, usage = _streaming(fields)
    fields.accept(HARMLESS)
    fields.refuse(UNSUPPORTED_COMPLETION)
    fields.finish()
    opening = [tokenizer.decode(list(ids)) if text is None else text for text, ids in zip(texts, prompts, strict=True)]
    return Ask(job, stream, usage, chat=False, echo=tuple(opening) if echo else ())


def read_chat(fields: Fields, tokenizer: TextTokenizer, template: ChatTemplate | None, limits: Limits) -> Ask:
    """Read the body of ``/v1/chat/completions``; the model's name was taken before.

    Raises:
        ApiError: A field is wrong, unknown or not supported, or the model has no chat template.
    """
    if template is None:
        raise invalid(
            "The model has no chat template, so that it cannot chat; use /v1/completions.", code="no_chat_template"
        )
    messages = _messages(fields.take("messages"))
    try:
        ids = tokenizer.encode(template.render(messages), add_special_tokens=False)
    except LucidError as error:
        raise invalid(str(error), "messages") from error
    prompt = _checked_prompt(ids, "messages", limits)
    older = fields.integer("max_tokens", None, 1, limits.new_tokens)
    new = fields.integer("max_completion_tokens", older, 1, limits.new_tokens)
    wanted = fields.boolean("logprobs")
    top = fields.integer("top_logprobs", None, 0, MOST_LOGPROBS)
    if top is not None and not wanted:
        raise invalid("top_logprobs needs logprobs: true.", "top_logprobs")
    n = fields.integer("n", 1, 1, limits.rows) or 1
    job = _job(fields, (prompt,), n, new, (top or 0) if wanted else None, limits)
    stream, usage = _streaming(fields)
    fields.accept(HARMLESS)
    fields.refuse(UNSUPPORTED_CHAT)
    fields.finish()
    return Ask(job, stream, usage, chat=True)


def _job(
    fields: Fields,
    prompts: tuple[tuple[int, ...], ...],
    n: int,
    new_tokens: int | None,
    top_logprobs: int | None,
    limits: Limits,
) -> Job:
    if len(prompts) * n > limits.rows:
        raise invalid(
            f"{len(prompts)} prompts with n {n} are {len(prompts) * n} generations; this server takes {limits.rows} at "
            "once. Send several requests.",
            "n",
        )
    longest = max(len(prompt) for prompt in prompts)
    room = limits.context - longest
    if new_tokens is None:
        new_tokens = min(limits.new_tokens, room)
    if new_tokens > room:
        raise invalid(
            f"The model's context is {limits.context} tokens; {longest} of the prompt and {new_tokens} new ones are "
            f"{longest + new_tokens}. Shorten the prompt or ask for fewer.",
            code="context_length_exceeded",
        )
    top_p = fields.number("top_p", 1.0, 0.0, 1.0)
    if top_p == 0.0:
        raise wrong("top_p", "above 0", 0)
    seed = fields.integer("seed", None, -(2**63), 2**63 - 1)
    return Job(
        prompts=prompts,
        n=n,
        max_new_tokens=new_tokens,
        temperature=fields.number("temperature", 1.0, 0.0, 2.0),
        top_k=fields.integer("top_k", 0, 0, 2**31) or 0,
        top_p=top_p,
        seed=None if seed is None else seed % 2**64,  # the generator takes no negative ones
        stops=_stops(fields.take("stop")),
        stop_at_eos=not fields.boolean("ignore_eos"),
        top_logprobs=None if top_logprobs is None else min(top_logprobs, limits.vocabulary),
    )


def _prompts(
    given: Any, tokenizer: TextTokenizer, limits: Limits
) -> tuple[list[str | None], tuple[tuple[int, ...], ...]]:
    """Read a text, several texts, token ids, or several lists of token ids: (texts or None, ids)."""
    if given is None:
        raise invalid("The field prompt is missing.", "prompt", "missing_field")
    several = isinstance(given, list) and bool(given) and isinstance(given[0], str | list)
    items = given if several else [given]
    if len(items) > limits.rows:
        raise invalid(f"{len(items)} prompts are too many; this server takes {limits.rows} at once.", "prompt")
    if several and any(type(item) is not type(items[0]) for item in items):
        raise wrong("prompt", "a text, a list of texts, token ids, or a list of lists of token ids", "a mixture")
    texts: list[str | None] = []
    ids: list[tuple[int, ...]] = []
    for item in items:
        if isinstance(item, list):
            texts.append(None)
            ids.append(_checked_prompt(_token_ids(item, limits.vocabulary), "prompt", limits))
            continue
        if not isinstance(item, str):
            raise wrong("prompt", "a text, a list of texts, token ids, or a list of lists of token ids", item)
        text = checked_text("prompt", item)
        if not text:
            raise invalid("The prompt is empty.", "prompt", "empty_prompt")
        texts.append(text)
        ids.append(_checked_prompt(tokenizer.encode(text), "prompt", limits))
    return texts, tuple(ids)


def _token_ids(items: list[Any], vocabulary: int) -> list[int]:
    for item in items:
        if isinstance(item, bool) or not isinstance(item, int):
            raise wrong("prompt", "whole numbers where it is token ids", item)
        if not 0 <= item < vocabulary:
            raise invalid(f"Token id {shown(item)} is outside the vocabulary (0 to {vocabulary - 1}).", "prompt")
    return items


def _checked_prompt(ids: list[int], name: str, limits: Limits) -> tuple[int, ...]:
    if not ids:
        raise invalid("The prompt is empty: it has no tokens.", name, "empty_prompt")
    if len(ids) > limits.prompt_tokens:
        raise invalid(
            f"The prompt has {len(ids)} tokens; this server takes {limits.prompt_tokens}.",
            name,
            "context_length_exceeded",
        )
    if len(ids) >= limits.context:
        raise invalid(
            f"The prompt has {len(ids)} tokens and the model's context is {limits.context}, answer included.",
            name,
            "context_length_exceeded",
        )
    if (highest := max(ids)) >= limits.vocabulary:
        raise invalid(
            f"The tokenizer gives token {highest}, the model knows {limits.vocabulary}; they do not fit together.", name
        )
    return tuple(ids)


def _messages(given: Any) -> list[dict[str, Any]]:
    """Read chat messages; text parts become one text, as most templates expect."""
    if not isinstance(given, list) or not given:
        raise invalid("messages must be a list of at least one message.", "messages", "invalid_value")
    return [_message(f"messages[{index}]", item) for index, item in enumerate(given)]


def _message(where: str, item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise wrong(where, "an object", item)
    unknown = set(item) - {"role", "content", "name", "refusal", "annotations", "tool_calls", "function_call", "audio"}
    for name in sorted({name for name in ("tool_calls", "function_call", "audio") if item.get(name)} | unknown):
        raise invalid(f"{where}.{shown(name)} is not supported by this server.", where, "unsupported_parameter")
    role = checked_text(f"{where}.role", item.get("role"))
    content = item.get("content")
    if isinstance(content, list):
        content = "".join(_text_part(f"{where}.content[{index}]", part) for index, part in enumerate(content))
    content = checked_text(f"{where}.content", content)
    out = {"role": role, "content": content}
    if item.get("name") is not None:
        out["name"] = checked_text(f"{where}.name", item["name"])
    return out


def _text_part(where: str, part: Any) -> str:
    if not isinstance(part, dict):
        raise wrong(where, "an object", part)
    if part.get("type") != "text":
        raise invalid(f"{where} is of type {shown(part.get('type'))}; this server takes text.", where)
    return checked_text(f"{where}.text", part.get("text"))


def _stops(given: Any) -> tuple[str, ...]:
    if given is None:
        return ()
    items = [given] if isinstance(given, str) else given
    if not isinstance(items, list):
        raise wrong("stop", "a text or a list of texts", given)
    if len(items) > MOST_STOPS:
        raise wrong("stop", f"at most {MOST_STOPS} texts", given)
    stops = [checked_text("stop", item) for item in items]
    if any(not 0 < len(stop) <= STOP_LENGTH for stop in stops):
        raise invalid(f"A stop text must have 1 to {STOP_LENGTH} characters.", "stop", "invalid_value")
    return tuple(stops)


def _streaming(fields: Fields) -> tuple[bool, bool]:
    stream = fields.boolean("stream")
    options = fields.take("stream_options")
    if options is None:
        return stream, False
    if not stream:
        raise invalid("stream_options needs stream: true.", "stream_options")
    if not isinstance(options, dict):
        raise wrong("stream_options", "an object", options)
    unknown = set(options) - {"include_usage", "include_obfuscation"}
    for name in sorted(unknown):
        raise invalid(f"Unknown field: stream_options.{shown(name)}.", "stream_options", "unknown_parameter")
    usage = options.get("include_usage", False)
    if not isinstance(usage, bool):
        raise wrong("stream_options.include_usage", "true or false", usage)
    return stream, usage
