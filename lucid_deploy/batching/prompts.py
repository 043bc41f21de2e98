"""A file of prompts: JSON Lines, one object a line; all of it is checked before any of it runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lucid_deploy.batching.request import Request
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.generate import Sampling

if TYPE_CHECKING:
    from lucid_deploy.artifact.tokenizer import TextTokenizer
    from lucid_deploy.runtimes.session import Session

FIELDS = ("id", "prompt", "prompt_ids", "max_new_tokens", "temperature", "top_k", "top_p", "seed", "stop")
_SHOWN = 10  # faults that are named, of many
_EXAMPLE = '{"prompt": "text"}'


@dataclass(frozen=True)
class Defaults:
    """What holds for prompts that do not say otherwise.

    Attributes:
        max_new_tokens: Most tokens to generate.
        sampling: How tokens are chosen.
        stop: Strings that end an answer.
        stop_at_eos: Whether an end-of-sequence token ends an answer; for all prompts.
    """

    max_new_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()
    stop_at_eos: bool = True


@dataclass(frozen=True)
class Prompt:
    """One line of the file: its number, counted from 1, and what it asks for; text or token ids, never both."""

    line: int
    id: str | int | None
    text: str | None
    ids: tuple[int, ...] | None
    max_new_tokens: int
    sampling: Sampling
    stop: tuple[str, ...]
    stop_at_eos: bool

    def request(self, tokenizer: TextTokenizer | None) -> Request:
        """Return it as a request, the text tokenized."""
        if self.ids is not None:
            ids = list(self.ids)
        else:
            assert self.text is not None and tokenizer is not None
            ids = tokenizer.encode(self.text)
        return Request(ids, self.max_new_tokens, self.sampling, self.stop_at_eos)


@dataclass(frozen=True)
class PromptFile:
    """What :func:`read_prompts` has read: the prompts, and the sha256 of the file."""

    path: Path
    prompts: list[Prompt]
    sha256: str


def read_prompts(path: str | Path, defaults: Defaults) -> PromptFile:
    """Read a file of prompts; blank lines are left out, but counted.

    Raises:
        LucidError: There is no such file, it has no prompts, or lines are wrong: they are named by number.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LucidError(f"The prompts {path} cannot be read: {error.strerror or error}.") from error

    def parsed() -> Iterator[tuple[int, Callable[[], Prompt]]]:
        for number, line in enumerate(content.split(b"\n"), start=1):
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
    """Check every prompt against the model: its tokens, its length.

    Raises:
        LucidError: Prompts that cannot be run; they are named by line.
    """

    def check(prompt: Prompt) -> None:
        if tokenizer is None and (prompt.text is not None or prompt.stop):
            raise LucidError("the artifact has no tokenizer.json: give prompt_ids, and no stop strings")
        prompt.request(tokenizer).check(session)

    _all(file.path, ((prompt.line, lambda prompt=prompt: check(prompt)) for prompt in file.prompts))  # type: ignore[misc]


def _all(path: Path, steps: Iterator[tuple[int, Callable[[], Any]]]) -> list[Any]:
    """Do something for every line; collect the faults of all of them into one error."""
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
        raise LucidError(f"{path} has lines that cannot be run; nothing was.\n  " + "\n  ".join(faults) + more)
    return done


def _prompt(number: int, line: bytes, defaults: Defaults) -> Prompt:
    try:
        data = json.loads(line.decode())
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise LucidError(f"not JSON in UTF-8 ({error})") from error
    if not isinstance(data, dict):
        raise LucidError("not a JSON object")
    unknown = [key for key in data if key not in FIELDS]
    if unknown:
        raise LucidError(f"unknown field {unknown[0]!r}; known are {', '.join(FIELDS)}")
    given = {key: value for key, value in data.items() if value is not None}
    if ("prompt" in given) == ("prompt_ids" in given):
        raise LucidError("give either prompt or prompt_ids")
    base = defaults.sampling
    return Prompt(
        line=number,
        id=_id(given.get("id")),
        text=_text(given["prompt"], "prompt") if "prompt" in given else None,
        ids=tuple(_whole(item, "a token id") for item in _items(given["prompt_ids"]))
        if "prompt_ids" in given
        else None,
        max_new_tokens=_whole(given.get("max_new_tokens", defaults.max_new_tokens), "max_new_tokens"),
        sampling=Sampling(
            _number(given.get("temperature", base.temperature), "temperature"),
            _whole(given.get("top_k", base.top_k), "top_k"),
            _number(given.get("top_p", base.top_p), "top_p"),
            _whole(given["seed"], "seed") if "seed" in given else base.seed,
        ),
        stop=_stop(given["stop"]) if "stop" in given else defaults.stop,
        stop_at_eos=defaults.stop_at_eos,
    )


def _id(value: Any) -> str | int | None:
    if isinstance(value, str):
        return _text(value, "id")
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise LucidError(f"id must be a string or a whole number, not {json.dumps(value)[:40]}")


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise LucidError(f"{name} must be text that is not empty")
    try:
        value.encode()
    except UnicodeError as error:
        raise LucidError(f"{name} is not valid text: {error}") from error
    return value


def _items(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise LucidError("prompt_ids must be a list of token ids")
    return value


def _whole(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise LucidError(f"{name} must be a whole number, not {json.dumps(value)[:40]}")
    return value


def _number(value: Any, name: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e300:
        raise LucidError(f"{name} must be a number, not {json.dumps(value)[:40]}")
    return float(value)


def _stop(value: Any) -> tuple[str, ...]:
    stops: Sequence[Any] = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise LucidError("stop must be a string or a list of strings, none of them empty")
    return tuple(stops)
