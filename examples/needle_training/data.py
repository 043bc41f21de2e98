"""Training sequences: a text and its questions with their answers. Texts start short and grow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from recall_training.data import IGNORED, Batch
from recall_training.words import BOS, EOS

from needle_training.texts import KINDS, SENTENCE, Question, Text, draw
from needle_training.words import STOP, VOCABULARY

SHORTEST = 128  # tokens of the first sequences, where a task has room for it
FIRST, FIRST_SHARE = "multi-key", 0.08  # the task that the training begins with alone, and how long
GROWN = 0.4  # share of the training after which sequences have the whole context


@dataclass(frozen=True)
class Sequences:
    """What a step trains on."""

    task: str  # one of the five
    longest: int  # most tokens of a sequence at this step
    batch: Batch  # inputs and labels


def sequences(seed: int, step: int, steps: int, context: int, batch_tokens: int) -> Sequences:
    """Return what a step trains on: one task and one length.

    Every task needs the lookup of a key. With all tasks from the start it was not learned in 480 short steps, with one
    task alone in 140; the others then build on it.

    They depend on the arguments alone, so that every model sees the same and a training that was stopped goes on as if
    it had not been.

    Args:
        seed: Of the training.
        step: Counted from 0.
        steps: Of the training in all.
        context: Most tokens of a sequence in the end, at least :func:`least_context`.
        batch_tokens: Most tokens of all sequences of the step, at least one sequence of them.
    """
    rng, done = np.random.default_rng([seed, step]), step / steps
    task = FIRST if done < FIRST_SHARE else list(KINDS)[int(rng.integers(len(KINDS)))]
    kind = KINDS[task]
    questions = 1 + kind.questions * kind.words  # tokens, with <bos>
    least = questions + SENTENCE * kind.own
    grown = min(1.0, max(0.0, (done - FIRST_SHARE) / (GROWN - FIRST_SHARE)))
    longest = min(context, round(SHORTEST + (context - SHORTEST) * grown))
    sentences = (int(rng.integers(least, max(least, longest) + 1)) - questions) // SENTENCE
    rows = max(1, batch_tokens // (questions + SENTENCE * sentences))
    return Sequences(task, longest, to_batch([draw(rng, task, sentences) for _ in range(rows)]))


def least_context() -> int:
    """Return how many tokens the shortest sequence of every task takes."""
    return max(1 + kind.questions * kind.words + SENTENCE * kind.own for kind in KINDS.values())


def to_batch(texts: list[Text]) -> Batch:
    """Turn texts of one task and one length into token ids, labels, and where answers are copied from."""
    rows = [_row(text) for text in texts]
    inputs, labels, positions, sources = (torch.tensor(column) for column in zip(*rows, strict=True))
    return Batch(inputs[:, :-1], labels[:, :-1], positions[0], sources)  # the last full stop comes before nothing


def _row(text: Text) -> tuple[list[int], list[int], list[int], list[int]]:
    """Return token ids, labels, the positions before words that a head is shown, and the positions of these words."""
    ids = [VOCABULARY[BOS], *(VOCABULARY[word] for sentence in text.sentences for word in sentence)]
    labels, positions, sources = [IGNORED] * len(ids), [], []
    for question in text.questions:
        before = len(ids) + len(question.words) - 1  # the position before the first word of the answer
        for i, source in enumerate(question.sources):
            if source is not None:
                positions.append(before + i)
                sources.append(1 + SENTENCE * source[0] + source[1])
        ids += _ids(*question.words, *question.answer, STOP)
        labels += _labels(question)
    return ids, labels, positions, sources


def _labels(question: Question) -> list[int]:
    """Label the words before each of the answer, and its last one with ``<eos>``."""
    return [IGNORED] * (len(question.words) - 1) + [*_ids(*question.answer), VOCABULARY[EOS], IGNORED]


def _ids(*words: str) -> list[int]:
    return [VOCABULARY[word] for word in words]
