"""The body of /v1/lucid/solve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.serving.bodies import MOST_SOLVE_TOKENS
from lucid_deploy.serving.errors import ApiError
from lucid_deploy.serving.requests import PreparedRequest, RequestReader
from tests.serving.reader_tools import MODEL, write_setup


def read(folder: Path, **fields: Any) -> PreparedRequest:
    setup = write_setup(folder)
    reader = RequestReader(MODEL, setup.limits, TextTokenizer(folder), None)
    body = {"model": MODEL, "prompt": "w1 w2", "layer": 1, "head": 0, **fields}
    return reader.read("solve", json.dumps({name: value for name, value in body.items() if value is not ...}).encode())


def test_a_text_and_a_place(tmp_path: Path) -> None:
    found = read(tmp_path)
    assert (found.job.prompts, found.place) == (((1, 2),), (1, 0))
    assert read(tmp_path, prompt=[3, 4]).job.prompts == ((3, 4),)
    assert len(read(tmp_path, prompt=[3] * MOST_SOLVE_TOKENS).job.prompts[0]) == MOST_SOLVE_TOKENS


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        ({"prompt": [3] * (MOST_SOLVE_TOKENS + 1)}, "has 257 tokens; the solve is shown for 256", "prompt"),
        ({"prompt": ""}, "empty", "prompt"),
        ({"prompt": [100]}, "outside the vocabulary", "prompt"),
        ({"prompt": ["w1"]}, "must be a whole number", "prompt[0]"),
        ({"layer": -1}, "layer must be 0", "layer"),
        ({"head": True}, "head must be a whole number", "head"),
        ({"head": ...}, "head is missing", "head"),
        ({"temperature": 0}, "Unknown field", "temperature"),
        ({"model": "other"}, "does not exist here", "model"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str, param: str, tmp_path: Path) -> None:
    with pytest.raises(ApiError) as caught:
        read(tmp_path, **fields)
    assert (message in caught.value.message, caught.value.param) == (True, param)
