"""Prompt files in JSON Lines, one object per line; all lines are checked before any prompt runs."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct

from lucid_deploy.batching.request import Request
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.constraint import (
    NAMES,
    Constraint,
    GuidedChoice,
    GuidedGrammar,
    GuidedJson,
    GuidedRegex,
    constraint_of,
)
from lucid_deploy.generation.sampling import Sampling, bad_word_ids, logit_bias
from lucid_deploy.generation.text_stream import check_stops
from lucid_deploy.json_fields import FieldError, decode

if TYPE_CHECKING:
    from lucid_deploy.artifact.tokenizer import TextTokenizer
    from lucid_deploy.runtimes.session import Session

_SHOWN = 10  # most invalid lines that a message lists
_BY_TEXT = ("logit_bias", "bad_words")  # fields that have another type in Sampling than in a line
_EXAMPLE = '{"prompt": "text"}'


_StopText = Annotated[str, Meta(min_length=1)]


class PromptLine(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The fields of a line. null is the same as leaving a field out."""

    id: str | int | None = None
    prompt: str | None = None
    prompt_ids: list[int] | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    guided_json: GuidedJson = None
    guided_regex: GuidedRegex = None
    guided_choice: GuidedChoice = None
    guided_grammar: GuidedGrammar = None
    bad_words: list[_StopText] | None = None
    stop: _StopText | list[_StopText] | None = None
    adapter: str | None = None


@dataclass(frozen=True)
class PromptDefaults:
    """Values for the fields that a line leaves out; ``stop_at_eos`` applies to all prompts."""

    max_new_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()
    stop_at_eos: bool = True
    bad_words: tuple[str, ...] = ()
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        check_stops(self.stop)


@dataclass(frozen=True)
class Prompt:
    """One line of the file: its number, counted from 1, its prompt as text or as token ids, and its options."""

    line: int
    id: str | int | None
    text: str | None
    ids: tuple[int, ...] | None
    max_new_tokens: int
    sampling: Sampling
    stop: tuple[str, ...]
    stop_at_eos: bool
    bad_words: tuple[str, ...] = ()
    constraint: Constraint | None = None
    adapter: str | None = None

    def request(self, tokenizer: TextTokenizer | None) -> Request:
        """Return the request for the batcher; tokenize the prompt if it is text."""
        if self.ids is not None:
            ids = list(self.ids)
        else:
            assert self.text is not None and tokenizer is not None
            ids = tokenizer.encode(self.text)
        sampling = self.sampling
        if self.bad_words:
            assert tokenizer is not None
            sampling = replace(sampling, bad_words=bad_word_ids(self.bad_words, tokenizer))
        return Request(
            ids, self.max_new_tokens, sampling, self.stop_at_eos, constraint=self.constraint, adapter=self.adapter
        )


@dataclass(frozen=True)
class PromptFile:
    """The prompts of a file, and its sha256."""

    path: Path
    prompts: list[Prompt]
    sha256: str


def read_prompts(path: str | Path, defaults: PromptDefaults) -> PromptFile:
    """Read a prompt file; blank lines are skipped, but counted. LucidError if it is unreadable, invalid or empty."""
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LucidError(f"The prompts {path} cannot be read: {error.strerror or error}.") from error

    def parsed() -> Iterator[tuple[int, Callable[[], Prompt]]]:
        text = content.removeprefix(codecs.BOM_UTF8)  # written by Windows' programs; RFC 8259 lets parsers ignore it
        for number, line in enumerate(text.split(b"\n"), start=1):
            if line.strip():
                yield number, lambda number=number, line=line: _prompt(number, line, defaults)  # type: ignore[misc]

    prompts = _all(path, parsed())
    if not prompts:
        raise LucidError(f"{path} has no prompts; each line is a JSON object such as {_EXAMPLE}.")
    seen: dict[str | int, int] = {}
    for prompt in prompts:
        if prompt.id is not None and seen.setdefault(prompt.id, prompt.line) != prompt.line:
            raise LucidError(f"{path}: lines {seen[prompt.id]} and {prompt.line} have the same id, {prompt.id!r}.")
    return PromptFile(path, prompts, hashlib.sha256(content).hexdigest())


def check_prompts(file: PromptFile, session: Session[Any], tokenizer: TextTokenizer | None) -> None:
    """Check that the model can run every prompt (tokens, length, adapter); raise a LucidError that lists errors."""

    def check(prompt: Prompt) -> None:
        if tokenizer is None and (prompt.text is not None or prompt.stop or prompt.bad_words or prompt.constraint):
            raise LucidError(
                "the artifact has no tokenizer.json: give prompt_ids, and no stop strings, bad words or guided fields"
            )
        prompt.request(tokenizer).check(session)

    _all(file.path, ((prompt.line, lambda prompt=prompt: check(prompt)) for prompt in file.prompts))  # type: ignore[misc]


def _all(path: Path, steps: Iterator[tuple[int, Callable[[], Any]]]) -> list[Any]:
    """Call each line's function and return the results; if any fail, raise an error that lists the first few."""
    done, faults, count = [], [], 0
    for number, step in steps:
        try:
            done.append(step())
        except LucidError as error:
            count += 1
            if count <= _SHOWN:
                faults.append(f"line {number}: {str(error).rstrip('.')}")
    if faults:
        more = f"\n  and {count - len(faults)} more" if count > len(faults) else ""
        raise LucidError(f"{path} has lines that cannot be run, so none was run.\n  " + "\n  ".join(faults) + more)
    return done


def _prompt(number: int, line: bytes, defaults: PromptDefaults) -> Prompt:
    given, base = _line(line), defaults.sampling
    if (given.prompt is None) == (given.prompt_ids is None):
        raise LucidError("give either prompt or prompt_ids")
    _check_text("prompt", given.prompt)
    _check_text("id", given.id)
    return Prompt(
        line=number,
        id=given.id,
        text=given.prompt,
        ids=None if given.prompt_ids is None else tuple(given.prompt_ids),
        max_new_tokens=_or(given.max_new_tokens, defaults.max_new_tokens),
        sampling=_sampling(given, base),
        stop=(given.stop,) if isinstance(given.stop, str) else tuple(_or(given.stop, defaults.stop)),
        stop_at_eos=defaults.stop_at_eos,
        bad_words=tuple(_or(given.bad_words, defaults.bad_words)),
        constraint=_or(constraint_of({name: getattr(given, name) for name in NAMES}), defaults.constraint),
        adapter=given.adapter,
    )


def _sampling(given: PromptLine, base: Sampling) -> Sampling:
    values = {item.name: getattr(given, item.name) for item in fields(Sampling) if item.name not in _BY_TEXT}
    if given.logit_bias is not None:
        values["logit_bias"] = logit_bias(given.logit_bias)
    return replace(base, **{name: value for name, value in values.items() if value is not None})


def _line(line: bytes) -> PromptLine:
    try:
        return decode(line, PromptLine, "line")
    except FieldError as error:
        if error.code != "unknown_parameter":
            raise
        raise LucidError(f"{error} Known fields are {', '.join(PromptLine.__struct_fields__)}.") from error


def _or(given: Any, default: Any) -> Any:
    return default if given is None else given


def _check_text(name: str, value: str | int | None) -> None:
    if isinstance(value, str) and not value.strip():
        raise LucidError(f"{name} must be text that is not empty")
