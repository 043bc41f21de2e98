"""Sample a token from logits: penalties, biases and bad words, then temperature, min-p, top-k and top-p."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.json_fields import clipped
from lucid_deploy.runtimes.session import Array

MOST_BIAS = 100.0  # as OpenAI allows
MOST_PENALTY = 2.0  # of presence and of frequency, as OpenAI allows
LEAST_REPETITION, MOST_REPETITION = 0.01, 100.0  # far outside of this range, logits overflow and sampling fails


class NoTokenLeft(LucidError):
    """Raised if constraint and bad words allow no next token, or a constraint is too costly or does not compile."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; a value out of range raises a LucidError.

    Attributes:
        temperature: 0 takes the most likely token; above 0, logits are divided by it before sampling.
        top_k: Sample among this many most likely tokens; 0: all.
        top_p: Sample among the fewest most likely tokens whose probabilities add up to this; 1: all.
        seed: Seed of the random generator, 0 or more; None: a random one.
        min_p: Sample among tokens that have at least this share of the likeliest one's probability; 0: all.
        presence_penalty: Subtracted from the logit of every token that was generated before; −2 to 2.
        frequency_penalty: Subtracted from a token's logit once for each time that it was generated; −2 to 2.
        repetition_penalty: Divides the logits of tokens in the prompt or the answer so far where they are positive, and
            multiplies them where they are negative; 0.01 to 100, 1: no penalty.
        logit_bias: Pairs (token id, bias from −100 to 100 that is added to its logit).
        bad_words: Sequences of token ids that are never generated.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise LucidError(f"The temperature must be 0 or more, not {self.temperature}.")
        if self.top_k < 0:
            raise LucidError(f"top_k must be 0 (all) or more, not {self.top_k}.")
        if not 0 < self.top_p <= 1:
            raise LucidError(f"top_p must be above 0 and at most 1, not {self.top_p}.")
        if self.seed is not None and self.seed < 0:
            raise LucidError(f"The seed must be 0 or more, not {self.seed}.")
        if not 0 <= self.min_p <= 1:
            raise LucidError(f"min_p must be 0 to 1, not {self.min_p}.")
        for name in ("presence_penalty", "frequency_penalty"):
            if not abs(getattr(self, name)) <= MOST_PENALTY:
                raise LucidError(f"{name} must be {-MOST_PENALTY:g} to {MOST_PENALTY:g}, not {getattr(self, name)}.")
        if not LEAST_REPETITION <= self.repetition_penalty <= MOST_REPETITION:
            bounds = f"{LEAST_REPETITION:g} to {MOST_REPETITION:g}"
            raise LucidError(f"repetition_penalty must be {bounds}, not {self.repetition_penalty}.")
        for token, bias in self.logit_bias:
            if not abs(bias) <= MOST_BIAS:
                raise LucidError(f"The bias of token {token} must be {-MOST_BIAS:g} to {MOST_BIAS:g}, not {bias}.")
        if not all(self.bad_words):
            raise LucidError("A bad word must have at least one token.")

    @property
    def adjusts(self) -> bool:
        """Whether there are penalties, biases or bad words, which change logits before temperature and filters."""
        penalties = (self.presence_penalty, self.frequency_penalty, self.repetition_penalty - 1)
        return any(penalties) or bool(self.logit_bias or self.bad_words)

    def check(self, vocabulary: int) -> None:
        """Raise a LucidError unless the token ids of ``logit_bias`` and ``bad_words`` are 0 to ``vocabulary − 1``."""
        for name, tokens in (
            ("logit_bias", [token for token, _ in self.logit_bias]),
            ("bad_words", [token for word in self.bad_words for token in word]),
        ):
            for token in tokens:
                if not 0 <= token < vocabulary:
                    raise LucidError(f"{name}: token id {token} is outside the vocabulary (0 to {vocabulary - 1}).")


class LogitAdjustment:
    """Adjusts the logits of one answer: penalties, biases and bad words.

    A token's logit x changes in these steps. c is how often the token was generated before (OpenAI's formula); *seen*
    means that it is in the prompt or the answer (formula of CTRL, arXiv 1909.05858, as in transformers and vLLM):

        x ← −∞ where the token would complete a bad word;   x ← x + bias
        x ← x / repetition where x > 0 and seen;            x ← x · repetition where x ≤ 0 and seen
        x ← x − frequency · c − presence · (c > 0)

    A bad word is only ruled out if all its tokens would be generated, not if it begins in the prompt.
    """

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
        self._endings: dict[int, list[tuple[int, ...]]] = {}  # longer bad words, by their second-to-last token
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


