"""Constraints are checked before anything runs, and refusals name what cannot be enforced."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.generation.constraint import (
    NAMES,
    constraint_of,
    from_choices,
    from_grammar,
    from_json_schema,
    from_regex,
)
from lucid_deploy.json_fields import FieldError

REFUSED: dict[str, Any] = {
    "not": {"not": {"type": "string"}},
    "unevaluatedProperties": {"unevaluatedProperties": False},
    "minProperties": {"type": "object", "minProperties": 2},
    "dependencies": {"dependencies": {"a": ["b"]}},
    "oneOf": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    "x-guidance": {"x-guidance": {"lenient": True}, "not": {"type": "string"}},
    "format": {"type": "string", "format": "unheard-of"},
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_keyword_that_cannot_be_enforced_is_named(name: str) -> None:
    for schema in (REFUSED[name], {"type": "array", "items": REFUSED[name]}):
        if name == "x-guidance" and "items" in schema:
            continue  # x-guidance has a meaning at the top level only
        with pytest.raises(LucidError, match=name) as caught:
            from_json_schema(schema)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_property_names_and_data_like_keywords_are_accepted() -> None:
    for schema in ({"properties": {"dependencies": {}}}, {"const": {"minProperties": 5}}, {"enum": [{"extends": 1}]}):
        from_json_schema(schema)
    from_json_schema({"type": "object", "required": ["a", "b"], "minProperties": 2, "properties": {"a": {}, "b": {}}})


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ([], "must be an object or a boolean"),
        (False, "Unsatisfiable"),
        ({"enum": []}, "Unsatisfiable"),
        ({"type": "text"}, "Invalid type: text"),
        ({"$ref": "https://example.org/schema"}, "not present"),
        ({"$ref": "#/$defs/none"}, "does not exist"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "minLength"),
        ({"type": "string", "pattern": "(?=a)"}, "look-around"),
        ({"description": "x" * (1 << 20)}, "characters; at most 1048576 are compiled"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_invalid_unsatisfiable_or_too_large_schemas_are_refused(schema: Any, said: str) -> None:
    with pytest.raises(LucidError, match=said):
        from_json_schema(schema)


def test_a_deeply_nested_schema_is_compiled_or_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(300):
        schema = {"items": schema}
    try:
        from_json_schema(schema)
    except LucidError as error:
        assert "enforced" in str(error)


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("", "empty"),
        ("(", "unclosed group"),
        ("(?=a)b", "look-around"),
        (r"(a)\1", "backreferences"),
        (r"\bword", "lookarounds"),
        ("x" * (1 << 20) + "x", "at most 1048576"),
    ],
)
def test_expressions_that_are_refused(expression: str, said: str) -> None:
    with pytest.raises(LucidError, match=said):
        from_regex(expression)


@pytest.mark.parametrize(
    ("choices", "said"), [([], "at least one"), (["a", ""], "not empty"), (["a"] * 10_001, "10000")]
)
def test_choices_that_are_refused(choices: list[str], said: str) -> None:
    with pytest.raises(LucidError, match=said):
        from_choices(choices)


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        ("", "not valid"),
        ("start: other", "unknown name"),
        ("start: <|end|>", "special tokens"),
        ("start: <[5]>", "special tokens"),
        ('start: %json {"not": {}}', "keyword not"),
        ('rot ::= "a"', "not valid"),
        ('start: "a', "enforced"),
    ],
)
def test_grammars_that_are_refused(grammar: str, said: str) -> None:
    with pytest.raises(LucidError, match=said):
        from_grammar(grammar)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(LucidError, match=r"guided|llguidance"):
        from_regex("a+b+c+")


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
        ({"guided_regex": ""}, "guided_regex", "empty"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], name: str, said: str) -> None:
    with pytest.raises(FieldError, match=said) as caught:
        constraint_of(fields)
    assert caught.value.param == name and str(caught.value).startswith(name)
