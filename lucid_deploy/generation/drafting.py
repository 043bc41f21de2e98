"""Drafters for speculative decoding: they guess the next tokens cheaply, and one step of the model verifies all.

A drafter proposes one sequence, without probabilities. A draft is accepted if the same token is chosen from the model's
own logits. So, up to rounding, the answer equals that of plain decoding; a wrong guess only costs time.
"""

from __future__ import annotations

import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.errors import LucidError, reading
from lucid_deploy.model.description import drafts_unsupported_reason
from lucid_deploy.runtimes.cache_rows import make_room, take_back
from lucid_deploy.runtimes.open import open_session
from lucid_deploy.runtimes.options import RuntimeOptions
from lucid_deploy.runtimes.session import MOST, Array, Session

MODES = ("off", "lookup", "draft")

MOST_DRAFTS = MOST - 1  # a step also runs the token that was chosen last
LONGEST = 4  # tokens of the longest n-gram that is looked up
_FIRST_LENGTHS = {1: 2, 2: 4, 3: 6, 4: 8}  # initial number of drafts, by the length of the n-gram that was found
_MOST_PAUSE = 63  # most successive steps without drafts
_FIRST_ROOM = 1024  # initial size of a text's buffer in tokens
_FIRST_LENGTH = 4  # initial number of drafts of a draft model
_NOT_TOKENS = ("version", "truncation", "padding")  # keys of tokenizer.json that do not change the tokens' ids


class Drafter(ABC):
    """Guesses the next tokens of one text, all of whose tokens are passed to :meth:`add` in order.

    Attributes:
        chunk: Most tokens of the text that one proposal may run through the draft model; None: any number.
        ends: Tokens that end the answer; a proposal stops before the first of them.
    """

    chunk: int | None = None
    ends: Container[int] = ()

    @abstractmethod
    def add(self, tokens: Sequence[int]) -> None:
        """Append tokens to the text."""

    @abstractmethod
    def propose(self, most: int) -> list[int]:
        """Return up to ``most`` guessed next tokens; none if a step without drafts is better."""

    @abstractmethod
    def learn(self, proposed: int, accepted: int) -> None:
        """Adapt to how many tokens of the last proposal were accepted."""


MakeDrafter: TypeAlias = Callable[[], Drafter]


