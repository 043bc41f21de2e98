"""Haystacks: what is asked for is stated by its needle alone, and fillers state nothing of it."""

from __future__ import annotations

import re
from itertools import islice

import numpy as np
import pytest

from lucid_deploy.demo import recall
from lucid_deploy.evaluation.wordings import ENGLISH, RECALL, WORDINGS, Wording


@pytest.fixture(params=sorted(WORDINGS))
def wording(request: pytest.FixtureRequest) -> Wording:
    return WORDINGS[request.param]


def test_keys_differ_and_none_is_part_of_another(wording: Wording) -> None:
    assert len(set(wording.keys)) == len(wording.keys) > 10
    needles = [wording.needle(key, "X") for key in wording.keys]
    text = wording.join(needles)
    assert all(len(re.findall(rf"\b{re.escape(needle)}", text)) == 1 for needle in needles)


def test_a_question_ends_where_its_needle_goes_on(wording: Wording) -> None:
    """The answer that follows the question is the needle's own value, and ends at its sign."""
    rng = np.random.default_rng(0)
    for key in wording.keys[:8]:
        value = wording.value(rng, key)
        stem = wording.needle(key, "").rstrip(" .")
        assert wording.question(key).endswith(stem)
        following = wording.needle(key, value).removeprefix(stem) + "\nnext"
        assert re.split(wording.ends, following.strip(), maxsplit=1)[0].strip() == value


def test_fillers_say_nothing_of_the_keys(wording: Wording) -> None:
    keys = list(wording.keys[:5])
    sentences = list(islice(wording.filler(np.random.default_rng(1), keys), 300))
    assert not any(re.search(rf"\b{key}\b", sentence) for key in keys for sentence in sentences)
    assert len(set(sentences)) > 20
    again = list(islice(wording.filler(np.random.default_rng(1), keys), 300))
    assert sentences == again, "equal seeds give equal texts"


def test_the_bundled_models_values_are_held_out() -> None:
    rng = np.random.default_rng(2)
    pairs = [(key, RECALL.value(rng, key)) for key in RECALL.keys for _ in range(5)]
    pairs += [tuple(each.split(f" {recall.VERB} ")) for each in islice(RECALL.filler(rng, []), 50)]
    assert all(recall.is_held_out(key, *value.split()) for key, value in pairs)


def test_english_values_are_five_digits() -> None:
    rng = np.random.default_rng(3)
    values = {ENGLISH.value(rng, "Oslo") for _ in range(200)}
    assert len(values) > 190 and all(re.fullmatch(r"[1-9]\d{4}", value) for value in values)
