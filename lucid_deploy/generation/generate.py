"""Autoregressive generation over any session: prefill once, then one token after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.runtimes.session import Array, Session


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the most likely token; above, logits are divided by it before sampling.
        top_k: Sample among this many most likely tokens; 0 is all.
        top_p: Sample among the most likely tokens whose probabilities reach this sum; 1 is all.
        seed: Of the random generator; None draws one.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise LucidError(f"The temperature must be 0 or more, not {self.temperature}.")
        if self.top_k < 0:
            raise LucidError(f"top_k must be 0 (all) or more, not {self.top_k}.")
        if not 0 < self.top_p <= 1:
            raise LucidError(f"top_p must be above 0 and at most 1, not {self.top_p}.")
        if self.seed is not None and self.seed < 0:
            raise LucidError(f"The seed must be 0 or more, not {self.seed}.")


class Sampler:
    """Draws tokens from logits, reproducibly for a given seed."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._rng = np.random.default_rng(sampling.seed)

    def __call__(self, logits: Array) -> int:
        """Choose a token from the logits of one position, float ``(vocab,)``.

        Raises:
            CheckFailed: A logit is not finite.
        """
        if not np.isfinite(logits).all():
            raise CheckFailed(
                "The model gave logits that are not finite: its weights are damaged (lucid-deploy inspect --check), or "
                "its numbers are too large for its type (export with another --dtype)."
            )
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        probabilities = filtered_probabilities(logits, self._sampling)
        return int(self._rng.choice(probabilities.size, p=probabilities))


def filtered_probabilities(logits: Array, sampling: Sampling) -> Array:
    """Return the distribution that is sampled: temperature, top-k, top-p in this order; float64 ``(vocab,)``."""
    with np.errstate(over="ignore"):  # the temperature may be almost 0
        scaled = (logits.astype(np.float64) - logits.max()) / sampling.temperature
    order = np.argsort(-scaled, kind="stable")
    keep = order[: sampling.top_k] if sampling.top_k else order
    probabilities = np.exp(scaled[keep] - scaled[keep[0]])
    probabilities /= probabilities.sum()
    # The token that crosses top_p still belongs to the set, so that the set is never empty.
    inside = int(np.searchsorted(np.cumsum(probabilities), sampling.top_p)) + 1
    out = np.zeros_like(scaled)
    out[keep[:inside]] = probabilities[:inside]
    return out / out.sum()


def check_prompt(session: Session[Any], prompt_ids: list[int], max_new_tokens: int) -> None:
    """Check what is asked of a session before anything runs.

    Raises:
        LucidError: An empty prompt, a token id outside the vocabulary, a prompt longer than the context, or no new
            tokens asked for.
    """
    if max_new_tokens < 1:
        raise LucidError(f"max_new_tokens must be at least 1, not {max_new_tokens}.")
    if not prompt_ids:
        raise LucidError("The prompt is empty: it has no tokens.")
    highest = session.config.vocab_size - 1
    for token in prompt_ids:  # checked here because numpy has no integers of any size
        if not 0 <= token <= highest:
            raise LucidError(
                f"Token id {token} is outside the vocabulary (0 to {highest}); the tokenizer may be another model's."
            )
    session.check_length(len(prompt_ids))


@dataclass
class Generation:
    """A running generation of one prompt. Iterate over it for the tokens.

    Attributes:
        session: What runs the model.
        prompt_ids: The prompt's token ids.
        max_new_tokens: Upper bound of new tokens.
        sampling: How tokens are chosen.
        prefill_chunk: Tokens of the prompt that run at once; None: all.
        stop_at_eos: Whether an end-of-sequence token of the model ends it (that token is not yielded).
        finish_reason: Set at the end: ``eos``, ``length`` (max_new_tokens) or ``context`` (no room left).
        progress: Called while the prompt runs, with (tokens done, tokens in all).
    """

    session: Session[Any]
    prompt_ids: list[int]
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    prefill_chunk: int | None = None
    stop_at_eos: bool = True
    finish_reason: str = ""
    progress: Callable[[int, int], None] | None = None

    def __iter__(self) -> Iterator[int]:
        """Yield new token ids.

        Raises:
            LucidError: As :meth:`Session.prefill`.
        """
        session, choose = self.session, Sampler(self.sampling)
        check_prompt(session, self.prompt_ids, self.max_new_tokens)
        cache = session.empty_cache(1)
        prompt = np.array([self.prompt_ids], dtype=np.int64)
        logits = session.prefill(prompt, cache, chunk=self.prefill_chunk, progress=self.progress)
        limit = session.context_limit
        for count in range(1, self.max_new_tokens + 1):
            token = choose(logits[0, -1])
            if self.stop_at_eos and token in session.config.eos_token_ids:
                self.finish_reason = "eos"
                return
            yield token
            if count == self.max_new_tokens:
                self.finish_reason = "length"
                return
            if limit is not None and cache.length >= limit:
                self.finish_reason = "context"
                return
            logits = session.decode(np.array([[token]], dtype=np.int64), cache)
