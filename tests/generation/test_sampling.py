"""Choosing tokens: filters, penalties, biases and bad words, against transformers and OpenAI's formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.generation.sampling import (
    LogitAdjustment,
    Sampler,
    Sampling,
    bad_word_ids,
    filtered_probabilities,
    logit_bias,
)
from tests.generation.sample_tokenizers import make

# 0.5, 0.3, 0.15 and 0.05, not in order.
PROBABILITIES = np.array([0.15, 0.5, 0.05, 0.3])
LOGITS = np.log(PROBABILITIES).astype(np.float32)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(0.5), [0.0225 / 0.365, 0.25 / 0.365, 0.0025 / 0.365, 0.09 / 0.365]),
        (Sampling(1.0, top_k=9), [0.15, 0.5, 0.05, 0.3]),
        (Sampling(1.0, top_p=0.7), [0, 0.625, 0, 0.375]),
        (Sampling(1.0, top_p=1e-6), [0, 1, 0, 0]),
        (Sampling(1e-320), [0, 1, 0, 0]),
        (Sampling(1.0, min_p=1.0), [0, 1, 0, 0]),
    ],
    ids=[
        "temperature squares",
        "top-k beyond the vocabulary",
        "top-p keeps the token that crosses it",
        "top-p is never empty",
        "almost no temperature",
        "min-p is never empty",
    ],
)
def test_filters_give_the_expected_probabilities(sampling: Sampling, expected: list[float]) -> None:
    np.testing.assert_allclose(filtered_probabilities(LOGITS, sampling), expected, atol=1e-6)


def test_filters_keep_the_first_of_equally_likely_tokens() -> None:
    for sampling in (Sampling(1.0, top_k=2), Sampling(1.0, top_p=0.5)):
        assert filtered_probabilities(np.array([0.0, -np.inf, 0, 0, 0]), sampling).tolist() == [0.5, 0, 0.5, 0, 0]


def test_draws_follow_the_probabilities() -> None:
    sampler, count = Sampler(Sampling(1.0, seed=0)), 20_000
    drawn = np.bincount([sampler(LOGITS) for _ in range(count)], minlength=4) / count
    np.testing.assert_allclose(drawn, PROBABILITIES, atol=4 * 0.5 / np.sqrt(count))  # four standard deviations


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_a_failed_check(bad: float, temperature: float) -> None:
    with pytest.raises(CheckFailed, match="not finite"):
        Sampler(Sampling(temperature))(np.array([0.0, bad], dtype=np.float32))


def test_filters_are_those_of_transformers() -> None:
    logits = np.random.default_rng(0).normal(size=200) * 3
    nucleus = Sampling(1.5, top_p=0.9)
    for sampling in (nucleus, Sampling(0.7, min_p=0.05), Sampling(1.5, 20, 0.8), Sampling(1.3, 30, 0.9, min_p=0.02)):
        scores, ids = torch.from_numpy(logits[None]), torch.tensor([[0]])
        for warper in (
            TemperatureLogitsWarper(sampling.temperature),
            MinPLogitsWarper(sampling.min_p) if sampling.min_p else None,
            TopKLogitsWarper(sampling.top_k) if sampling.top_k else None,
            TopPLogitsWarper(sampling.top_p) if sampling.top_p < 1 else None,
        ):
            scores = scores if warper is None else warper(ids, scores)
        expected = torch.softmax(scores, -1)[0].numpy()
        np.testing.assert_allclose(filtered_probabilities(logits, sampling), expected, atol=1e-12)
        assert 1 < np.count_nonzero(expected) < 150


def test_penalties_and_bad_words_count_drawn_tokens() -> None:
    greedy = Sampler(Sampling(presence_penalty=2.0), prompt_ids=[1])
    assert [greedy(LOGITS) for _ in range(4)] == [1, 3, 0, 1]  # 0.5, 0.3, 0.15, 0.05: ln 10 is above 2
    banned = Sampler(Sampling(bad_words=((1,), (3, 3))))
    assert [banned(LOGITS) for _ in range(3)] == [3, 0, 3]


def test_only_allowed_tokens_are_drawn() -> None:
    allowed = np.array([True, False, True, False])
    assert Sampler(Sampling())(LOGITS, allowed) == 0
    drawn = {Sampler(Sampling(1.0, top_k=1, seed=seed))(LOGITS, allowed) for seed in range(20)}
    assert drawn == {0}
    with pytest.raises(LucidError, match="No token is left"):
        Sampler(Sampling(bad_words=((0,), (2,))))(LOGITS, allowed)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"min_p": -0.1}, "min_p"),
        ({"min_p": float("nan")}, "min_p"),
        ({"presence_penalty": 2.1}, "presence_penalty must be -2 to 2"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty"),
        ({"repetition_penalty": 5e-324}, "repetition_penalty must be 0.01 to 100"),
        ({"repetition_penalty": 1e308}, "repetition_penalty must be 0.01 to 100"),
        ({"logit_bias": ((4, 101.0),)}, "bias of token 4"),
        ({"bad_words": ((1,), ())}, "at least one token"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(LucidError, match=said):
        Sampling(**options)


def test_biases_and_bad_words_outside_the_vocabulary_are_refused() -> None:
    for sampling in (Sampling(logit_bias=((9, 1.0),)), Sampling(bad_words=((1, 9),)), Sampling(bad_words=((-1,),))):
        with pytest.raises(LucidError, match="outside the vocabulary"):
            sampling.check(9)


@pytest.mark.parametrize("penalty", [0.01, 100.0])
def test_the_strongest_repetition_penalties_leave_finite_logits(penalty: float) -> None:
    logits = np.array([np.finfo(np.float32).max, np.finfo(np.float32).min, 0.0], np.float32)
    sampler = Sampler(Sampling(1.0, repetition_penalty=penalty, seed=0), prompt_ids=[0, 1, 2])
    assert sampler(logits) == 0
    assert np.isfinite(sampler.chosen_from).all()


WORDS = 40
RNG = np.random.default_rng(3)
RAW = RNG.normal(size=WORDS) * 4
PROMPT, ANSWER = [3, 4, 4, 17], [5, 5, 9, 3, 5, 30]


def adjusted(prompt: list[int] = PROMPT, answer: list[int] = ANSWER, **settings: object) -> np.ndarray:
    adjustment = LogitAdjustment(prompt, **settings)  # type: ignore[arg-type]
    for token in answer:
        adjustment.add(token)
    return adjustment(RAW)


def by_transformers(processor: object, ids: list[int]) -> np.ndarray:
    found = processor(torch.tensor([ids]), torch.from_numpy(RAW[None]))  # type: ignore[operator]
    return found[0].numpy()  # type: ignore[no-any-return]


@pytest.mark.parametrize("penalty", [0.5, 1.3, 2.0])
def test_repetition_is_that_of_transformers(penalty: float) -> None:
    expected = by_transformers(RepetitionPenaltyLogitsProcessor(penalty), PROMPT + ANSWER)
    np.testing.assert_array_equal(adjusted(repetition=penalty), expected)
    assert (expected != RAW).sum() == 6  # tokens of prompt and answer, positive and negative ones
    assert {*(RAW[[3, 4, 17, 5, 9, 30]] > 0)} == {True, False}


def test_presence_and_frequency_follow_openai_s_formula() -> None:
    expected = RAW.copy()
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
    # transformers' bad words may begin in the prompt; a first token that is in no word prevents this.
    np.testing.assert_array_equal(adjusted(answer=answer, bad_words=words), by_transformers(processor, [1, *answer]))


def test_a_prompt_does_not_begin_a_bad_word() -> None:
    assert adjusted(prompt=[30], answer=[], bad_words=[(30, 8)])[8] == RAW[8]


def test_biases_come_before_penalties_as_in_vllm() -> None:
    """A bias that makes a logit positive makes the repetition penalty divide it; presence comes last."""
    token = next(token for token in ANSWER if RAW[token] < 0)
    found = adjusted(bias=[(token, 100.0)], repetition=2.0, presence=1.0)[token]
    assert found == (RAW[token] + 100) / 2 - 1


def test_a_bad_word_has_ids_with_and_without_a_space_before_it(tmp_path: Path) -> None:
    tokenizer = make("byte-level bpe", tmp_path)
    found = bad_word_ids(["fox"], tokenizer)
    assert {tokenizer.decode(list(word)) for word in found} <= {"fox", " fox"}
    assert tuple(tokenizer.encode("fox", add_special_tokens=False)) == found[0]


@pytest.mark.parametrize(("word", "said"), [("", "not empty"), ("  ", "not empty"), ("zebra", "no token for")])
def test_empty_and_unknown_bad_words_are_refused(word: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(LucidError, match=said):
        bad_word_ids([word], make("word level", tmp_path))


def test_invalid_or_repeated_token_ids_in_logit_bias_are_refused() -> None:
    assert logit_bias({"5": 1.0, "12": -2}) == ((5, 1.0), (12, -2))
    for wrong in ({"5": 1.0, "05": 2.0}, {"-1": 1.0}, {"": 1.0}, {"٣": 1.0}, {"9" * 30: 1.0}, {"1.0": 1.0}):
        with pytest.raises(LucidError, match="logit_bias"):
            logit_bias(wrong)


def test_a_seed_repeats_its_draws_and_another_does_not() -> None:
    first, again, other = (
        [sampler(RAW) for _ in range(30)] for sampler in (Sampler(Sampling(2.0, seed=seed)) for seed in (7, 7, 8))
    )
    assert first == again != other
