"""What may be asked of a verification, and what is said to be left out."""

from dataclasses import replace

import pytest

from lucid_deploy.artifact import open_artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.parity.options import prompt_ids, text_ids
from lucid_deploy.parity.scenarios import FULL, PROMPT_TOKENS, QUICK


@pytest.fixture
def artifact(with_tokenizer):
    return open_artifact(with_tokenizer)


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
