"""A task: questions with one right answer each, and how an answer is read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol

from lucid_deploy.errors import LucidError

MOST_QUESTIONS = 1_000_000


class TokenizerLike(Protocol):
    """What is needed of a tokenizer; :class:`~lucid_deploy.artifact.tokenizer.TextTokenizer` has it."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids."""
        ...


@dataclass(frozen=True)
class Question:
    """One prompt and its right answer.

    Attributes:
        prompt: What the model reads.
        answer: What it should go on with.
        labels: What the score is broken down by, such as the length and the depth.
        context: Questions with the same number begin with the same text, which is then run once.
    """

    prompt: str
    answer: str
    labels: dict[str, Any]
    context: int


@dataclass(frozen=True)
class Task:
    """Questions of one kind.

    Attributes:
        name: Such as ``recall``.
        settings: What determines the questions, for the record.
        questions: The questions.
        ends: A regular expression: an answer ends before its first match, or where the model ends it.
        rows: The label whose values are the rows of the table.
        columns: The label whose values are its columns; None: there is one column.
    """

    name: str
    settings: dict[str, Any]
    questions: list[Question]
    ends: str
    rows: str
    columns: str | None = None

    def answer_in(self, text: str) -> str:
        """Return the answer that a generated text begins with."""
        return re.split(self.ends, text.strip(), maxsplit=1)[0].strip()


def can_write(tokenizer: TokenizerLike, text: str) -> bool:
    """Say whether a text survives the way through token ids and back, spaces and capitals aside."""
    back = tokenizer.decode(tokenizer.encode(text))
    return _letters(back) == _letters(text)


def check_seed_and_limit(seed: int, limit: int) -> None:
    """Check what every task takes.

    Raises:
        LucidError: A negative seed, no questions, or more than are made.
    """
    if limit > MOST_QUESTIONS:  # all are made and kept before the first is asked
        raise LucidError(f"The limit may be at most {MOST_QUESTIONS} prompts, not {limit}.")
    if limit < 1:
        raise LucidError(f"The limit must be at least 1 prompt, not {limit}.")
    check_seed(seed)


def check_seed(seed: int) -> None:
    """Check a seed of random numbers, for Python and NumPy alike.

    Raises:
        LucidError: It is negative, or does not fit into 32 bits.
    """
    if not 0 <= seed < 1 << 32:
        raise LucidError(f"The seed must be 0 or more, and below 2^32, not {seed}.")


def _letters(text: str) -> str:
    return re.sub(r"\s", "", text).lower()
