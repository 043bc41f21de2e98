"""From options to limits and names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.serving.loading import ApiOptions, EngineOptions, open_checked, reader_setup

Exported = Callable[..., tuple[Path, Any]]


def test_limits_come_from_artifact_tokenizer_and_options(with_tokenizer: Path) -> None:
    engine = EngineOptions(str(with_tokenizer), rows=3, max_queue=4)
    setup = reader_setup(engine, ApiOptions())
    limits = setup.limits
    assert (limits.context, limits.prompt_tokens, limits.new_tokens, limits.rows) == (512, 512, 512, 7)
    assert (limits.vocabulary, limits.prompt_characters) == (97, 512 * 16)  # words of three letters
    assert setup.model == with_tokenizer.name
    narrow = reader_setup(engine, ApiOptions("other", 100, 9, 1000, 5.0)).limits
    assert (narrow.prompt_tokens, narrow.new_tokens, narrow.prompt_characters) == (100, 9, 1600)
    assert (narrow.body_bytes, narrow.seconds) == (1000, 5.0)
    assert reader_setup(engine, ApiOptions(max_prompt_tokens=10**6)).limits.prompt_tokens == 512


def test_long_words_are_allowed_for(with_tokenizer: Path) -> None:
    from tokenizers import Tokenizer

    path = str(with_tokenizer / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.add_tokens(["x" * 99])
    tokenizer.save(path)
    assert reader_setup(EngineOptions(str(with_tokenizer)), ApiOptions()).limits.prompt_characters == 512 * 100


def test_what_is_no_artifact_with_a_tokenizer(tmp_path: Path, artifact_copy: Path) -> None:
    with pytest.raises(LucidError):
        open_checked(str(tmp_path))
    with pytest.raises(LucidError, match=r"has no tokenizer\.json"):
        open_checked(str(artifact_copy))
