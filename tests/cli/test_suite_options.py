"""The options of suites: how they are written, and what is no value of theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.cli._suite_options import WAYS, SuiteArguments
from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation import truncation


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, {}),
        ('{"max_gen_toks": 8, "until": ["."]}', {"max_gen_toks": 8, "until": ["."]}),
        ("a=8,b=False, c=0.5,d=word", {"a": 8, "b": False, "c": 0.5, "d": "word"}),
    ],
)
def test_generation_options(text: str | None, expected: dict[str, Any]) -> None:
    assert SuiteArguments(gen_kwargs=text).parsed_gen_kwargs() == expected


@pytest.mark.parametrize("text", ["max_gen_toks", "=3", "{", "{1}"])
def test_what_are_none(text: str) -> None:
    with pytest.raises(LucidError, match="--gen-kwargs"):
        SuiteArguments(gen_kwargs=text).parsed_gen_kwargs()


def test_metadata_are_an_object() -> None:
    assert SuiteArguments(metadata='{"a": [1]}').parsed_metadata() == {"a": [1]}
    for text in ("[1]", "a=1"):
        with pytest.raises(LucidError, match="--metadata"):
            SuiteArguments(metadata=text).parsed_metadata()


def test_which_was_given(tmp_path: Path) -> None:
    given = SuiteArguments(num_fewshot=0, log_samples=True)
    assert given.given(("only", "log_samples")) == "--log-samples" and given.given(("num_fewshot",)) == "--num-fewshot"
    assert SuiteArguments().given(("only", "log_samples", "num_fewshot")) is None
    assert SuiteArguments(data=str(tmp_path)).folder == tmp_path
    with pytest.raises(LucidError, match="no such directory"):
        _ = SuiteArguments(data=str(tmp_path / "nowhere")).folder


def test_ways_to_cut_are_those_there_are() -> None:
    assert WAYS == truncation.WAYS
