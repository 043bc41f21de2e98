"""The requests of the API: a body in, a job out. What would change the result and is not supported is refused."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lucid_deploy.artifact.chat import ChatTemplate, ChatTemplates
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.constraint import (
    NAMES,
    Constraint,
    OncePerConstraint,
    constraint_of,
    from_json_schema,
    named,
)
from lucid_deploy.generation.guide import GuideFactory
from lucid_deploy.generation.sampling import Sampling, bad_word_ids, logit_bias
from lucid_deploy.json_fields import FieldError, decode, shown, wrong
from lucid_deploy.serving.bodies import (
    MOST_SOLVE_TOKENS,
    ChatRequest,
    CompletionRequest,
    ResponseFormat,
    ResponseRequest,
    SamplingFields,
    SolveRequest,
    refuse_unsupported,
)
from lucid_deploy.serving.errors import ApiError, invalid, no_such_model
from lucid_deploy.serving.jobs import Job
from lucid_deploy.serving.limits import Limits
from lucid_deploy.serving.responses_api import as_chat, renamed, repeated
from lucid_deploy.serving.tool_formats import ToolFormat
from lucid_deploy.serving.tool_reader import ToolUse, messages_of, tool_use_of

MOST_LOGPROBS_TOGETHER = 160  # for one token of each generation
DEFAULT_MAX_TOKENS = 16  # of /v1/completions, as OpenAI has it
PROMPT = "a text, a list of texts, token ids, or a list of lists of token ids"
_USUAL_ROLES = ("system", "user", "assistant", "tool")
PromptItems = str | list[int]
Kind = Literal["completion", "chat", "response", "solve"]  # of request


@dataclass(frozen=True)
class PreparedRequest:
    """A request that was read: what to generate and how to answer."""

    job: Job  # what to generate
    stream: bool  # whether tokens are sent as they come
    include_usage: bool  # whether a stream ends with counts
    chat: bool  # whether it is a chat
    echo: tuple[str, ...] = field(default=())  # what each prompt's answers begin with
    cache_salt: str = ""  # chosen by the client; stored prefixes are shared under the same salt only
    response: dict[str, Any] | None = None  # what an answer of ``/v1/responses`` repeats of its request
    place: tuple[int, int] | None = None  # layer and head of ``/v1/lucid/solve``
    tools: ToolFormat | None = None  # how the answer writes calls of tools, if it may

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted once."""
        return sum(len(prompt) for prompt in self.job.prompts)


