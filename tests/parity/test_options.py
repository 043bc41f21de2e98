"""What may be asked of a verification, and what is said to be left out."""

from dataclasses import replace

import numpy as np
import pytest

from lucid_deploy.artifact import open_artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.parity.options import FULL, QUICK, VerifyOptions, prompt_ids, text_ids
from lucid_deploy.parity.scenarios import PROMPT_TOKENS, SCHEDULES


@pytest.fixture
def artifact(with_tokenizer):
    return open_artifact(with_tokenizer)


def test_everything_is_run_unless_it_is_to_be_quick():
    assert VerifyOptions().workload == FULL and FULL.schedules == SCHEDULES and list(FULL.left_out()) == []
    assert VerifyOptions(quick=True).workload == QUICK


def test_steps_and_prompt_tokens_are_kept_where_they_are_given():
    assert VerifyOptions(quick=True, steps=3).workload == replace(QUICK, steps=3)
    found = VerifyOptions(quick=True, prompt_tokens=4096).workload
    assert (found.prompt_tokens, found.steps, found.schedules) == (4096, QUICK.steps, QUICK.schedules)
    assert "Prompts have 99 tokens at most, not 250" in next(VerifyOptions(prompt_tokens=99).workload.left_out())


def test_a_quick_run_crosses_the_blocks_that_a_full_one_crosses():
    """Kernels and graphs go by blocks of up to 256 tokens."""
    assert QUICK.prompt_tokens == PROMPT_TOKENS < 256 < QUICK.prompt_tokens + QUICK.steps
    assert {schedule.name for schedule in QUICK.schedules} == {"one-shot", "chunks", "padded", "drafts"}


def test_a_quick_run_says_everything_that_it_leaves_out():
    words = " ".join(QUICK.left_out())
    for part in ("8 tokens are decoded", "not 32", "one token, correlated", "by token or in turns"):
        assert part in words
    assert "Decoding is tried after 250 tokens and more" in words
    assert list(replace(FULL, steps=4).left_out()) == ["4 tokens are decoded after each prompt, not 32."]


def test_a_cache_that_rounds_has_all_steps_in_every_schedule():
    full = FULL.with_all_steps()
    assert [schedule.name for schedule in full.schedules] == [schedule.name for schedule in FULL.schedules]
    assert all(schedule.steps is None for schedule in full.schedules) and list(full.left_out()) == []


def test_texts_are_encoded_and_ids_are_taken_as_they_are(artifact):
    np.testing.assert_array_equal(prompt_ids("w5 w9 w2", artifact), [5, 9, 2])
    np.testing.assert_array_equal(text_ids("w5 w9 w2", artifact, 2), [5, 9])
    ids = np.array([1, 2, 3])
    assert prompt_ids(ids, None) is ids
    np.testing.assert_array_equal(text_ids(ids, None, 2), [1, 2])
    assert prompt_ids(None, artifact) is None and text_ids(None, artifact, 5) is None


def test_texts_that_cannot_be_used(artifact):
    for text in ("", "w1"):
        with pytest.raises(LucidError, match="takes at least 2"):
            text_ids(text, artifact, 5)
    with pytest.raises(LucidError, match="prompt to verify with is empty"):
        prompt_ids("", artifact)
    with pytest.raises(LucidError, match="give token ids"):
        prompt_ids("w1", None)
    artifact.path("tokenizer.json").unlink()
    for read, option in (
        (lambda: prompt_ids("w1", artifact), "--prompt"),
        (lambda: text_ids("w1", artifact, 5), "--text"),
    ):
        with pytest.raises(LucidError, match=f"no tokenizer.json to read {option} with"):
            read()
