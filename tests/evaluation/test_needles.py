"""Needles lie where they are said to lie, in texts as long as they are said to be."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.demo import recall
from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation import Task, evaluate, needles_task

CONTEXT = 100_000


@pytest.fixture(scope="module")
def english(letters: TextTokenizer) -> Task:
    return needles_task(letters, CONTEXT, needles=4, lengths=[1000, 4000], limit=20)


@pytest.fixture(scope="module")
def entries(words: TextTokenizer) -> Task:
    return needles_task(words, 512, needles=5, lengths=[64, 400], limit=25)


@pytest.mark.parametrize("name", ["english", "entries"])
def test_prompts_have_the_length_they_are_labelled_with(
    name: str, request: pytest.FixtureRequest, letters: TextTokenizer, words: TextTokenizer
) -> None:
    task: Task = request.getfixturevalue(name)
    tokenizer, filler = (letters, 90) if name == "english" else (words, 5)  # tokens of a filler sentence, at most
    by_context: dict[int, list[int]] = {}
    for question in task.questions:
        length = len(tokenizer.encode(question.prompt))
        assert length <= question.labels["length"]
        by_context.setdefault(question.context, []).append(question.labels["length"] - length)
    assert all(min(missing) < filler for missing in by_context.values())


@pytest.mark.parametrize("name", ["english", "entries"])
def test_a_prompt_states_its_answer_once_at_its_depth(name: str, request: pytest.FixtureRequest) -> None:
    task: Task = request.getfixturevalue(name)
    for question in task.questions:
        if name == "english":
            key = re.search(r"What is the magic number of (\w+)\?", question.prompt).group(1)
            statement = f"The magic number of {key} is {question.answer}."
            text = question.prompt.split("\nQuestion")[0]
        else:
            key = re.search(r"\. (\w+) has$", question.prompt).group(1)
            statement, text = f"{key} has {question.answer}", question.prompt.rsplit(".", 1)[0]
            assert len(re.findall(rf"\b{key} has", text)) == 1  # nothing else is said of it
            assert recall.is_held_out(key, *question.answer.split())
        assert text.count(statement) == 1
        at = question.labels["at"]
        if question.labels["length"] >= 400:  # short texts have few places
            assert text.index(statement) / len(text) == pytest.approx(at, abs=0.1)
        low = int(question.labels["depth"].split("-")[0])
        assert low <= 100 * at < low + 20


def test_depths_are_covered_evenly_and_known(entries: Task) -> None:
    of_length = [q for q in entries.questions if q.labels["length"] == 400]
    assert len(of_length) == 25
    ats = sorted(q.labels["at"] for q in of_length)
    assert ats == pytest.approx([(i + 0.5) / 25 for i in range(25)])
    assert set(Counter(q.labels["depth"] for q in of_length).values()) == {5}


def test_questions_of_one_text_begin_alike(english: Task) -> None:
    texts: dict[int, set[str]] = {}
    keys: dict[int, list[str]] = {}
    for question in english.questions:
        text, asked = question.prompt.split("\nQuestion")
        texts.setdefault(question.context, set()).add(text)
        keys.setdefault(question.context, []).append(asked)
    assert all(len(found) == 1 for found in texts.values())
    assert all(len(set(found)) == 4 for found in keys.values())
    assert len({next(iter(found)) for found in texts.values()}) == 10  # five texts of each of two lengths


def test_what_questions_share_is_run_once(words: TextTokenizer, entries: Task, oracle: Callable[..., Any]) -> None:
    session = oracle({q.prompt: q.answer for q in entries.questions}, words)
    report = evaluate(session, words, entries, batch=1)
    assert report.score.right == report.score.count == 50
    text, rest = 5 * (64 + 400), 50 * 10  # five texts of each length; for each question a few tokens
    assert session.tokens_run < text + rest


def test_texts_depend_on_the_seed_alone(words: TextTokenizer) -> None:
    def prompts(**changes: Any) -> list[str]:
        return [q.prompt for q in needles_task(words, 512, lengths=[200], limit=8, **changes).questions]

    assert prompts() == prompts()
    assert prompts() != prompts(seed=7)
    two_lengths = needles_task(words, 512, lengths=[100, 200], limit=8).questions
    assert [q.prompt for q in two_lengths if q.labels["length"] == 200] == prompts()


def test_fewer_needles_can_be_asked_for_than_there_are(words: TextTokenizer) -> None:
    task = needles_task(words, 512, needles=6, ask=2, lengths=[150], limit=9)
    assert Counter(q.context for q in task.questions) == {0: 2, 1: 2, 2: 2, 3: 2, 4: 1}
    assert task.settings["needles"] == 6 and task.settings["ask"] == 2


def test_one_needle_visits_every_depth(words: TextTokenizer) -> None:
    task = needles_task(words, 512, needles=1, lengths=[150], limit=10)
    assert [q.labels["at"] for q in task.questions] == pytest.approx([(i + 0.5) / 10 for i in range(10)])


def test_lengths_are_chosen_from_the_context(words: TextTokenizer, letters: TextTokenizer) -> None:
    lengths = needles_task(words, 512, needles=2, limit=2).settings["lengths"]
    assert lengths[:3] == [64, 128, 256] and 500 < lengths[3] < 512
    assert needles_task(letters, None, needles=1, limit=1).settings["lengths"][:3] == [512, 1024, 2048]


def test_the_wording_follows_the_tokenizer(english: Task, entries: Task) -> None:
    assert english.settings["wording"] == "english"
    assert entries.settings["wording"] == "recall"


def test_an_english_answer_ends_after_its_digits(english: Task) -> None:
    assert english.answer_in(" 48213. The magic") == "48213"
    assert english.answer_in(" 482139") == "482139"
    assert english.answer_in(" about 48213") == ""


def test_wrong_values_are_wrong(english: Task, letters: TextTokenizer, oracle: Callable[..., Any]) -> None:
    answers = {q.prompt: f" {q.answer}." for q in english.questions}
    answers[english.questions[5].prompt] = f" {english.questions[6].answer}."  # another needle's
    session = oracle(answers, letters, vocab=260)
    session.allow_extrapolation = True
    report = evaluate(session, letters, english)
    assert [i for i, outcome in enumerate(report.outcomes) if not outcome.right] == [5]
    asked = english.questions[5].labels
    missed = {key for key, score in report.by("depth", "length").items() if score.right < score.count}
    assert missed == {(asked["depth"], asked["length"])}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"needles": 0}, "1 to 64, not 0"),
        ({"needles": 65}, "1 to 64, not 65"),
        ({"needles": 3, "ask": 4}, "1 to 3 can be asked for, not 4"),
        ({"needles": 3, "ask": 0}, "1 to 3 can be asked for, not 0"),
        (
            {"needles": 20, "lengths": [60]},
            r"20 needles and a question take 1\d\d tokens and do not fit in a length of 60",
        ),
        ({"lengths": [512]}, "exceed the model's context of 512"),
        ({"lengths": []}, "at least one"),
        ({"lengths": [0, 100]}, "Lengths"),
        ({"limit": 0}, "limit"),
        ({"wording": "latin"}, "'latin' is not known"),
        ({"wording": "english"}, "cannot write the texts of wording english"),
    ],
)
def test_what_makes_no_sense_is_refused(words: TextTokenizer, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LucidError, match=message):
        needles_task(words, 512, **options)
