"""A task: questions with one right answer each, and how an answer is read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol

from lucid_deploy.demo import recall
from lucid_deploy.errors import LucidError

SEED = 2026  # of the prompts that the bundled model is tested with everywhere


class TokenizerLike(Protocol):
    """A tokenizer as tasks need it, such as :class:`~lucid_deploy.artifact.tokenizer.TextTokenizer`."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


@dataclass(frozen=True)
class Question:
    """One prompt and its right answer."""

    prompt: str
    answer: str  # the right continuation
    labels: dict[str, Any]  # by which the score is broken down, such as length and depth
    context: int  # questions with the same number begin with the same text, which is then run once


@dataclass(frozen=True)
class Task:
    """Questions of one kind, and how their answers are read and shown in a table."""

    name: str  # such as "recall"
    settings: dict[str, Any]  # everything that determines the questions, for the record
    questions: list[Question]
    ends: str  # a regular expression: an answer ends before its first match, or where the model ends it
    rows: str  # the label whose values are the rows of the table
    columns: str | None = None  # the label whose values are the columns; None: counts and intervals are the columns

    def answer_in(self, text: str) -> str:
        """Return the answer that a generated text begins with."""
        return re.split(self.ends, text.strip(), maxsplit=1)[0].strip()


def recall_task(tokenizer: TokenizerLike, limit: int = 200, seed: int = SEED) -> Task:
    """Return a task of ``limit`` recall prompts held out of the bundled model's training, of all lengths in turn.

    A right answer is exactly adjective and thing. Raises a LucidError if the tokenizer cannot write the task's words.
    """
    if not can_write(tokenizer, " ".join(recall.vocabulary())):
        raise LucidError(
            "This model's tokenizer cannot write the words of the recall task, which is the bundled model's own. "
            "Choose --task needles, --task lm_eval:NAME or --text FILE."
        )
    questions = [
        Question(example.prompt, example.answer, {"pairs": example.pairs}, context)
        for context, example in enumerate(recall.held_out(limit, seed))
    ]
    return Task("recall", {"limit": limit, "seed": seed}, questions, ends=r"[.,;\n]", rows="pairs")


def can_write(tokenizer: TokenizerLike, text: str) -> bool:
    """Return whether decoding a text's tokens gives the text, apart from white space and capitals."""
    return _letters(tokenizer.decode(tokenizer.encode(text))) == _letters(text)


def _letters(text: str) -> str:
    return re.sub(r"\s", "", text).lower()
