"""Fields that say what an answer must be: one of them, and errors name it."""

from __future__ import annotations

from typing import Any

import pytest

from lucid_deploy.generation.constraint import (
    NAMES,
    constraint_of,
    from_choices,
    from_grammar,
    from_json_schema,
    from_regex,
)
from lucid_deploy.json_fields import FieldError


def test_each_field_makes_its_constraint() -> None:
    assert constraint_of({}) is None and constraint_of(dict.fromkeys(NAMES)) is None
    assert constraint_of({"guided_json": {"type": "null"}}) == from_json_schema({"type": "null"})
    assert constraint_of({"guided_json": '{"type": "null"}'}) == from_json_schema({"type": "null"})
    assert constraint_of({"guided_regex": "a+"}) == from_regex("a+")
    assert constraint_of({"guided_choice": ["a", "b"]}) == from_choices(["a", "b"])
    assert constraint_of({"guided_grammar": 'start: "a"'}) == from_grammar('start: "a"')


@pytest.mark.parametrize(
    ("fields", "name", "said"),
    [
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "cannot be combined with guided_regex"),
        ({"guided_json": "{"}, "guided_json", "The schema is not JSON"),
        ({"guided_json": "[" * 100_000}, "guided_json", "The schema is not JSON"),
        ({"guided_json": {"not": {}}}, "guided_json", "keyword not"),
        ({"guided_json": "5"}, "guided_json", "an object or a boolean"),
        ({"guided_choice": []}, "guided_choice", "at least one choice"),
        ({"guided_regex": ""}, "guided_regex", "empty"),
        ({"guided_grammar": "x"}, "guided_grammar", "not valid"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], name: str, said: str) -> None:
    with pytest.raises(FieldError, match=said) as caught:
        constraint_of(fields)
    assert caught.value.param == name and str(caught.value).startswith(name)
