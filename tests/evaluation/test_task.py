"""How answers are read out of texts, and which texts a tokenizer can write."""

from __future__ import annotations

import pytest

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation import Task
from lucid_deploy.evaluation.task import can_write, check_seed_and_limit


@pytest.mark.parametrize(
    ("ends", "text", "answer"),
    [
        (r"[.,;\n]", " blue cup , owl", "blue cup"),
        (r"[.,;\n]", "\n blue cup", "blue cup"),
        (r"\D", "48213 and more", "48213"),
        (r"\D", " the 48213", ""),
        ("never", "all of it ", "all of it"),
    ],
)
def test_an_answer_ends_before_the_first_match(ends: str, text: str, answer: str) -> None:
    assert Task("t", {}, [], ends, rows="pairs").answer_in(text) == answer


def test_a_tokenizer_writes_what_comes_back_from_its_ids(words: TextTokenizer, letters: TextTokenizer) -> None:
    assert can_write(words, "owl has blue cup") and can_write(words, "Owl  has\nblue cup")  # spaces and capitals aside
    assert not can_write(words, "The magic number of Oslo is 48213")
    assert can_write(letters, "The magic number of Oslo is 48213") and can_write(letters, "Zürich")


@pytest.mark.parametrize(
    ("seed", "limit", "message"),
    [
        (0, 0, "at least 1 prompt, not 0"),
        (0, 10**23, "at most 1000000 prompts, not 10"),
        (3, -2, "not -2"),
        (-1, 1, "seed must be 0 or more, and below 2.32, not -1"),
    ],
)
def test_numbers_without_sense(seed: int, limit: int, message: str) -> None:
    check_seed_and_limit(0, 1)
    with pytest.raises(LucidError, match=message):
        check_seed_and_limit(seed, limit)
