"""The five tasks: what a reader of the prompts, who does not know how they are made, takes for the right answer."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from needle_training.questions import needle_questions
from needle_training.texts import KINDS, SENTENCE
from needle_training.words import VOCABULARY
from recall_training.words import build_tokenizer

from lucid_deploy.artifact.tokenizer import TextTokenizer

LENGTHS = (256, 2048)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(VOCABULARY).save(str(folder / "tokenizer.json"))
    return TextTokenizer(folder)


def read(prompt):
    """Answer a prompt from its text alone."""
    *sentences, question = prompt.split(". ")
    holds = [re.fullmatch(r"(\w+ \w+) holds (\w+ \w+)", sentence) for sentence in sentences]
    needles = [match.groups() for match in holds if match]
    moves = [re.fullmatch(r"(\w+ \w+) goes into (\w+)", sentence) for sentence in sentences]
    if question.endswith(" goes into"):
        (name,) = [match[2] for match in moves if match and match[1] == question.removesuffix(" goes into")]
        names = [name]
        while found := [match for match in moves if match and match[1] == f"{names[-1]} also"]:
            assert len(found) == 1
            names.append(found[0][2])
        return " ".join(names)
    if question.endswith(" holds"):
        return ", ".join(value for key, value in needles if key == question.removesuffix(" holds"))
    known = dict(needles)
    return ", ".join(f"{key} holds {known[key]}" for key in question.removesuffix(" :").split(", "))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("task", KINDS)
def test_a_reader_of_the_prompt_finds_the_answer(tokenizer, task, length):
    questions = needle_questions(tokenizer, task, length, limit=20).questions
    assert len({question.prompt for question in questions}) == 20
    for question in questions:
        assert read(question.prompt) == question.answer
        ids = tokenizer.encode(question.prompt)
        assert length - SENTENCE < len(ids) <= length
        assert tokenizer.decode(ids) == question.prompt
        answer = tokenizer.encode(question.answer, add_special_tokens=False)
        assert tokenizer.decode(answer) == question.answer


def test_tasks_ask_for_what_their_names_say(tokenizer):
    def values(task):
        return {len(q.labels["values"]) for q in needle_questions(tokenizer, task, 300, limit=10).questions}

    assert [values(task) for task in KINDS] == [{1}, {1}, {4}, {4}, {5}]


def test_needles_lie_everywhere(tokenizer):
    """In the first and the last tenth of the text too."""
    questions = needle_questions(tokenizer, "single", 512, limit=200).questions
    depths = [q.prompt.index(" holds ") / len(q.prompt) for q in questions]
    tenths = Counter(int(10 * depth) for depth in depths)
    assert set(range(10)) <= set(tenths)
    assert max(tenths.values()) < 45
