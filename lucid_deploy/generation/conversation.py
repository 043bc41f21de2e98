"""A text that grows turn by turn, over one cache: of each prompt only the tokens that are new are run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

from lucid_deploy.errors import LucidError
from lucid_deploy.generation.drafting import MakeDrafter
from lucid_deploy.generation.generate import Generation
from lucid_deploy.generation.guide import Guide
from lucid_deploy.generation.sampling import Sampling
from lucid_deploy.generation.speculation import DraftCounts
from lucid_deploy.runtimes.session import Cache, Session


class Conversation:
    """Answers prompts of which each mostly begins like the one before with its answer.

    Layers that keep one row per token go back to where two texts begin to differ. Layers that cannot go back (a state,
    or a ring that has dropped rows) start from the end of the last prompt, or anew.

    Attributes:
        reused: Tokens of the last prompt that were in the cache.
        computed: Tokens of the last prompt that had to be run.
        finish_reason: Why the last answer ended, as :attr:`Generation.finish_reason`; empty if it was stopped.
        drafts: How far the drafts of the last answer were right; None without drafters.

    Args:
        session: What runs the model.
        max_new_tokens: Most tokens of an answer.
        sampling: How tokens are chosen. Answer number i uses the seed + i.
        prefill_chunk: Tokens of a prompt that run at once; None: as :class:`Generation`.
        stop_at_eos: Whether an end-of-sequence token of the model ends an answer.
        guides: Makes what each answer is held to; None: answers may be anything.
        drafters: Makes a drafter for each answer, which reads the whole text anew; None: one token is run at a time.
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
        self._ids: list[int] = []  # of the cache
        self._keeps_prompts = any(tensor.sort != "rows" for layer in session.layout for tensor in layer)
        self._prompt: tuple[list[int], Cache[Any]] | None = None  # the last one, if a cache may not go back

    def reset(self) -> None:
        """Forget everything, and begin again with the first seed."""
        self._cache, self._ids, self._prompt, self._turn = None, [], None, 0

    def answer(self, prompt_ids: list[int], progress: Callable[[int, int], None] | None = None) -> Iterator[int]:
        """Yield the new token ids behind a prompt. Close the iterator to end the answer early.

        Args:
            prompt_ids: The whole text so far.
            progress: Called after each chunk of the new part of the prompt with (tokens done, tokens in all).

        Raises:
            LucidError: As :class:`Generation`; what was in the cache before still counts.
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
        """Return a cache of as much of a prompt's beginning as there is, without its last token, which gives logits."""
        shared = min(_common(self._ids, prompt_ids), len(prompt_ids) - 1)
        if self._cache is not None and shared > 0:
            try:
                self.session.truncate(self._cache, shared)
                return self._cache
            except LucidError:  # a layer that cannot go back
                if self._prompt is not None:
                    ids, cache = self._prompt
                    if _common(ids, prompt_ids) == len(ids) < len(prompt_ids):
                        return self.session.fork(cache)
        return self.session.empty_cache(1)


def _common(first: list[int], second: list[int]) -> int:
    """Return how many tokens two texts begin with in common."""
    differing = (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(differing, min(len(first), len(second)))
