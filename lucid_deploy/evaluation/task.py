"""Tasks: questions with one right answer each, and how an answer is extracted from generated text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol

from lucid_deploy.demo import recall
from lucid_deploy.errors import LucidError

SEED = 2026  # for the prompts in all tests of the bundled model


class TokenizerLike(Protocol):
    """The methods of a tokenizer that tasks use, such as :class:`~lucid_deploy.artifact.tokenizer.TextTokenizer`."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


@dataclass(frozen=True)
class Question:
    """One prompt and its right answer."""

    prompt: str
    answer: str  # the right continuation
    labels: dict[str, Any]  # properties that the score is broken down by, such as length and depth
    context: int  # questions with the same number begin with the same text, which is run only once


@dataclass(frozen=True)
class Task:
    """Questions of one kind, and how to extract their answers and show the scores in a table."""

    name: str  # such as "recall"
    settings: dict[str, Any]  # everything that determines the questions, for reports
    questions: list[Question]
    ends: str  # a regular expression: an answer ends before its first match, or where the model ends it
    rows: str  # the label whose values are the table's rows
    columns: str | None = None  # the label whose values are the table's columns; None: columns of counts and intervals

    def answer_in(self, text: str) -> str:
        """Return the answer at the beginning of a generated text."""
        return re.split(self.ends, text.strip(), maxsplit=1)[0].strip()


def recall_task(tokenizer: TokenizerLike, limit: int = 200, seed: int = SEED) -> Task:
    """Return a task of ``limit`` recall prompts held out of the bundled model's training, cycling through all lengths.

    A right answer is the exact adjective and thing. Raises a LucidError if the tokenizer cannot encode the words.
    """
    if not can_write(tokenizer, " ".join(recall.vocabulary())):
        raise LucidError(
            "This model's tokenizer cannot encode the words of the recall task, which is for the bundled model only. "
            "Choose --task needles, --task lm_eval:NAME or --text FILE."
        )
    questions = [
        Question(example.prompt, example.answer, {"pairs": example.pairs}, context)
        for context, example in enumerate(recall.held_out(limit, seed))
    ]
    return Task("recall", {"limit": limit, "seed": seed}, questions, ends=r"[.,;\n]", rows="pairs")


def can_write(tokenizer: TokenizerLike, text: str) -> bool:
    """Return whether a text survives encoding and decoding, apart from white space and upper case."""
    return _letters(tokenizer.decode(tokenizer.encode(text))) == _letters(text)


def _letters(text: str) -> str:
    return re.sub(r"\s", "", text).lower()