class RequestReader:
    """Reads bodies."""

    def __init__(self, model: str, limits: Limits, tokenizer: TextTokenizer, templates: ChatTemplates | None) -> None:
        self._model = model
        self._limits = limits
        self._tokenizer = tokenizer
        self._templates = templates
        self._constraints = ConstraintReader(tokenizer, limits.vocabulary)
        self._kinds: dict[Kind, tuple[Any, Callable[[Any], PreparedRequest]]] = {
            "completion": (CompletionRequest, self._completion),
            "chat": (ChatRequest, self._chat),
            "response": (ResponseRequest, self._response),
            "solve": (SolveRequest, self._solve),
        }

    @property
    def can_chat(self) -> bool:
        """Whether there are chat templates."""
        return self._templates is not None

    @property
    def chat_refusal(self) -> str | None:
        """Why chats without tools cannot be rendered, though there are chat templates; None if they can."""
        if self._templates is None:
            return None
        try:
            self._templates.chosen()
        except LucidError as error:
            return str(error)
        return None

    def read(self, kind: Kind, data: bytes) -> PreparedRequest:
        """Read a body of one kind."""
        form, read = self._kinds[kind]
        try:
            return read(decode(data, form, "body"))
        except FieldError as error:
            error = renamed(error) if kind == "response" else error
            raise invalid(str(error), error.param, error.code) from error

    def _response(self, body: ResponseRequest) -> PreparedRequest:
        refuse_unsupported(body)
        return replace(self._chat(as_chat(body)), response=repeated(body))

    def _solve(self, body: SolveRequest) -> PreparedRequest:
        self._check_model(body)
        ids = self._prompt(body.prompt)
        if len(ids) > MOST_SOLVE_TOKENS:
            message = f"The prompt has {len(ids)} tokens; the solve is shown for {MOST_SOLVE_TOKENS}."
            raise FieldError(message, "prompt", "context_length_exceeded")
        return PreparedRequest(Job((ids,)), False, False, False, place=(body.layer, body.head))

    def _completion(self, body: CompletionRequest) -> PreparedRequest:
        self._check_model(body)
        limits = self._limits
        if body.best_of not in (None, body.n or 1):
            raise _unsupported("best_of is not supported by this server; leave it out.", "best_of")
        if body.echo and body.logprobs is not None:
            raise _unsupported("echo together with logprobs is not supported.", "echo")
        new = _within("max_tokens", body.max_tokens, limits.new_tokens)
        items = self._prompt_items(body.prompt)
        prompts = tuple(self._prompt(item) for item in items)
        job = self._job(body, prompts, DEFAULT_MAX_TOKENS if new is None else new, body.logprobs)
        echo = tuple(map(self._echo, items)) if body.echo else ()
        return PreparedRequest(job, *_streaming(body), chat=False, echo=echo, cache_salt=body.cache_salt or "")

    def _chat(self, body: ChatRequest) -> PreparedRequest:
        self._check_model(body)
        if self._templates is None:
            message = "The model has no chat template, so that it cannot chat; use /v1/completions."
            raise invalid(message, code="no_chat_template")
        if body.top_logprobs is not None and not body.logprobs:
            raise FieldError("top_logprobs needs logprobs: true.", "top_logprobs", "invalid_value")
        older = _within("max_tokens", body.max_tokens, self._limits.new_tokens)
        new = _within("max_completion_tokens", body.max_completion_tokens, self._limits.new_tokens)
        tools = tool_use_of(body, self._templates, self._tokenizer)
        prompt = self._conversation(body, self._templates, tools)
        top = (body.top_logprobs or 0) if body.logprobs else None
        job = self._job(body, (prompt,), older if new is None else new, top)
        if tools is not None:
            self._constraints.check("tools", tools.constraint)
            shown = () if tools.trigger_token is None else (tools.trigger_token,)
            job = replace(job, constraint=tools.constraint, shown_tokens=shown)
        form = None if tools is None else tools.form
        return PreparedRequest(job, *_streaming(body), chat=True, cache_salt=body.cache_salt or "", tools=form)

    def _check_model(self, body: SamplingFields | SolveRequest) -> None:
        if body.model != self._model:
            raise no_such_model(body.model, self._model)
        refuse_unsupported(body)

    def _prompt_items(self, given: str | list[str | int | list[int]]) -> list[PromptItems]:
        """Return the prompts that a field holds: texts, or lists of token ids."""
        if isinstance(given, str):
            return [given]
        if not given:
            raise FieldError("The prompt is empty.", "prompt", "empty_prompt")
        if len({type(item) for item in given}) > 1:
            raise wrong("prompt", PROMPT, "a mixture")
        if isinstance(given[0], int):
            return [[item for item in given if isinstance(item, int)]]
        if len(given) > self._limits.choices:
            message = f"{len(given)} prompts are too many; this server takes {self._limits.choices} in a request."
            raise FieldError(message, "prompt", "invalid_value")
        return [item for item in given if not isinstance(item, int)]

    def _prompt(self, item: PromptItems) -> tuple[int, ...]:
        if isinstance(item, list):
            for token in item:
                if not 0 <= token < self._limits.vocabulary:
                    message = f"Token id {shown(token)} is outside the vocabulary (0 to {self._limits.vocabulary - 1})."
                    raise FieldError(message, "prompt", "invalid_value")
            return self._checked_prompt(item, "prompt")
        if not item:
            raise FieldError("The prompt is empty.", "prompt", "empty_prompt")
        return self._checked_prompt(self._encode(item, "prompt"), "prompt")

    def _echo(self, item: PromptItems) -> str:
        return item if isinstance(item, str) else self._tokenizer.decode(item)

    def _conversation(self, body: ChatRequest, templates: ChatTemplates, tools: ToolUse | None) -> tuple[int, ...]:
        if tools is None and (refusal := self.chat_refusal) is not None:
            raise invalid(refusal, code="no_chat_template")
        template = templates.chosen(tools=tools is not None)
        messages = messages_of(body.messages)
        self._check_length(sum(map(_characters, messages)), "messages")
        try:
            rendered = template.render(messages, None if tools is None else tools.shown)
        except LucidError as error:
            raise FieldError(str(error), "messages", "invalid_value") from error
        _refuse_left_out(template, messages, tools, rendered)
        return self._checked_prompt(self._encode(rendered, "messages", add_special_tokens=False), "messages")

    def _encode(self, text: str, name: str, add_special_tokens: bool = True) -> list[int]:
        self._check_length(len(text), name)
        try:
            return self._tokenizer.encode(text, add_special_tokens)
        except LucidError as error:
            raise FieldError(str(error), name, "tokenizer_failed") from error

    def _check_length(self, characters: int, name: str) -> None:
        """Refuse what cannot fit, before the work of tokenizing it."""
        limits = self._limits
        if characters > limits.prompt_characters:
            message = (
                f"The prompt has {characters} characters; this server takes {limits.prompt_characters}, which is more "
                f"than {limits.prompt_tokens} tokens have."
            )
            raise FieldError(message, name, "context_length_exceeded")

    def _checked_prompt(self, ids: list[int], name: str) -> tuple[int, ...]:
        limits = self._limits
        if not ids:
            raise FieldError("The prompt is empty: it has no tokens.", name, "empty_prompt")
        if len(ids) >= limits.context:
            message = f"The prompt has {len(ids)} tokens and the model's context is {limits.context}, answer included."
            raise FieldError(message, name, "context_length_exceeded")
        if len(ids) > limits.prompt_tokens:
            message = f"The prompt has {len(ids)} tokens; this server takes {limits.prompt_tokens}."
            raise FieldError(message, name, "context_length_exceeded")
        if (highest := max(ids)) >= limits.vocabulary:
            message = (
                f"The tokenizer gives token {highest}, the model knows {limits.vocabulary}; they do not fit together."
            )
            raise FieldError(message, name, "invalid_value")
        return tuple(ids)

    def _job(
        self,
        body: SamplingFields,
        prompts: tuple[tuple[int, ...], ...],
        new_tokens: int | None,
        top_logprobs: int | None,
    ) -> Job:
        limits = self._limits
        if body.return_tokens_as_token_ids and top_logprobs is None:
            message = "return_tokens_as_token_ids changes log-probabilities, and none were asked for with logprobs."
            raise FieldError(message, "return_tokens_as_token_ids", "invalid_value")
        n = _within("n", body.n, limits.choices) or 1
        rows = len(prompts) * n
        if rows > limits.choices:
            message = (
                f"{len(prompts)} prompts with n {n} are {rows} generations; this server takes {limits.choices} in a "
                "request. Send several."
            )
            raise FieldError(message, "n", "invalid_value")
        if rows * (top_logprobs or 0) > MOST_LOGPROBS_TOGETHER:
            message = (
                f"{top_logprobs} log-probabilities for each of {rows} generations are too many; this server reports "
                f"{MOST_LOGPROBS_TOGETHER} a request. Ask for fewer."
            )
            raise FieldError(message, "logprobs", "invalid_value")
        return Job(
            prompts=prompts,
            n=n,
            max_new_tokens=self._new_tokens(new_tokens, max(map(len, prompts))),
            sampling=sampling_of(body, self._tokenizer, limits.vocabulary),
            stops=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
            stop_at_eos=not body.ignore_eos,
            top_logprobs=None if top_logprobs is None else min(top_logprobs, limits.vocabulary),
            constraint=self._constraints.read(body),
            tokens_as_ids=bool(body.return_tokens_as_token_ids),
        )

    def _new_tokens(self, wanted: int | None, longest: int) -> int:
        """Return how many tokens to generate behind a prompt; None: all that fit."""
        room = self._limits.context - longest
        if wanted is None:
            return min(self._limits.new_tokens, room)
        if wanted > room:
            message = (
                f"The model's context is {self._limits.context} tokens; {longest} of the prompt and {wanted} new ones "
                f"are {longest + wanted}. Shorten the prompt or ask for fewer."
            )
            raise FieldError(message, None, "context_length_exceeded")
        return wanted


