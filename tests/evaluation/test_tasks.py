"""Recall and needles: what is asked, how answers are read and scored, and how two models compare."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.demo import recall
from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation import Question, Task, compare, evaluate, needles_task, recall_task

Oracle = Callable[..., Any]
WRONG = [3, 30, 31]  # of the 60 prompts of ``mixed``


@pytest.fixture(scope="module")
def english(letters: TextTokenizer) -> Task:
    return needles_task(letters, 100_000, needles=4, lengths=[1000, 4000], limit=20)


@pytest.fixture(scope="module")
def entries(words: TextTokenizer) -> Task:
    return needles_task(words, 512, needles=5, lengths=[64, 400], limit=25)


@pytest.mark.parametrize(
    ("ends", "text", "answer"),
    [
        (r"[.,;\n]", " blue cup , owl", "blue cup"),
        (r"[.,;\n]", "\n blue cup\nred", "blue cup"),
        (r"[.,;\n]", "blue cup red", "blue cup red"),
        (r"\D", " 48213. The magic", "48213"),
        (r"\D", " 482139", "482139"),
        (r"\D", " about 48213", ""),
    ],
)
def test_an_answer_ends_before_the_first_match(ends: str, text: str, answer: str) -> None:
    assert Task("t", {}, [], ends, rows="pairs").answer_in(text) == answer


@pytest.mark.parametrize("name", ["english", "entries"])
def test_needles_are_where_their_labels_say(
    name: str, request: pytest.FixtureRequest, letters: TextTokenizer, words: TextTokenizer
) -> None:
    """Each prompt states its answer once, at its depth, and is as long as it is labelled but for a sentence."""
    task: Task = request.getfixturevalue(name)
    tokenizer, sentence = (letters, 90) if name == "english" else (words, 5)  # tokens of a filler sentence, at most
    missing: dict[int, list[int]] = {}
    for question in task.questions:
        if name == "english":
            key = re.search(r"What is the magic number of (\w+)\?", question.prompt).group(1)  # type: ignore[union-attr]
            statement, text = f"The magic number of {key} is {question.answer}.", question.prompt.split("\nQuestion")[0]
            assert re.fullmatch(r"[1-9]\d{4}", question.answer)
        else:
            key = re.search(r"\. (\w+) has$", question.prompt).group(1)  # type: ignore[union-attr]
            statement, text = f"{key} has {question.answer}", question.prompt.rsplit(".", 1)[0]
            assert len(re.findall(rf"\b{key} has", text)) == 1  # nothing else is said of it
            assert recall.is_held_out(key, *question.answer.split())
        assert text.count(statement) == 1
        at, length = question.labels["at"], question.labels["length"]
        if length >= 400:  # short texts have few places
            assert text.index(statement) / len(text) == pytest.approx(at, abs=0.1)
        assert (
            int(question.labels["depth"].split("-")[0]) <= 100 * at < int(question.labels["depth"].split("-")[0]) + 20
        )
        missing.setdefault(question.context, []).append(length - len(tokenizer.encode(question.prompt)))
    assert all(0 <= min(lacks) < sentence for lacks in missing.values())
    depths = [question.labels["at"] for question in task.questions]
    assert sum(depths) == pytest.approx(len(depths) / 2)  # as many lie before the middle as behind it
    assert task.settings["wording"] == {"english": "english", "entries": "recall"}[name]


def test_texts_depend_on_the_seed_alone(words: TextTokenizer, letters: TextTokenizer) -> None:
    def prompts(lengths: list[int], **changes: Any) -> list[str]:
        return [q.prompt for q in needles_task(words, 512, lengths=lengths, limit=8, **changes).questions]

    assert prompts([200]) == prompts([100, 200])[8:] != prompts([200], seed=7)
    lengths = needles_task(words, 512, needles=2, limit=2).settings["lengths"]
    assert lengths[:3] == [64, 128, 256] and 500 < lengths[3] < 512
    assert needles_task(letters, None, needles=1, limit=1).settings["lengths"][:3] == [512, 1024, 2048]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"needles": 0}, "number of needles must be 1 to"),
        ({"needles": 3, "ask": 4}, "1 to 3 can be asked for, not 4"),
        ({"needles": 20, "lengths": [60]}, r"20 needles and a question take 1\d\d tokens and do not fit in 60"),
        ({"lengths": [512]}, "exceed the model's context of 512"),
        ({"lengths": []}, "at least one"),
    ],
)
def test_bad_numbers_are_refused(words: TextTokenizer, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LucidError, match=message):
        needles_task(words, 512, **options)


def test_tokenizers_without_the_words(letters: TextTokenizer, oracle: Oracle) -> None:
    class Deaf:
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return [3 for _ in text.split()]

        def decode(self, ids: list[int]) -> str:
            return ""

    for make in (recall_task, lambda tokenizer: needles_task(tokenizer, 512)):
        with pytest.raises(LucidError, match="tokenizer cannot encode"):
            make(Deaf())
    task = recall_task(letters, 30)
    session = oracle({q.prompt: f" {q.answer}. and so on" for q in task.questions}, letters, vocab=260)
    session.config = replace(session.config, max_position_embeddings=4096)
    assert evaluate(session, letters, task).score.right == 30


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_right_and_wrong_answers_are_counted(mixed: tuple[Task, Any], words: TextTokenizer, batch: int) -> None:
    task, session = mixed
    seen: list[tuple[int, int]] = []
    report = evaluate(session, words, task, batch, lambda *now: seen.append(now))
    assert [i for i, outcome in enumerate(report.outcomes) if not outcome.right] == WRONG
    assert seen[-1] == (60, 60) and [o.question for o in report.outcomes] == task.questions
    missing = {key[0]: score.count - score.right for key, score in report.by("pairs").items()}
    assert {key: count for key, count in missing.items() if count} == {5: 2, 6: 1}
    facts = json.loads(json.dumps(report.to_dict()))
    assert (facts["right"], facts["count"], facts["accuracy"]) == (57, 60, 0.95)
    assert facts["interval"][0] < 0.95 < facts["interval"][1] and facts["settings"] == {"limit": 60, "seed": 2026}
    assert set(facts["table"][0]) == {"pairs", "right", "count", "accuracy", "interval"}
    assert [item["answer"] for item in facts["wrong"]] == [task.questions[i].answer for i in WRONG]
    assert facts["wrong"][0]["given"] == task.questions[3].answer + " lamp" and facts["wrong"][2]["given"] == ""


def test_tables(mixed: tuple[Task, Any], words: TextTokenizer) -> None:
    task, session = mixed
    report = evaluate(session, words, task)
    columns = report.table().columns
    assert [str(cell) for cell in columns[0].cells][:2] == ["2 to 5", "6 to 9"]
    assert [str(cell) for cell in columns[1].cells][:2] == ["10", "9"]  # 12 prompts of lengths 2 to 5, two wrong
    assert str(report.score) == "57 of 60 right, 95.0% (95 % interval 86.3 to 98.3)"
    questions = [
        Question(q.prompt, q.answer, {"length": 1 + i % 2, "depth": "0-20 %"}, i)
        for i, q in enumerate(task.questions[:4])
    ]
    grid = evaluate(session, words, replace(task, questions=questions, rows="depth", columns="length")).table()
    cells = [[str(cell) for cell in column.cells] for column in grid.columns]
    assert cells == [["0-20 %", "all"], ["100.0%", "100.0%"], ["50.0%", "50.0%"]]


def test_two_models_are_compared(mixed: tuple[Task, Any], words: TextTokenizer, oracle: Oracle) -> None:
    task, session = mixed
    report = evaluate(session, words, task)
    answers = {q.prompt: q.answer for q in task.questions}
    answers[task.questions[3].prompt] = "blue cup"  # wrong in both, in different words
    answers[task.questions[7].prompt] = "blue cup"  # wrong there only
    comparison = compare(report, evaluate(oracle(answers, words), words, task))
    assert comparison.relative == pytest.approx(57 / 58)
    assert (comparison.only_right, comparison.only_other_right) == (1, 2)
    assert {item["prompt"] for item in comparison.disagreements} == {task.questions[i].prompt for i in (3, 7, 30, 31)}
    facts = comparison.to_dict()
    assert facts["relative_accuracy"] == round(57 / 58, 6) and facts["only_right_there"] == 2
    nothing = evaluate(oracle({q.prompt: "" for q in task.questions}, words), words, task)
    assert compare(report, nothing).to_dict()["relative_accuracy"] is None
    with pytest.raises(LucidError, match="same questions"):
        compare(report, replace(report, task=replace(task, questions=task.questions[:10])))
