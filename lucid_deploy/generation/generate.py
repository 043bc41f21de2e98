"""Generate an answer with any session: prefill the prompt, then decode; and conversations that reuse their cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lucid_deploy.errors import LucidError
from lucid_deploy.generation.drafting import Drafter, MakeDrafter
from lucid_deploy.generation.guide import Guide
from lucid_deploy.generation.sampling import Sampler, Sampling
from lucid_deploy.generation.speculation import Chooser, DraftCounts, Row, prepare_speculation, propose
from lucid_deploy.runtimes.cache_rows import make_room, pack, take_back
from lucid_deploy.runtimes.session import Array, Cache, Session


def check_prompt(session: Session[Any], prompt_ids: list[int], max_new_tokens: int) -> None:
    """Raise a LucidError if a session cannot run a prompt or the number of new tokens is not positive."""
    if max_new_tokens < 1:
        raise LucidError(f"max_new_tokens must be at least 1, not {max_new_tokens}.")
    if not prompt_ids:
        raise LucidError("The prompt is empty: it has no tokens.")
    highest = session.config.vocab_size - 1
    for token in prompt_ids:  # in Python: an id may be too large for numpy's integers
        if not 0 <= token <= highest:
            raise LucidError(
                f"Token id {token} is outside the vocabulary (0 to {highest}); the tokenizer may be another model's."
            )
    session.check_length(len(prompt_ids))


@dataclass
class Generation:
    """A running generation of one prompt. Iterate over it for the tokens.

    Attributes:
        prefill_chunk: Most prompt tokens that run at once; None: :attr:`Session.prefill_chunk`.
        stop_at_eos: Whether an end-of-sequence token of the model ends the answer; that token is not yielded.
        finish_reason: Set at the end: ``eos`` (also when the guide allows nothing more), ``length`` (max_new_tokens) or
            ``context`` (no room left).
        progress: Called after each chunk of the prompt with (tokens done, tokens to run); neither counts cached tokens.
        guide: Masks the tokens that may come next, for an answer with a constraint; None: all may.
        cache: Holds the first tokens of the prompt; the other tokens are added to it. None: a new cache.
        drafter: Guesses the next tokens, which the model verifies in one step; None: each step decodes one token.
        drafts: Counts of drafted and accepted tokens.
    """

    session: Session[Any]
    prompt_ids: list[int]
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    prefill_chunk: int | None = None
    stop_at_eos: bool = True
    finish_reason: str = ""
    progress: Callable[[int, int], None] | None = None
    guide: Guide | None = None
    cache: Cache[Any] | None = None
    drafter: Drafter | None = None
    drafts: DraftCounts = field(default_factory=DraftCounts)

    def __iter__(self) -> Iterator[int]:
        """Yield new token ids; LucidError for an invalid prompt, sampling or drafter, or by :meth:`Chooser.follow`."""
        session = self.session
        check_prompt(session, self.prompt_ids, self.max_new_tokens)
        self.sampling.check(session.config.vocab_size)
        if self.drafter is not None:
            prepare_speculation(session)
        cache = session.empty_cache(1) if self.cache is None else self.cache
        chunk = session.prefill_chunk if self.prefill_chunk is None else self.prefill_chunk
        ids = np.array([self.prompt_ids[cache.length :]], dtype=np.int64)
        logits = session.prefill(ids, cache, chunk=chunk, progress=self.progress)[0]  # (1, vocab)
        if self.drafter is not None:
            self.drafter.chunk, self.drafter.ends = chunk, session.config.eos_token_ids if self.stop_at_eos else ()
            self.drafter.add(self.prompt_ids)
        sampler = Sampler(self.sampling, self.prompt_ids)
        row = Row(sampler, self.max_new_tokens, self.stop_at_eos, self.guide, self.drafter, self.prompt_ids[:-1])
        row.next = self.prompt_ids[-1]
        self.drafts = DraftCounts()
        try:
            yield from decode(session, cache, row, logits, self.drafts)
        finally:
            if self.cache is not None:
                pack(session, cache)
        self.finish_reason = row.finish_reason


def decode(session: Session[Any], cache: Cache[Any], row: Row, logits: Array, counts: DraftCounts) -> Iterator[int]:
    """Yield a row's new tokens; the first is chosen from the prompt's last ``logits``, ``(1, vocab)``.

    At first, the cache holds the prompt; when the answer ends, fails or is abandoned, it holds ``row.ids``.
    """
    chooser, limit, drafts = Chooser(session, counts), session.context_limit, list[int]()
    while True:
        before = len(row.ids)
        try:
            for choice in chooser.follow(row, drafts, logits):
                yield choice.token
        finally:
            kept = len(row.ids) - before
            if drafts and kept <= len(drafts):
                is_sound = bool(np.isfinite(logits[kept:]).all())
                take_back(session, cache, len(drafts) + 1, np.array([kept]), is_sound)
        if row.finish_reason:
            return
        drafts = [] if row.drafter is None else propose({0: row}, limit, counts)[0]
        ids = np.array([[row.next, *drafts]], dtype=np.int64)
        if row.verified:  # only rejected drafts leave padding that can be packed
            make_room(session, cache, ids.shape[1])
        logits = (session.decode_several if drafts else session.decode)(ids, cache)[0]  # (1 + drafts, vocab)


class Conversation:
    """Answers the turns of a conversation, in which most prompts begin with the previous prompt and its answer.

    The cache is cut back to the common prefix of a new prompt and the text so far. A state, or a ring that has dropped
    rows, cannot be cut: then a prompt that begins with the previous prompt reuses that one's cache, others none.

    Attributes:
        reused: Number of the last prompt's tokens that were in the cache.
        computed: Number of the last prompt's tokens that were run.
        finish_reason: Why the last answer ended, as :attr:`Generation.finish_reason`; empty if it was stopped.
        drafts: Counts of drafted and accepted tokens of the last answer; None without drafters.

    The arguments are those of :class:`Generation`; answer i, counted from 0, uses ``seed + i``. ``guides`` and
    ``drafters`` make a guide and a drafter for each answer.
    """

    def __init__(
        self,
        session: Session[Any],
        max_new_tokens: int,
        sampling: Sampling,
        prefill_chunk: int | None = None,
        stop_at_eos: bool = True,
        guides: Callable[[], Guide] | None = None,
        drafters: MakeDrafter | None = None,
    ) -> None:
        self.session = session
        self.reused = self.computed = 0
        self.finish_reason = ""
        self.drafts: DraftCounts | None = None
        self._guides, self._drafters = guides, drafters
        self._fixed = (max_new_tokens, prefill_chunk, stop_at_eos)
        self._sampling = sampling
        self._turn = 0
        self._cache: Cache[Any] | None = None
        self._ids: list[int] = []  # tokens in the cache
        self._keeps_prompts = any(tensor.sort != "rows" for layer in session.layout for tensor in layer)
        self._prompt: tuple[list[int], Cache[Any]] | None = None  # last prompt and its cache, if layers cannot be cut

    def reset(self) -> None:
        """Drop the cache, and start again with the first seed."""
        self._cache, self._ids, self._prompt, self._turn = None, [], None, 0

    def answer(self, prompt_ids: list[int], progress: Callable[[int, int], None] | None = None) -> Iterator[int]:
        """Yield the new token ids after a prompt, which is the whole text so far; close the iterator to end the answer.

        ``progress`` is called after each chunk with (tokens done, tokens to run); neither counts cached tokens.
        """
        guide = None if self._guides is None else self._guides()
        drafter = None if self._drafters is None else self._drafters()
        cache = self._cache_of_beginning(prompt_ids)
        self.reused, self.computed, self.finish_reason = cache.length, len(prompt_ids) - cache.length, ""
        count, chunk, stop_at_eos = self._fixed
        generation = Generation(
            self.session,
            prompt_ids,
            count,
            self._seeded(),
            chunk,
            stop_at_eos,
            progress=progress,
            guide=guide,
            cache=cache,
            drafter=drafter,
        )
        tokens: list[int] = []
        try:
            with closing(iter(generation)) as chosen:  # type: ignore[type-var]
                for token in chosen:
                    if self._keeps_prompts and not tokens:
                        self._prompt = (prompt_ids, self.session.fork(cache))
                    tokens.append(token)
                    yield token
        finally:
            self._cache, self._ids = cache, [*prompt_ids, *tokens][: cache.length]
            self.finish_reason = generation.finish_reason
            self.drafts = None if drafter is None else generation.drafts
            self._turn += 1

    def _seeded(self) -> Sampling:
        seed = self._sampling.seed
        return self._sampling if seed is None else replace(self._sampling, seed=seed + self._turn)

    def _cache_of_beginning(self, prompt_ids: list[int]) -> Cache[Any]:
        """Return a cache with the longest reusable prefix of a prompt, without the last token, which must run."""
        shared = min(_common(self._ids, prompt_ids), len(prompt_ids) - 1)
        if self._cache is not None and shared > 0:
            try:
                self.session.truncate(self._cache, shared)
                return self._cache
            except LucidError:  # a layer's cache cannot be cut back
                if self._prompt is not None:
                    ids, cache = self._prompt
                    if _common(ids, prompt_ids) == len(ids) < len(prompt_ids):
                        return self.session.fork(cache)
        return self.session.empty_cache(1)


def _common(first: list[int], second: list[int]) -> int:
    """Return the length of the common prefix of two texts, in tokens."""
    differing = (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(differing, min(len(first), len(second)))
