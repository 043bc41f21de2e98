"""Answers are read and counted rightly, on sessions whose answers are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.demo import recall
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.evaluation import Question, Task, compare, evaluate, recall_task
from lucid_deploy.evaluation.report import wilson
from lucid_deploy.evaluation.tables import percent, render_tables

Oracle = Callable[..., Any]
WRONG = (3, 30, 31)  # of 60 prompts


@pytest.fixture(scope="module")
def mixed(oracle: Oracle, words: TextTokenizer) -> tuple[Task, Any]:
    """The recall task, and a session that answers it all rightly but for three prompts."""
    task = recall_task(words, 60)
    answers = {q.prompt: q.answer for q in task.questions}
    answers[task.questions[3].prompt] = task.questions[3].answer + " lamp"  # a word too many
    answers[task.questions[30].prompt] = task.questions[30].answer.split()[0]  # a word too few
    answers[task.questions[31].prompt] = ""
    return task, oracle(answers, words)


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


def test_tables_show_rows_and_columns(mixed: tuple[Task, Any], words: TextTokenizer) -> None:
    task, session = mixed
    report = evaluate(session, words, task)
    (table,) = render_tables(report)
    assert [str(cell) for cell in table.columns[0].cells][:2] == ["2 to 5", "6 to 9"]
    assert [str(cell) for cell in table.columns[1].cells][:2] == ["10", "9"]  # 12 prompts of lengths 2 to 5, two wrong
    assert percent(report.score) == "57 of 60 right, 95.0% (95 % interval 86.3 to 98.3)"
    questions = [
        Question(q.prompt, q.answer, {"length": 1 + i % 2, "depth": "0-20 %"}, i)
        for i, q in enumerate(task.questions[:4])
    ]
    (grid,) = render_tables(
        evaluate(session, words, replace(task, questions=questions, rows="depth", columns="length"))
    )
    assert [[str(cell) for cell in column.cells] for column in grid.columns] == [
        ["0-20 %", "all"],
        ["100.0%", "100.0%"],
        ["50.0%", "50.0%"],
    ]


@pytest.mark.parametrize(("limit", "seed", "message"), [(0, 1, "limit"), (-3, 1, "limit"), (5, -1, "seed")])
def test_numbers_without_sense_are_refused(words: TextTokenizer, limit: int, seed: int, message: str) -> None:
    with pytest.raises(LucidError, match=message):
        recall_task(words, limit, seed)


def test_a_batch_below_one_is_refused(mixed: tuple[Task, Any], words: TextTokenizer) -> None:
    with pytest.raises(LucidError, match="at least one row, not 0"):
        evaluate(mixed[1], words, mixed[0], batch=0)


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
