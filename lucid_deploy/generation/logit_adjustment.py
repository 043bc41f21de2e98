"""What changes logits before temperature and filters: bad words, biases and penalties, in this order, as in vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError
from lucid_deploy.json_fields import clipped
from lucid_deploy.runtimes.session import Array

BIASES = "an object from token ids to numbers"


class LogitAdjustment:
    """The adjustments of one answer, and the tokens so far that they depend on.

    With c the number of times that a token was generated before (OpenAI's formula), and seen the tokens of prompt and
    answer (the CTRL paper's, arXiv 1909.05858, as transformers and vLLM have it):

        x ← −∞ where the token would complete a bad word;   x ← x + bias
        x ← x / repetition where x > 0 and seen;            x ← x · repetition where x ≤ 0 and seen
        x ← x − frequency · c − presence · (c > 0)

    Args:
        prompt_ids: The prompt's token ids.
        presence: See above, like the next two.
        frequency: See above.
        repetition: See above.
        bias: Pairs (token id, what is added).
        bad_words: Sequences of token ids. The prompt's tokens are no beginning of one.

    Attributes:
        slopes: By how much the last adjusted logits change with the model's, float64 ``(vocab,)``: repetition scales
            them; None: by as much.
    """

    slopes: Array | None = None

    def __init__(
        self,
        prompt_ids: Sequence[int],
        presence: float = 0.0,
        frequency: float = 0.0,
        repetition: float = 1.0,
        bias: Sequence[tuple[int, float]] = (),
        bad_words: Sequence[tuple[int, ...]] = (),
    ) -> None:
        self._presence, self._frequency, self._repetition = presence, frequency, repetition
        self._prompt = np.unique(np.asarray(prompt_ids, dtype=np.int64))
        self._bias_ids = np.array([token for token, _ in bias], dtype=np.int64)
        self._bias = np.array([value for _, value in bias], dtype=np.float64)
        self._banned = np.array([word[0] for word in bad_words if len(word) == 1], dtype=np.int64)
        self._endings: dict[int, list[tuple[int, ...]]] = {}  # longer bad words, by their last token but one
        for word in bad_words:
            if len(word) > 1:
                self._endings.setdefault(word[-2], []).append(word)
        self._generated: list[int] = []
        self._counts: dict[int, int] = {}

    def add(self, token: int) -> None:
        """Count a token that was generated."""
        self._generated.append(token)
        self._counts[token] = self._counts.get(token, 0) + 1

    def __call__(self, logits: Array) -> Array:
        """Return adjusted logits, float64 ``(vocab,)``."""
        out: Array = logits.astype(np.float64)
        out[self._banned] = -np.inf
        out[self._completions()] = -np.inf
        np.add.at(out, self._bias_ids, self._bias)
        generated = np.fromiter(self._counts.keys(), np.int64, len(self._counts))
        if self._repetition != 1:
            seen = np.union1d(self._prompt, generated)
            found = out[seen]
            out[seen] = np.where(found > 0, found / self._repetition, found * self._repetition)
            self.slopes = np.ones(out.shape)
            self.slopes[seen] = np.where(found > 0, 1 / self._repetition, self._repetition)
        if self._frequency or self._presence:
            counts = np.fromiter(self._counts.values(), np.int64, len(self._counts))
            out[generated] -= self._frequency * counts + self._presence
        return out

    def _completions(self) -> list[int]:
        """Return the tokens that would complete a bad word of several tokens."""
        if not self._generated:
            return []
        words = self._endings.get(self._generated[-1], ())
        return [word[-1] for word in words if tuple(self._generated[1 - len(word) :]) == word[:-1]]


def logit_bias(given: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    """Return biases by token id, from an object of JSON, whose names are texts.

    Raises:
        LucidError: A name is no token id, or two are the same one.
    """
    found: dict[int, float] = {}
    for name, value in given.items():
        if not (name.isascii() and name.isdigit() and len(name) < 20):
            raise LucidError(f"logit_bias goes from token ids to numbers; {clipped(name)!r} is no token id.")
        if int(name) in found:
            raise LucidError(f"logit_bias names token {int(name)} twice.")
        found[int(name)] = value
    return tuple(found.items())


def bad_word_ids(words: Sequence[str], tokenizer: TextTokenizer) -> tuple[tuple[int, ...], ...]:
    """Return the token sequences that spell some words, at the beginning of a text and, as vLLM does, behind a space.

    Raises:
        LucidError: A word has no tokens, or the tokenizer does not know it.
    """
    found: list[tuple[int, ...]] = []
    for word in words:
        if not word.strip():
            raise LucidError("A bad word must be text that is not empty.")
        if tokenizer.unknown_words(word):
            raise LucidError(f'The tokenizer has no token for the bad word "{clipped(word)}".')
        first = tuple(tokenizer.encode(word.lstrip(), add_special_tokens=False))
        spaced = tuple(tokenizer.encode(" " + word.lstrip(), add_special_tokens=False))
        found.append(first)
        known = not tokenizer.unknown_words(" " + word.lstrip())
        if known and len(spaced) == len(first) and spaced[:1] != first[:1]:  # a longer one is a space and the first
            found.append(spaced)
    return tuple(found)
