"""Limits and names that come from options and artifacts, and the files that the engine watches."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from lucid_deploy.errors import CheckFailed
from lucid_deploy.serving.engine import EngineOptions, make_engine
from lucid_deploy.serving.front import ApiOptions, reader_setup

Exported = Callable[..., tuple[Path, Any]]


def test_limits_come_from_artifact_tokenizer_and_options(with_tokenizer: Path) -> None:
    engine = EngineOptions(str(with_tokenizer), rows=3, max_queue=4)
    setup = reader_setup(engine, ApiOptions())
    assert (setup.context, setup.prompt_tokens, setup.new_tokens, setup.choices) == (512, 512, 512, 2)
    assert reader_setup(engine, ApiOptions(max_choices=7)).choices == 7
    assert setup.vocabulary == 97
    assert setup.reading_seconds == 5.0  # of processor time, which no option changes
    assert setup.models == (with_tokenizer.name,)
    narrow = reader_setup(engine, ApiOptions("other", 100, 9, max_body_bytes=1000))
    assert (narrow.prompt_tokens, narrow.new_tokens) == (100, 9)
    assert (narrow.models, narrow.body_bytes) == (("other",), 1000)


def test_the_draft_model_s_files_are_checked_and_watched(
    with_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = Path(shutil.copytree(with_tokenizer, tmp_path / "draft"))
    monkeypatch.setattr("lucid_deploy.serving.engine.Engine", lambda *given: given)
    options = EngineOptions(str(with_tokenizer), speculate="draft", draft=str(draft))
    open_batcher, _, _, check, _ = cast(Any, make_engine(options))
    open_batcher()
    check()
    with (draft / "weights.bin").open("r+b") as file:
        file.write(bytes(64))
    os.utime(draft / "weights.bin", ns=(1, 1))
    with pytest.raises(CheckFailed, match=r"draft/weights\.bin changed while it was in use"):
        check()
    with pytest.raises(CheckFailed, match=f"{draft}: sha256 of weights.bin differs"):
        cast(Any, make_engine(options))[0]()
