"""The OpenAPI document: references lead to schemas, and the schemas accept the bodies that the reader accepts."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import msgspec
import pytest

from lucid_deploy.serving.app import document
from lucid_deploy.serving.fields import ChatRequest, CompletionRequest, ResponseRequest


def schema(name: str) -> dict[str, Any]:
    """Return one schema, with all schemas that it may refer to."""
    found = document()["components"]["schemas"]
    return {"$ref": f"#/components/schemas/{name}", "components": {"schemas": found}}


def test_every_reference_leads_to_a_schema() -> None:
    text = json.dumps(document())
    names = set(re.findall(r"#/components/schemas/(\w+)", text))
    assert {"CompletionRequest", "ChatRequest", "Error"} <= names
    assert names <= set(document()["components"]["schemas"])
    assert "http" not in text.replace('"type": "http"', "")  # no outside address


@pytest.mark.parametrize(
    ("form", "body", "good"),
    [
        (CompletionRequest, {"model": "m", "prompt": "p"}, True),
        (CompletionRequest, {"model": "m", "prompt": [[1], [2]], "stop": ["a"], "seed": None}, True),
        (CompletionRequest, {"model": "m"}, False),
        (CompletionRequest, {"model": "m", "prompt": "p", "file": 1}, False),
        (CompletionRequest, {"model": "m", "prompt": "p", "max_tokens": True}, False),
        (CompletionRequest, {"model": "m", "prompt": "p", "top_p": 0}, False),
        (CompletionRequest, {"model": "m", "prompt": "p", "stop": ["x"] * 17}, False),
        (CompletionRequest, {"model": "m", "prompt": "p", "stop": ""}, False),
        (ChatRequest, {"model": "m", "messages": [{"role": "user", "content": "c"}]}, True),
        (ChatRequest, {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "c"}]}]}, True),
        (ResponseRequest, {"model": "m", "input": "c", "top_logprobs": 20}, True),
        (ResponseRequest, {"model": "m", "input": [{"type": "message", "role": "user", "content": "c"}]}, True),
        (ResponseRequest, {"model": "m", "input": []}, False),
        (ResponseRequest, {"model": "m", "input": [{"type": "reasoning"}]}, False),
        (ResponseRequest, {"model": "m", "input": "c", "stop": "d"}, False),
        (ChatRequest, {"model": "m", "messages": []}, False),
        (ChatRequest, {"model": "m", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, False),
    ],
)
def test_schema_and_reader_agree(form: Any, body: dict[str, Any], good: bool) -> None:
    by_schema = jsonschema.Draft202012Validator(schema(form.__name__)).is_valid(body)
    try:
        msgspec.json.decode(json.dumps(body).encode(), type=form)
        by_reader = True
    except msgspec.ValidationError:
        by_reader = False
    assert (by_schema, by_reader) == (good, good)
