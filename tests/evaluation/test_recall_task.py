"""Recall as a task, for any tokenizer that can write its words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation import evaluate, recall_task

Oracle = Callable[..., Any]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" blue cup", "blue cup"),
        ("blue cup. owl has", "blue cup"),
        ("blue cup\nred", "blue cup"),
        ("blue cup red", "blue cup red"),
        ("", ""),
    ],
)
def test_an_answer_ends_at_a_sign(words: TextTokenizer, text: str, answer: str) -> None:
    assert recall_task(words, 1).answer_in(text) == answer


@pytest.mark.parametrize(("limit", "seed", "message"), [(0, 1, "limit"), (-3, 1, "limit"), (5, -1, "seed")])
def test_numbers_without_sense_are_refused(words: TextTokenizer, limit: int, seed: int, message: str) -> None:
    with pytest.raises(LucidError, match=message):
        recall_task(words, limit, seed)


def test_a_tokenizer_without_the_words_is_refused(words: TextTokenizer) -> None:
    class Deaf:
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return [3 for _ in text.split()]

        def decode(self, ids: list[int]) -> str:
            return ""

    with pytest.raises(LucidError, match="cannot write the words"):
        recall_task(Deaf())


def test_recall_works_with_another_tokenizer(letters: TextTokenizer, oracle: Oracle) -> None:
    task = recall_task(letters, 30)
    session = oracle({q.prompt: f" {q.answer}. and so on" for q in task.questions}, letters, vocab=260)
    session.config = replace(session.config, max_position_embeddings=4096)
    assert evaluate(session, letters, task).score.right == 30