def _refuse_left_out(
    template: ChatTemplate, messages: list[dict[str, Any]], tools: ToolUse | None, rendered: str
) -> None:
    """Refuse messages of unusual roles whose text the template passes over without a word, as many do.

    A message is left out if another text in its place, in the same role, changes nothing. Taking it away would tell
    less: then the others have other places, by which templates go. All are changed at once, each marked by a number of
    its own, so that many roles cost one rendering; one by one only those whose mark is not written.
    """
    places = [place for place, each in enumerate(messages) if each["role"] not in _USUAL_ROLES and each["content"]]
    if not places:
        return
    shown_tools = None if tools is None else tools.shown
    mark, width = f"{secrets.randbelow(10**24):024}", len(str(len(messages)))  # digits: no change of case, no escapes
    marks = {place: f"{mark}{place:0{width}}" for place in places}
    written = re.findall(rf"{mark}(\d{{{width}}})", _with_endings(template, messages, shown_tools, marks) or "")
    for place in sorted(marks.keys() - set(map(int, written))):  # a template may read without writing
        if _with_endings(template, messages, shown_tools, {place: mark}) == rendered:
            field, known = f"messages[{place}].role", ", ".join(_USUAL_ROLES)
            role = shown(messages[place]["role"])
            message = f"{field}: the model's chat template leaves out this message of the role {role}. Use {known}."
            raise FieldError(message, field, "invalid_value")


