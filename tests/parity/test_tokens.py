"""Texts as token ids."""

import numpy as np
import pytest

from lucid_deploy.artifact import open_artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.parity.tokens import prompt_ids, text_ids


@pytest.fixture
def artifact(with_tokenizer):
    return open_artifact(with_tokenizer)


def test_texts_are_encoded_and_ids_are_taken_as_they_are(artifact):
    np.testing.assert_array_equal(prompt_ids("w5 w9 w2", artifact), [5, 9, 2])
    np.testing.assert_array_equal(text_ids("w5 w9 w2", artifact, 2), [5, 9])
    ids = np.array([1, 2, 3])
    assert prompt_ids(ids, None) is ids
    np.testing.assert_array_equal(text_ids(ids, None, 2), [1, 2])
    assert prompt_ids(None, artifact) is None and text_ids(None, artifact, 5) is None


@pytest.mark.parametrize("text", ["", "w1"])
def test_a_text_too_short_for_a_perplexity(artifact, text):
    with pytest.raises(LucidError, match="takes at least 2"):
        text_ids(text, artifact, 5)


def test_an_empty_prompt_is_refused(artifact):
    with pytest.raises(LucidError, match="prompt to verify with is empty"):
        prompt_ids("", artifact)


def test_texts_need_a_tokenizer(artifact):
    artifact.path("tokenizer.json").unlink()
    for read, option in (
        (lambda: prompt_ids("w1", artifact), "--prompt"),
        (lambda: text_ids("w1", artifact, 5), "--text"),
    ):
        with pytest.raises(LucidError, match=f"no tokenizer.json to read {option} with"):
            read()
    with pytest.raises(LucidError, match="give token ids"):
        prompt_ids("w1", None)
