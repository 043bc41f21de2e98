"""From the fields of a body to sampling and constraint; errors name the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from lucid_deploy.generation.constraint import from_json_schema, from_regex
from lucid_deploy.generation.sampling import Sampling
from lucid_deploy.json_fields import FieldError
from lucid_deploy.serving.fields import CompletionRequest
from lucid_deploy.serving.requests import ConstraintReader, sampling_of
from tests.generation.guided_walks import SIZE, tokenizer_of


def body(**fields: Any) -> CompletionRequest:
    return msgspec.convert({"model": "m", "prompt": "p", **fields}, CompletionRequest)


def test_constraints_of_bodies(tmp_path: Path) -> None:
    reader = ConstraintReader(tokenizer_of("byte-level bpe", tmp_path), SIZE)
    assert reader.read(body()) is None and reader.read(body(response_format={"type": "text"})) is None
    schema = {"name": "s", "schema": {"type": "null"}, "strict": False}
    assert reader.read(body(response_format={"type": "json_schema", "json_schema": schema})) == from_json_schema(
        {"type": "null"}
    )
    assert reader.read(body(response_format={"type": "json_object"})) == from_json_schema({"type": "object"})
    assert reader.read(body(guided_regex="a+")) == from_regex("a+")


@pytest.mark.parametrize(
    ("fields", "param", "code", "said"),
    [
        (
            {"guided_regex": "zebra"},
            "guided_regex",
            "invalid_value",
            "guided_regex: The constraint allows no token here",
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_field", "is missing"),
        (
            {"response_format": {"type": "json_object"}, "guided_regex": "a"},
            "guided_regex",
            "invalid_value",
            "cannot be combined",
        ),
    ],
)
def test_what_does_not_fit(fields: dict[str, Any], param: str, code: str, said: str, tmp_path: Path) -> None:
    reader = ConstraintReader(tokenizer_of("word level", tmp_path), SIZE)
    with pytest.raises(FieldError, match=said) as caught:
        reader.read(body(**fields))
    assert (caught.value.param, caught.value.code) == (param, code)


def test_sampling_of_bodies(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("word level", tmp_path)
    assert sampling_of(body(), tokenizer, SIZE) == Sampling(1.0)
    found = sampling_of(body(temperature=0, seed=-1, logit_bias={"3": 5}, bad_words=["true"]), tokenizer, SIZE)
    assert found == Sampling(0.0, seed=2**64 - 1, logit_bias=((3, 5.0),), bad_words=found.bad_words)
    assert len(found.bad_words) == 1
    for fields, param in (({"logit_bias": {"340": 1}}, "logit_bias"), ({"bad_words": ["zebra"]}, "bad_words")):
        with pytest.raises(FieldError) as caught:
            sampling_of(body(**fields), tokenizer, SIZE)
        assert caught.value.param == param
