"""Penalties, biases and bad words against transformers' processors and OpenAI's formula."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from lucid_deploy.errors import LucidError
from lucid_deploy.generation.sampling import LogitAdjustment, bad_word_ids, logit_bias
from tests.generation.sample_tokenizers import make

WORDS = 40
RNG = np.random.default_rng(3)
LOGITS = RNG.normal(size=WORDS) * 4
PROMPT, ANSWER = [3, 4, 4, 17], [5, 5, 9, 3, 5, 30]


def adjusted(prompt: list[int] = PROMPT, answer: list[int] = ANSWER, **settings: object) -> np.ndarray:
    adjustment = LogitAdjustment(prompt, **settings)  # type: ignore[arg-type]
    for token in answer:
        adjustment.add(token)
    return adjustment(LOGITS)


def by_transformers(processor: object, ids: list[int]) -> np.ndarray:
    found = processor(torch.tensor([ids]), torch.from_numpy(LOGITS[None]))  # type: ignore[operator]
    return found[0].numpy()  # type: ignore[no-any-return]


@pytest.mark.parametrize("penalty", [0.5, 1.3, 2.0])
def test_repetition_is_that_of_transformers(penalty: float) -> None:
    expected = by_transformers(RepetitionPenaltyLogitsProcessor(penalty), PROMPT + ANSWER)
    np.testing.assert_array_equal(adjusted(repetition=penalty), expected)
    assert (expected != LOGITS).sum() == 6  # tokens of prompt and answer, positive and negative ones
    assert {*(LOGITS[[3, 4, 17, 5, 9, 30]] > 0)} == {True, False}


def test_presence_and_frequency_are_openai_s_formula() -> None:
    expected = LOGITS.copy()
    for token in range(WORDS):  # mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence
        count = ANSWER.count(token)
        expected[token] -= count * 0.7 + (count > 0) * -1.5
    np.testing.assert_allclose(adjusted(frequency=0.7, presence=-1.5), expected, rtol=1e-15)


def test_biases_are_those_of_transformers() -> None:
    bias = {(5,): -3.5, (0,): 100.0, (39,): 1.25}
    expected = by_transformers(SequenceBiasLogitsProcessor(dict(bias)), ANSWER)
    np.testing.assert_array_equal(adjusted(bias=[(token, value) for (token,), value in bias.items()]), expected)


@pytest.mark.parametrize("answer", [[], [30], [5, 30], [9, 5, 30], [30, 5], ANSWER], ids=str)
def test_bad_words_are_those_of_transformers(answer: list[int]) -> None:
    words = [(7,), (30, 8), (5, 30, 11), (9, 5, 30, 12), (30, 30), (3, 5, 30, 2)]
    processor = NoBadWordsLogitsProcessor([list(word) for word in words], eos_token_id=0)
    # Theirs begins at the prompt; a first token that no word has keeps that from mattering.
    np.testing.assert_array_equal(adjusted(answer=answer, bad_words=words), by_transformers(processor, [1, *answer]))


def test_a_prompt_does_not_begin_a_bad_word() -> None:
    assert adjusted(prompt=[30], answer=[], bad_words=[(30, 8)])[8] == LOGITS[8]


def test_biases_come_before_penalties_as_in_vllm() -> None:
    """A bias that makes a logit positive makes the repetition penalty divide it; presence comes last."""
    token = next(token for token in ANSWER if LOGITS[token] < 0)
    found = adjusted(bias=[(token, 100.0)], repetition=2.0, presence=1.0)[token]
    assert found == (LOGITS[token] + 100) / 2 - 1


def test_the_model_s_logits_are_left_alone() -> None:
    before = LOGITS.copy()
    adjusted(bias=[(1, 1.0)], bad_words=[(2,)], repetition=2.0, presence=1.0, frequency=1.0)
    np.testing.assert_array_equal(LOGITS, before)


def test_words_are_spelled_at_the_beginning_and_behind_a_space(tmp_path: Path) -> None:
    tokenizer = make("byte-level bpe", tmp_path)
    found = bad_word_ids(["fox"], tokenizer)
    assert {tokenizer.decode(list(word)) for word in found} <= {"fox", " fox"}
    assert tuple(tokenizer.encode("fox", add_special_tokens=False)) == found[0]


@pytest.mark.parametrize(("word", "said"), [("", "not empty"), ("  ", "not empty"), ("zebra", "no token for")])
def test_words_that_cannot_be_spelled(word: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(LucidError, match=said):
        bad_word_ids([word], make("word level", tmp_path))


def test_a_spelling_of_a_token_id_counts_once() -> None:
    assert logit_bias({"5": 1.0, "12": -2}) == ((5, 1.0), (12, -2))
    for wrong in ({"5": 1.0, "05": 2.0}, {"-1": 1.0}, {"": 1.0}, {"٣": 1.0}, {"9" * 30: 1.0}, {"1.0": 1.0}):
        with pytest.raises(LucidError, match="logit_bias"):
            logit_bias(wrong)