def _with_endings(
    template: ChatTemplate,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    endings: dict[int, str],
) -> str | None:
    """Return the chat with something behind the contents at some places; None if the template refuses that."""
    changed = [{**each, "content": each["content"] + endings.get(place, "")} for place, each in enumerate(messages)]
    try:
        return template.render(changed, tools)
    except LucidError:  # so the template has read a content
        return None


def _characters(message: dict[str, Any]) -> int:
    """Return the characters of a message that reach the prompt."""
    return len(message["content"]) + sum(len(str(call)) for call in message.get("tool_calls", ()))


def _within(name: str, value: int | None, high: int) -> int | None:
    """Return a whole number from 1 up to what this server allows; None if it was not given."""
    if value is not None and not 1 <= value <= high:
        raise wrong(name, f"1 to {high}", value)
    return value


def _streaming(body: SamplingFields) -> tuple[bool, bool]:
    """Return whether to stream, and whether the stream ends with counts."""
    if body.stream_options is None:
        return bool(body.stream), False
    if not body.stream:
        raise FieldError("stream_options needs stream: true.", "stream_options", "invalid_value")
    refuse_unsupported(body.stream_options, "stream_options.")
    return True, bool(body.stream_options.include_usage)


def _unsupported(message: str, name: str) -> ApiError:
    return invalid(message, name, "unsupported_parameter")


class ConstraintReader:
    """Reads what answers must be, and tries whether an answer can begin."""

    def __init__(self, tokenizer: TextTokenizer, vocabulary: int) -> None:
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._guides: GuideFactory | None = None
        # That an answer can begin, and not what was compiled: what one body left would count as the next one's memory.
        self._try = OncePerConstraint(self._begin, 1024)

    def read(self, body: SamplingFields) -> Constraint | None:
        """Return the constraint that a body asks for, or None."""
        name, found = "response_format", _formatted(body.response_format)
        given = {name: getattr(body, name) for name in NAMES}
        other = next((name for name in NAMES if given[name] is not None), None)
        if other is not None:
            if found is not None:
                raise FieldError(f"{other} cannot be combined with response_format.", other, "invalid_value")
            name, found = other, constraint_of(given)
        if found is not None:
            self.check(name, found)
        return found

    def check(self, name: str, constraint: Constraint) -> None:
        """Try whether an answer can begin."""
        with named_field(name):
            self._try(constraint)

    def _begin(self, constraint: Constraint) -> None:
        if self._guides is None:
            self._guides = GuideFactory(self._tokenizer, self._vocabulary, [], kept=0)
        self._guides.check(constraint)


def _formatted(given: ResponseFormat | None) -> Constraint | None:
    if given is not None and given.type != "json_schema" and given.json_schema is not None:
        where = "response_format.json_schema"
        raise FieldError(f"{where} is for the type json_schema.", where, "invalid_value")
    if given is None or given.type == "text":
        return None
    if given.type == "json_object":
        return from_json_schema({"type": "object"})
    if given.json_schema is None:
        raise FieldError(
            "The field response_format.json_schema is missing.", "response_format.json_schema", "missing_field"
        )
    where, schema = "response_format.json_schema.schema", given.json_schema.schema
    if schema is None:
        raise FieldError(f"The field {where} is missing.", where, "missing_field")
    return named(where, from_json_schema, schema)


def sampling_of(body: SamplingFields, tokenizer: TextTokenizer, vocabulary: int) -> Sampling:
    """Return how tokens are chosen."""
    with named_field("bad_words"):
        bad_words = bad_word_ids(body.bad_words or (), tokenizer)
    sampling = Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=body.top_k or 0,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=None if body.seed is None else body.seed % 2**64,  # the generator takes no negative ones
        min_p=body.min_p or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        bad_words=bad_words,
    )
    with named_field("logit_bias"):
        sampling = replace(sampling, logit_bias=logit_bias(body.logit_bias or {}))
        sampling.check(vocabulary)
    return sampling


@contextmanager
def named_field(name: str) -> Iterator[None]:
    """Say of an error in the body of the ``with`` which field it is about."""
    try:
        yield
    except FieldError:
        raise
    except LucidError as error:
        message = str(error) if str(error).startswith(name) else f"{name}: {error}"
        raise FieldError(message, name, "invalid_value") from error
