"""The JSON Schema test suite: no constraint allows an invalid value, and every finished answer is valid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.constraint import Constraint, from_json_schema
from lucid_deploy.generation.guide import GuideFactory
from tests.generation.guided_walks import END, SIZE, tokenizer_of, walk

SUITE = json.loads(Path(__file__).with_name("json_schema_test_suite.json").read_text(encoding="utf-8"))["groups"]
# All schemas of these groups are refused; each message names a keyword, or says why nothing can follow the schema.
NEVER = (
    "contains",
    "defs",
    "dependentRequired",
    "dependentSchemas",
    "if-then-else",
    "maxContains",
    "minContains",
    "not",
    "propertyNames",
    "uniqueItems",
)
Setup = tuple[TextTokenizer, GuideFactory]


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    tokenizer = tokenizer_of("byte-level bpe", tmp_path_factory.mktemp("tokenizer"))
    return tokenizer, GuideFactory(tokenizer, SIZE, [END])


def takes(setup: Setup, constraint: Constraint, data: Any) -> bool:
    """Return whether a constraint allows a value, written without blanks."""
    tokenizer, guides = setup
    guide = guides.open(constraint).result()
    for token in tokenizer.encode(json.dumps(data, separators=(",", ":"), ensure_ascii=False)):
        allowed = guide.allowed()
        if allowed is None or not allowed[token]:
            return False
        guide.advance(token)
    allowed = guide.allowed()
    return allowed is None or bool(allowed[END])


@pytest.mark.parametrize("keyword", SUITE)
def test_allowed_values_and_finished_answers_are_valid(keyword: str, setup: Setup) -> None:
    refused, taken = 0, 0
    for number, group in enumerate(SUITE[keyword]):
        try:
            constraint = from_json_schema(group["schema"])
        except LucidError as error:
            assert "cannot be enforced" in str(error), group["description"]
            refused += 1
            continue
        for valid, data in group["tests"]:
            found = takes(setup, constraint, data)
            assert valid or not found, (group["description"], data)
            taken += found
        text, complete = walk(setup[1], setup[0], constraint, number, most=150)
        if complete and "p{" not in json.dumps(group["schema"]):  # a Unicode class, which Python's re lacks
            jsonschema.Draft202012Validator(group["schema"]).validate(json.loads(text))
    assert (refused == len(SUITE[keyword])) == (taken == 0) == (keyword in NEVER), (refused, taken)