@dataclass
class DraftLength:
    """The number of tokens to draft, adapted to how many are accepted; 0 in pauses after failures.

    A fully accepted proposal doubles the length; a partly accepted one sets it to the accepted number plus one. A fully
    rejected one halves it and pauses drafting, for 1, 3, 7, … 63 steps after successive failures, so that a text that
    cannot be guessed costs little more than plain decoding.
    """

    length: int
    failures: int = 0
    pause: int = 0

    def now(self) -> int:
        """Return how many tokens to draft in this step; 0 in a pause, which each call shortens by one step."""
        if self.pause:
            self.pause -= 1
            return 0
        return self.length

    def learn(self, proposed: int, accepted: int) -> None:
        if accepted:
            self.failures = 0
            self.length = min(2 * self.length, MOST_DRAFTS) if accepted == proposed else accepted + 1
            return
        self.failures += 1
        self.length = max(self.length // 2, 1)
        self.pause = min(2**self.failures - 1, _MOST_PAUSE)


class LookupDrafter(Drafter):
    """Drafts what followed the last earlier occurrence of the text's final n-gram (prompt lookup).

    This is the longest n-gram, of 4 to 1 tokens, that occurred before. The number of drafts is adapted for each n
    separately: what followed a single token predicts little in prose, but much in a list that is copied.
    """

    def __init__(self) -> None:
        self._room, self._count = np.zeros(_FIRST_ROOM, np.int32), 0
        self._lengths = {n: DraftLength(length) for n, length in _FIRST_LENGTHS.items()}
        self._used = 0  # length of the n-gram of the last proposal

    def add(self, tokens: Sequence[int]) -> None:
        end = self._count + len(tokens)
        if end > len(self._room):
            self._room = np.concatenate([self._text, np.zeros(max(len(self._room), end), np.int32)])
        self._room[self._count : end] = tokens
        self._count = end

    def propose(self, most: int) -> list[int]:
        # One pass finds all earlier occurrences of the last token. An index of n-grams was tried: for 8192 tokens it
        # took 7 ms to fill, and 100 times their memory.
        text, found = self._text, 0
        places = longer = np.flatnonzero(text[:-1] == text[-1:]) + 1  # positions after the earlier occurrences
        while len(longer) and found < LONGEST:
            places, found = longer, found + 1
            longer = places[places > found]
            longer = longer[text[longer - found - 1] == text[len(text) - found - 1]]
        if not found:
            return []
        self._used = found
        return self._copy(int(places[-1]), min(self._lengths[found].now(), most))

    def learn(self, proposed: int, accepted: int) -> None:
        self._lengths[self._used].learn(proposed, accepted)

    @property
    def _text(self) -> NDArray[np.int32]:
        return self._room[: self._count]

    def _copy(self, start: int, count: int) -> list[int]:
        """Copy ``count`` tokens, repeating those from ``start`` to the text's end; stop before a token of ``ends``."""
        period = self._count - start
        copied = (int(self._text[start + i % period]) for i in range(count))
        return list(itertools.takewhile(lambda token: token not in self.ends, copied))


class ModelDrafter(Drafter):
    """Drafts with a second, smaller model, token by token, with its own cache.

    Several drafters may share a session; ``vocabulary`` is the vocabulary size of the target model.
    """

    def __init__(self, session: Session[Any], vocabulary: int) -> None:
        self._session = session
        self._known = min(vocabulary, session.config.vocab_size)
        self._cache = session.empty_cache(1)
        self._held: list[int] = []  # tokens in the cache
        self._ids: list[int] = []  # the text
        self._is_lost = False  # whether the text has a token outside the draft model's vocabulary
        self._length = DraftLength(_FIRST_LENGTH)

    def add(self, tokens: Sequence[int]) -> None:
        self._ids += tokens
        self._is_lost |= max(tokens, default=0) >= self._session.config.vocab_size

    def propose(self, most: int) -> list[int]:
        limit = self._session.context_limit
        room = most if limit is None else limit - len(self._ids)
        count = min(self._length.now(), most, room)
        if count < 1 or self._is_lost:
            return []
        self._go_back()
        logits = self._catch_up(count)
        if len(self._held) < len(self._ids):
            return []
        drafts: list[int] = []
        while (token := int(logits[0, -1, : self._known].argmax())) not in self.ends:
            drafts.append(token)
            if len(drafts) == count:
                break
            logits = self._session.decode(np.array([[token]], dtype=np.int64), self._cache)
            self._held.append(token)
        return drafts

    def learn(self, proposed: int, accepted: int) -> None:
        self._length.learn(proposed, accepted)

    def _catch_up(self, ahead: int) -> Array:
        """Run up to a chunk of the uncached tokens, with room for ``ahead`` more; return the last one's logits."""
        new = np.array([self._ids[len(self._held) :][: self.chunk]], dtype=np.int64)
        make_room(self._session, self._cache, new.shape[1] + ahead)
        logits = (self._session.decode if new.shape[1] == 1 else self._session.prefill)(new, self._cache)
        self._held += new[0].tolist()
        return logits

    def _go_back(self) -> None:
        """Cut the cache back to its common prefix with the text without its last token, whose logits are needed."""
        pairs = zip(self._held, self._ids[:-1], strict=False)
        shared = next(
            (i for i, (held, said) in enumerate(pairs) if held != said), min(len(self._held), len(self._ids) - 1)
        )
        if shared < len(self._held):
            take_back(self._session, self._cache, len(self._held) - shared, np.array([0]))
            del self._held[shared:]


class ModelDrafters:
    """Makes drafters that share the session of a draft model."""

    def __init__(self, session: Session[Any], vocabulary: int) -> None:
        self.session, self._vocabulary = session, vocabulary

    def __call__(self) -> ModelDrafter:
        return ModelDrafter(self.session, self._vocabulary)

    def close(self) -> None:
        """Close the session, after which its drafters cannot be used."""
        self.session.close()


def check_draft(artifact: Artifact, draft: Artifact) -> None:
    """Raise a LucidError unless both have the same token ids and ``draft`` can drop rejected drafts from its cache."""
    if _tokens(artifact) != _tokens(draft):
        raise LucidError(
            f"--draft {draft.directory} has another tokenizer than {artifact.directory}, so its token ids stand for "
            "other texts. Choose a draft model of the same family, or --speculate lookup, which needs none."
        )
    if _tokens(artifact) is None and artifact.config.vocab_size != draft.config.vocab_size:
        raise LucidError(
            f"--draft {draft.directory} has a vocabulary of {draft.config.vocab_size} tokens and {artifact.directory} "
            f"one of {artifact.config.vocab_size}, and neither has a tokenizer to compare. Choose another draft model."
        )
    obstacle = drafts_unsupported_reason(draft.manifest.layers)
    if obstacle is not None:
        raise LucidError(f"--draft {draft.directory} cannot draft: {obstacle}. Choose another draft model.")


def _tokens(artifact: Artifact) -> dict[str, Any] | None:
    """Return an artifact's tokenizer.json without the keys that do not change token ids; None if it has none."""
    path = artifact.path("tokenizer.json")
    if not path.is_file():
        return None
    with reading(path):
        content = path.read_bytes()
    try:
        return {key: value for key, value in json.loads(content).items() if key not in _NOT_TOKENS}
    except (ValueError, AttributeError, RecursionError) as error:
        raise LucidError(f"{path} is not a tokenizer: {error}. Export it again.") from error


def open_drafters(
    mode: str, artifact: Artifact, draft: str | Path | None = None, options: RuntimeOptions | None = None
) -> MakeDrafter | None:
    """Return a function that makes a drafter for each text; None without speculation.

    ``mode`` is one of :data:`MODES`. With the mode ``draft``, ``draft`` is the draft model's artifact, opened with
    ``options`` but without ablation and adapter. Raises LucidError as :func:`check_drafters` and ``open_session`` do.
    """
    opened = check_drafters(mode, artifact, draft)
    if opened is not None:
        try:
            session = open_session(opened, replace(options or RuntimeOptions(), ablate=None, adapter=None))
        except LucidError as error:
            raise type(error)(f"--draft {draft} cannot be opened: {error}") from error
        return ModelDrafters(session, artifact.config.vocab_size)
    return None if mode == "off" else LookupDrafter


def check_drafters(mode: str, artifact: Artifact, draft: str | Path | None = None) -> Artifact | None:
    """Return the draft model's artifact, or None if ``mode`` needs none; raise a LucidError for invalid arguments."""
    if mode not in MODES:
        raise LucidError(f"speculate must be {', '.join(MODES)}, not {mode!r}.")
    if (draft is not None) != (mode == "draft"):
        raise LucidError("--speculate draft and --draft ARTIFACT go together: give both, or neither.")
    if mode == "off":
        return None
    obstacle = drafts_unsupported_reason(artifact.manifest.layers)
    if obstacle is not None:
        raise LucidError(f"--speculate cannot be used with {artifact.directory}: {obstacle}. Leave it out.")
    if draft is None:
        return None
    opened = open_artifact(draft)
    check_draft(artifact, opened)
    return opened
