"""Scores, their intervals and comparisons."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.demo import recall
from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation import Task, compare, evaluate
from lucid_deploy.evaluation.report import wilson

Oracle = Callable[..., Any]


def test_each_list_length_is_scored_on_its_own(mixed: tuple[Task, Any], words: TextTokenizer) -> None:
    task, session = mixed
    by_length = evaluate(session, words, task).by("pairs")
    lengths = range(recall.MIN_PAIRS, recall.MAX_PAIRS + 1)
    assert list(by_length) == [(n,) for n in lengths]
    assert sum(score.count for score in by_length.values()) == 60
    missing = {key[0]: score.count - score.right for key, score in by_length.items() if score.right < score.count}
    assert missing == {5: 2, 6: 1} == {lengths[3]: 2, lengths[31 % 27]: 1}  # 3 and 30 are both of length 5


def test_the_json_has_what_its_description_says(mixed: tuple[Task, Any], words: TextTokenizer) -> None:
    task, session = mixed
    facts = json.loads(json.dumps(evaluate(session, words, task).to_dict()))
    assert set(facts) == {
        *("task", "settings", "runtime", "dtype", "right", "count", "accuracy", "interval", "table", "wrong")
    }
    assert facts["task"] == "recall" and facts["settings"] == {"limit": 60, "seed": 2026}
    assert (facts["right"], facts["count"], facts["accuracy"]) == (57, 60, 0.95)
    assert facts["interval"][0] < 0.95 < facts["interval"][1]
    assert set(facts["table"][0]) == {"pairs", "right", "count", "accuracy", "interval"}
    assert set(facts["wrong"][0]) == {"prompt", "pairs", "answer", "given"}


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (200, 200, 0.9812, 1.0), (1, 1, 0.2065, 1)],
)
def test_the_interval_is_wilsons(right: int, count: int, low: float, high: float) -> None:
    assert wilson(right, count) == pytest.approx((low, high), abs=1e-4)


def test_two_models_are_compared(mixed: tuple[Task, Any], words: TextTokenizer, oracle: Oracle) -> None:
    task, session = mixed
    report = evaluate(session, words, task)
    answers = {q.prompt: q.answer for q in task.questions}
    answers[task.questions[3].prompt] = "blue cup"  # wrong in both, in different words
    answers[task.questions[7].prompt] = "blue cup"  # wrong here only
    other = evaluate(oracle(answers, words), words, task)
    comparison = compare(report, other)
    assert comparison.relative == pytest.approx(57 / 58)
    assert (comparison.only_right, comparison.only_other_right) == (1, 2)
    assert {item.prompt for item in comparison.disagreements} == {task.questions[i].prompt for i in (3, 7, 30, 31)}
    facts = comparison.to_dict()
    assert facts["relative_accuracy"] == round(57 / 58, 6) and facts["only_right_there"] == 2
    assert set(facts["disagreements"][0]) == {"prompt", "answer", "given", "given_by_other"}


def test_nothing_is_relative_to_a_model_without_right_answers(
    mixed: tuple[Task, Any], words: TextTokenizer, oracle: Oracle
) -> None:
    task, session = mixed
    nothing = evaluate(oracle({q.prompt: "" for q in task.questions}, words), words, task)
    comparison = compare(evaluate(session, words, task), nothing)
    assert comparison.relative is None and comparison.to_dict()["relative_accuracy"] is None


def test_only_the_same_questions_are_compared(mixed: tuple[Task, Any], words: TextTokenizer) -> None:
    task, session = mixed
    report = evaluate(session, words, task)
    shorter = replace(report, task=replace(task, questions=task.questions[:10]))
    with pytest.raises(LucidError, match="same questions"):
        compare(report, shorter)