class Sampler:
    """Samples the tokens of one answer from logits, reproducibly for a given seed.

    Attributes:
        sampling: How tokens are chosen.
        chosen_from: The logits that the last token was chosen from, ``(vocab,)``: adjusted, −∞ for forbidden tokens.
    """

    def __init__(self, sampling: Sampling, prompt_ids: Sequence[int] = ()) -> None:
        self.sampling = sampling
        self._rng = np.random.default_rng(sampling.seed)
        self.chosen_from: Array = np.zeros(0, np.float32)
        self._adjustment: LogitAdjustment | None = None
        if sampling.adjusts:
            self._adjustment = LogitAdjustment(
                prompt_ids,
                sampling.presence_penalty,
                sampling.frequency_penalty,
                sampling.repetition_penalty,
                sampling.logit_bias,
                sampling.bad_words,
            )

    def __call__(self, logits: Array, allowed: Array | None = None) -> int:
        """Choose a token from the logits of one position.

        Args:
            logits: The model's logits, float ``(vocab,)``.
            allowed: Mask of tokens that may be chosen, bool ``(vocab,)``; None: all.

        Raises:
            CheckFailed: A logit is not finite.
            NoTokenLeft: Bad words and ``allowed`` leave no token.
        """
        if not np.isfinite(logits).all():
            raise CheckFailed(
                "The model gave logits that are not finite: its weights are damaged (lucid-deploy inspect --check), or "
                "its numbers are too large for its type (export with another --dtype)."
            )
        if self._adjustment is not None:
            logits = self._adjustment(logits)
        if allowed is not None:
            logits = np.where(allowed, logits, -np.inf)
        token, self.chosen_from = int(logits.argmax()), logits
        if logits[token] == -np.inf:
            raise NoTokenLeft("No token is left to choose: bad_words rule out every token that may come next.")
        if self.sampling.temperature > 0:
            probabilities = filtered_probabilities(logits, self.sampling)
            ids = np.flatnonzero(probabilities > 0)
            sums = np.cumsum(probabilities[ids])
            token = int(ids[np.searchsorted(sums / sums[-1], self._rng.random(), side="right")])
        if self._adjustment is not None:
            self._adjustment.add(token)
        return token


def filtered_probabilities(logits: Array, sampling: Sampling) -> Array:
    """Return the probabilities to sample from, after temperature, min-p, top-k and top-p in turn; float64 ``(vocab,)``.

    A logit of −∞ has probability 0. The temperature must be above 0. Only the tokens that top-p may keep are sorted,
    because sorting the whole vocabulary would take longer than a step of a small model.
    """
    with np.errstate(over="ignore"):  # the temperature may be almost 0
        weights = np.exp((logits.astype(np.float64) - logits.max()) / sampling.temperature)  # 1 for the likeliest token
    weights[weights < sampling.min_p] = 0
    if 0 < sampling.top_k < len(weights):
        least = np.partition(weights, -sampling.top_k)[-sampling.top_k]
        weights[weights < least] = 0
        weights[np.flatnonzero(weights == least)[sampling.top_k - np.count_nonzero(weights > least) :]] = 0
    if sampling.top_p < 1:
        total = weights.sum()
        weights[weights < (1 - sampling.top_p) * total / len(weights)] = 0  # together less than 1 - top_p of all
        order = np.flatnonzero(weights > 0)
        order = order[np.argsort(-weights[order], kind="stable")]
        # The token that crosses top_p is kept, so that the set is never empty.
        weights[order[int(np.searchsorted(np.cumsum(weights[order]), sampling.top_p * total)) + 1 :]] = 0
    return weights / weights.sum()


def logit_bias(given: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    """Convert a JSON object, whose keys are strings, to pairs (token id, bias); raise a LucidError for wrong keys."""
    found: dict[int, float] = {}
    for name, value in given.items():
        if not (name.isascii() and name.isdigit() and len(name) < 20):
            raise LucidError(f"logit_bias maps token ids to numbers; {clipped(name)!r} is no token id.")
        if int(name) in found:
            raise LucidError(f"logit_bias names token {int(name)} twice.")
        found[int(name)] = value
    return tuple(found.items())


def bad_word_ids(words: Sequence[str], tokenizer: TextTokenizer) -> tuple[tuple[int, ...], ...]:
    """Return each word's token ids and, as in vLLM, those after a space if equally many with a different first id."""
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
        if known and len(spaced) == len(first) and spaced[:1] != first[:1]:  # if longer, it is a space and ``first``
            found.append(spaced)
    return tuple(found)
