"""Answers are read and counted rightly, on sessions whose answers are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.evaluation import Task, evaluate, recall_task

Oracle = Callable[..., Any]
WRONG = (3, 30, 31)  # of 60 prompts


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_right_and_wrong_answers_are_counted(mixed: tuple[Task, Any], words: TextTokenizer, batch: int) -> None:
    task, session = mixed
    report = evaluate(session, words, task, batch)
    assert [o.question for o in report.outcomes] == task.questions
    assert [i for i, outcome in enumerate(report.outcomes) if not outcome.right] == list(WRONG)
    assert (report.score.right, report.score.count) == (57, 60)
    wrong = report.to_dict()["wrong"]
    assert [item["answer"] for item in wrong] == [task.questions[i].answer for i in WRONG]
    assert wrong[0]["given"] == task.questions[3].answer + " lamp"
    assert wrong[2]["given"] == ""


def test_a_batch_below_one_is_refused(mixed: tuple[Task, Any], words: TextTokenizer) -> None:
    with pytest.raises(LucidError, match="at least one row, not 0"):
        evaluate(mixed[1], words, mixed[0], batch=0)


def test_logits_that_are_not_finite_fail(words: TextTokenizer, scripted: Any) -> None:
    import numpy as np

    session = scripted(lambda _: np.full(129, np.nan, dtype=np.float32), 129)
    with pytest.raises(CheckFailed, match="not finite"):
        evaluate(session, words, recall_task(words, 2))


def test_a_question_beyond_the_context_is_refused(words: TextTokenizer, oracle: Oracle) -> None:
    task = recall_task(words, 27)
    session = oracle({}, words)
    session.config = replace(session.config, max_position_embeddings=100)
    with pytest.raises(LucidError, match="max_position_embeddings"):
        evaluate(session, words, task)
