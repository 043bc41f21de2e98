"""Turn the body of a request into a job; refuse unsupported fields that would change the result."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from lucid_deploy.artifact.chat import ChatTemplates
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.batching import Request
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.constraint import NAMES, Constraint, constraint_of, from_json_schema
from lucid_deploy.generation.guide import GuideFactory
from lucid_deploy.generation.sampling import Sampling, bad_word_ids, logit_bias
from lucid_deploy.json_fields import FieldError, decode, named_field, shown, wrong
from lucid_deploy.serving import fields
from lucid_deploy.serving.errors import ApiError
from lucid_deploy.serving.jobs import Job
from lucid_deploy.serving.responses_api import as_chat, prepare, repeated_fields, with_names_of_responses
from lucid_deploy.serving.tool_reader import ToolUse, tool_use_of

MOST_LOGPROBS_TOGETHER = 160  # most top log-probabilities per position, added up over a request's generations
DEFAULT_MAX_TOKENS = 16  # of /v1/completions, as in OpenAI's API


@dataclass(frozen=True)
class ReaderSetup:
    """The served model, the limits on requests, and the limits on the cost of reading one."""

    directory: str  # of the artifact
    models: tuple[str, ...]  # the base model's name, then those of its adapters
    context: int  # most tokens of prompt and answer together
    vocabulary: int  # number of tokens that the model knows
    prompt_tokens: int  # most tokens of one prompt
    new_tokens: int  # most new tokens of one generation
    choices: int  # most generations of one request: prompts times ``n``
    body_bytes: int = 4 << 20  # largest body of a request
    reading_seconds: float = 5.0  # CPU time for reading one request: parsing, the chat template, tokenizing


class RequestReader:
    """Reads the bodies of requests for a model and its adapters; the field ``model`` names the model or an adapter."""

    def __init__(self, setup: ReaderSetup, tokenizer: TextTokenizer, templates: ChatTemplates | None) -> None:
        self._limits, self._tokenizer, self._templates = setup, tokenizer, templates
        # Cache results, not compiled grammars: their memory would count against the limit for the next request.
        self._check_once = lru_cache(16)(lambda constraint: self._guides.check(constraint))

    def read(self, kind: fields.Kind, data: bytes) -> Job:
        prepare_body = prepare if kind == "response" else fields.drop_without_effect
        try:
            body = decode(data, fields.BODIES[kind], "body", prepare_body)
            models = self._limits.models
            if body.model not in models:
                message = f"The model {shown(body.model)} does not exist here; this server has {', '.join(models)}."
                raise ApiError(404, message, "model_not_found", "model")
            job: Job = getattr(self, f"_{kind}")(body)
            adapter = None if body.model == models[0] else body.model
            return replace(job, request=replace(job.request, adapter=adapter))
        except FieldError as error:
            error = with_names_of_responses(error) if kind == "response" else error
            raise ApiError(400, str(error), error.code, error.param) from error

    def _completion(self, body: fields.CompletionRequest) -> Job:
        new = _within("max_tokens", body.max_tokens, self._limits.new_tokens)
        given = body.prompt
        if len({type(item) for item in given}) > 1:
            raise wrong("prompt", fields.PROMPT, "a mixture")
        items: Any = given if isinstance(given, list) and not isinstance(next(iter(given), 0), int) else [given]
        return self._job(body, items, "prompt", DEFAULT_MAX_TOKENS if new is None else new, body.logprobs)

    def _chat(self, body: fields.ChatRequest) -> Job:
        if self._templates is None:
            raise ApiError(400, "The model has no chat template; use /v1/completions.", "no_chat_template")
        if body.top_logprobs is not None and not body.logprobs:
            raise FieldError("top_logprobs needs logprobs: true.", "top_logprobs")
        older = _within("max_tokens", body.max_tokens, self._limits.new_tokens)
        new = _within("max_completion_tokens", body.max_completion_tokens, self._limits.new_tokens)
        tools = tool_use_of(body, self._templates, self._tokenizer)
        try:
            template = self._templates.chosen(tools=tools is not None)
        except LucidError as error:
            raise ApiError(400, str(error), "no_chat_template") from error
        messages = messages_of(body.messages)
        with named_field("messages"):
            rendered = template.render(messages, None if tools is None else tools.shown)
        top = (body.top_logprobs or 0) if body.logprobs else None
        return self._job(body, [rendered], "messages", older if new is None else new, top, tools)

    def _response(self, body: fields.ResponseRequest) -> Job:
        # No chunk with token counts: in a stream of /v1/responses, the last event has them.
        return replace(self._chat(as_chat(body)), include_usage=False, response=repeated_fields(body))

    def _tokens(self, prompt: str | list[int], name: str) -> tuple[int, ...]:
        """Return the token ids of a prompt from the field ``name``; raise a FieldError if it cannot be run."""
        limits, ids = self._limits, prompt
        if isinstance(ids, str):
            try:  # a chat template writes special tokens itself
                ids = self._tokenizer.encode(ids, add_special_tokens=name != "messages") if ids else []
            except LucidError as error:
                raise FieldError(str(error), name, "tokenizer_failed") from error
        if not ids:
            raise FieldError("The prompt is empty: it has no tokens.", name, "empty_prompt")
        most = min(limits.context - 1, limits.prompt_tokens)
        if len(ids) > most:
            message = f"The prompt has {len(ids)} tokens; this server takes at most {most}."
            raise FieldError(message, name, "context_length_exceeded")
        last = limits.vocabulary - 1
        for token in (min(ids), max(ids)):  # the tokenizer may know more tokens than the model
            if not 0 <= token <= last:
                raise FieldError(f"Token id {shown(token)} is outside the vocabulary (0 to {last}).", name)
        return tuple(ids)

    def _job(
        self,
        body: fields.SamplingFields,
        items: list[str | list[int]],
        name: str,
        new_tokens: int | None,
        top_logprobs: int | None,
        tools: ToolUse | None = None,
    ) -> Job:
        """Return the job for the prompts ``items``, which come from the body's field called ``name``."""
        limits = self._limits
        n = _within("n", body.n, limits.choices) or 1
        rows = len(items) * n
        if rows > limits.choices:
            message = f"{len(items)} prompts x n {n} = {rows} generations; this server takes at most {limits.choices}."
            raise FieldError(message, "n")
        if rows * (top_logprobs or 0) > MOST_LOGPROBS_TOGETHER:
            message = f"{top_logprobs} logprobs x {rows} generations are too many: at most {MOST_LOGPROBS_TOGETHER}."
            raise FieldError(message, "top_logprobs" if name == "messages" else "logprobs")
        prompts = tuple(self._tokens(item, name) for item in items)
        longest = max(map(len, prompts))
        if new_tokens is None:  # all that fit after the longest prompt
            new_tokens = min(limits.new_tokens, limits.context - longest)
        elif longest + new_tokens > limits.context:
            message = f"{longest} tokens of the prompt and {new_tokens} new ones exceed the context, {limits.context}."
            raise FieldError(message, None, "context_length_exceeded")
        common = Request(
            [],
            new_tokens,
            self._sampling(body),
            stop_at_eos=not body.ignore_eos,
            top_logprobs=None if top_logprobs is None else min(top_logprobs, limits.vocabulary),
            constraint=self._constraint(body, tools),
        )
        stops = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
        visible = () if tools is None or tools.trigger_token is None else (tools.trigger_token,)
        if body.stream_options is not None and not body.stream:
            raise FieldError("stream_options needs stream: true.", "stream_options")
        return Job(
            prompts,
            common,
            n,
            stops,
            bool(body.return_tokens_as_token_ids),
            visible,
            stream=bool(body.stream),
            include_usage=body.stream_options is not None and bool(body.stream_options.include_usage),
            chat=isinstance(body, fields.ChatRequest),
            cache_salt=body.cache_salt or "",
            tools=None if tools is None else tools.form,
        )

    def _sampling(self, body: fields.SamplingFields) -> Sampling:
        given = {name: value for name in Sampling.__dataclass_fields__ if (value := getattr(body, name)) is not None}
        if "seed" in given:
            given["seed"] %= 2**64  # numpy's generator takes no negative seeds
        with named_field("bad_words"):
            given["bad_words"] = bad_word_ids(body.bad_words or (), self._tokenizer)
            Sampling(bad_words=given["bad_words"]).check(self._limits.vocabulary)
        with named_field("logit_bias"):
            sampling = Sampling(**{"temperature": 1.0, **given, "logit_bias": logit_bias(body.logit_bias or {})})
            sampling.check(self._limits.vocabulary)
        return sampling

    def _constraint(self, body: fields.SamplingFields, tools: ToolUse | None) -> Constraint | None:
        """Return the constraint on the answer, or None; refuse one that is invalid or allows no first token."""
        given = {name: value for name in NAMES if (value := getattr(body, name)) is not None}
        form, name, found = body.response_format, next(iter(given), "response_format"), None
        if given and isinstance(form, fields.AnyObject | fields.SchemaFormat):
            raise FieldError(f"{name} cannot be combined with response_format.", name)
        if tools is not None:
            name, found = "tools", tools.constraint
        elif isinstance(form, fields.AnyObject):
            found = from_json_schema({"type": "object"})
        elif isinstance(form, fields.SchemaFormat):
            with named_field(f"{name}.json_schema.schema"):
                found = from_json_schema(form.json_schema.schema)
        elif given:
            found = constraint_of(given)
        if found is not None:
            with named_field(name):
                self._check_once(found)
        return found

    @cached_property
    def _guides(self) -> GuideFactory:  # created on first use, as it needs llguidance
        return GuideFactory(self._tokenizer, self._limits.vocabulary, [], kept=0)


def messages_of(given: list[fields.Message]) -> list[dict[str, Any]]:
    """Convert messages for the chat template: content as a string, arguments as objects; FieldError if invalid."""
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
        # Most templates expect content as a string.
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


def _check_result(where: str, message: fields.Message, known: set[str]) -> None:
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


def _within(name: str, value: int | None, high: int) -> int | None:
    """Return a field's value, which may be None; raise a FieldError if it is outside 1 to ``high``."""
    if value is not None and not 1 <= value <= high:
        raise wrong(name, f"1 to {high}", value)
    return value
