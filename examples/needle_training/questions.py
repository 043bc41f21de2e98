"""The five tasks as questions to an exported model: prompts of given lengths, each with one right answer."""

from __future__ import annotations

import re

import numpy as np

from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation import Question, Report, Task
from lucid_deploy.evaluation.task import TokenizerLike, can_write
from needle_training.texts import KINDS, SENTENCE, Words, draw
from needle_training.words import COMMA, WORDS

SEED = 2026
LONGEST_ANSWER = 32  # tokens, with some beyond the right answer
ENDS = r"[.:;\n]"  # of an answer
_HELD_OUT = 2**32  # added to seeds: no training draws from the same stream


def needle_questions(tokenizer: TokenizerLike, task: str, length: int, limit: int, seed: int = SEED) -> Task:
    """Return questions, each about a text of its own.

    Args:
        tokenizer: Of the model.
        task: One of :data:`~needle_training.texts.KINDS`.
        length: Tokens of a prompt, question included: at most so many, at most five fewer.
        limit: Number of questions.
        seed: Equal seeds give equal questions.

    Raises:
        LucidError: A tokenizer without the tasks' words, or a length that the task does not fit in or has too few keys
            for.
    """
    if not can_write(tokenizer, " ".join(WORDS)):
        raise LucidError(
            "This model's tokenizer cannot write the words of these tasks; train one with train_needles.py."
        )
    kind = KINDS[task]
    room = length - 1 - len(draw(np.random.default_rng(0), task, kind.own).questions[0].words)  # tokens, without <bos>
    questions = []
    for number in range(limit):
        rng = np.random.default_rng([_HELD_OUT + seed, length, number])
        try:
            text = draw(rng, task, room // SENTENCE)
        except ValueError as error:
            raise LucidError(f"A prompt of {length} tokens cannot be made: {error}.") from error
        asked = text.questions[0]
        prompt = as_text([*(word for sentence in text.sentences for word in sentence), *asked.words])
        values = [as_text(value) for value in asked.values]
        labels = {"task": task, "length": length, "values": values}
        questions.append(Question(prompt, as_text(asked.answer), labels, context=number))
    return Task(task, {"length": length, "limit": limit, "seed": seed}, questions, ENDS, rows="length")


def as_text(words: Words | list[str]) -> str:
    """Join words as the tokenizer's decoder does."""
    return " ".join(words).replace(f" {COMMA}", COMMA).replace(" .", ".")


def values_found(report: Report) -> list[float]:
    """Return, for each question, the share of its values that the answer has, in any order: RULER's score."""
    shares = []
    for outcome in report.outcomes:
        given, values = report.task.answer_in(outcome.given), outcome.question.labels["values"]
        found = [re.search(rf"\b{value}\b", given) is not None for value in values]  # "old cup" is not in "cold cup"
        shares.append(sum(found) / len(values))
    return shares
