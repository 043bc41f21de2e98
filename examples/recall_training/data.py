"""Training sequences: a list, and several questions with their answers. Lists start short and grow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lucid_deploy.demo import recall
from recall_training.words import BOS, EOS, VOCABULARY

ENTRY = 5  # tokens of one entry: animal, verb, adjective, thing, sign
QUESTIONS = 12  # in one training sequence
TOKENS_PER_STEP = 2048
IGNORED = -100  # the label that cross_entropy leaves out


@dataclass(frozen=True)
class Batch:
    """Training sequences of one shape."""

    inputs: torch.Tensor  # token ids, int64 (batch, tokens)
    # The next token within answers and IGNORED elsewhere, int64 (batch, tokens). The last word of each answer
    # is labelled <eos>, whatever the input goes on with.
    labels: torch.Tensor
    positions: torch.Tensor  # of the tokens that come before a word of an answer, int64 (2 · questions,)
    sources: torch.Tensor  # positions of that word in the list, int64 (batch, 2 · questions)


def training_batch(rng: np.random.Generator, pairs: int) -> Batch:
    """Draw sequences of one list of ``pairs`` entries and ``QUESTIONS`` questions, about ``TOKENS_PER_STEP`` in all."""
    batch = max(1, TOKENS_PER_STEP // (ENTRY * (pairs + QUESTIONS)))
    lists = recall.sample_lists(rng, pairs, QUESTIONS, batch)
    entries = np.stack(
        [
            _ids(recall.ANIMALS)[lists.animals],
            np.full_like(lists.animals, VOCABULARY[recall.VERB]),
            _ids(recall.ADJECTIVES)[lists.adjectives],
            _ids(recall.THINGS)[lists.things],
            np.full_like(lists.animals, VOCABULARY[recall.COMMA]),
        ],
        axis=2,
    )  # (batch, pairs, 5)
    asked = np.take_along_axis(entries, lists.asked[:, :, None], axis=1)  # (batch, questions, 5)
    entries[:, -1, 4] = asked[:, :, 4] = VOCABULARY[recall.STOP]
    labels = np.full_like(asked, IGNORED)
    labels[:, :, 1:3] = asked[:, :, 2:4]
    labels[:, :, 3] = VOCABULARY[EOS]
    bos, unlabelled = np.full((batch, 1), VOCABULARY[BOS]), np.full((batch, 1 + ENTRY * pairs), IGNORED)
    inputs = np.concatenate([bos, entries.reshape(batch, -1), asked.reshape(batch, -1)], axis=1)
    labels = np.concatenate([unlabelled, labels.reshape(batch, -1)], axis=1)
    positions = 1 + ENTRY * (pairs + np.arange(QUESTIONS)[:, None]) + np.array([1, 2])
    sources = 1 + ENTRY * lists.asked[:, :, None] + np.array([2, 3])
    # The full stop after the last answer is no input, since no token follows it.
    arrays = inputs[:, :-1], labels[:, :-1], positions.reshape(-1), sources.reshape(batch, -1)
    return Batch(*(torch.from_numpy(array) for array in arrays))


def _ids(words: tuple[str, ...]) -> np.ndarray:
    return np.array([VOCABULARY[word] for word in words])


class Curriculum:
    """Draws list lengths: short lists until the model answers them, then longer ones, two entries at a time."""

    PATIENCE, ENOUGH = 20, 0.95  # steps to average over; share of answer tokens that must be right

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.longest, self.recent = rng, 6, []

    def draw(self) -> int:
        """Return the number of entries for the next step."""
        return int(self.rng.integers(recall.MIN_PAIRS, self.longest + 1))

    def record(self, right: float) -> None:
        """Take note of the share of answer tokens that was right in this step."""
        self.recent = [*self.recent, right][-self.PATIENCE :]
        if len(self.recent) == self.PATIENCE and np.mean(self.recent) > self.ENOUGH:
            self.longest, self.recent = min(self.longest + 2, recall.MAX_PAIRS), []
