"""Strict JSON: what is accepted, and the messages about what is refused."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pytest
from msgspec import Meta, Struct

from lucid_deploy.json_fields import FieldError, clipped, decode, half_character, shown


class Inner(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    kind: Literal["text"]
    text: str = ""


class Form(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    name: str
    count: Annotated[int, Meta(ge=1, le=9)] | None = None
    big: int | None = None
    share: Annotated[float, Meta(gt=0, le=1)] | None = None
    least: Annotated[float, Meta(ge=0)] | None = None
    flag: bool | None = None
    words: Annotated[list[Annotated[str, Meta(min_length=1, max_length=50)]], Meta(max_length=3)] | None = None
    inner: Inner | None = None
    items: list[Inner] | None = None
    either: str | list[int] | None = None
    named: dict[str, float] | None = None
    anything: Any = None


def refused(data: str | bytes | dict[str, Any]) -> FieldError:
    if isinstance(data, dict):
        data = json.dumps({"name": "n", **data})
    with pytest.raises(FieldError) as caught:
        decode(data.encode() if isinstance(data, str) else data, Form, "line")
    assert len(str(caught.value)) < 300
    return caught.value


def test_good_values_are_accepted() -> None:
    text = '{"name": "é", "count": 9, "share": 1, "flag": false, "inner": {"kind": "text"}, "either": [1], "big": null}'
    form = decode(text.encode(), Form)
    assert form == Form(name="é", count=9, share=1.0, flag=False, inner=Inner(kind="text"), either=[1])
    assert isinstance(form.share, float)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "The line is not valid JSON: Expecting value"),
        ("{", "The line is not valid JSON"),
        ('{"name": "n"} x', "Extra data"),
        ("[1]", "The line must be a JSON object."),
        ("null", "The line must be a JSON object."),
        (b'{"name": "\xff"}', "The line is not valid JSON: 'utf-8' codec can't decode byte 0xff"),
        ('{"a":' * 20_000, "it is nested too deeply"),
        ('{"anything":' + "[" * 900 + "1" + "]" * 900 + ', "x": 1}', 'Unknown field: "x"'),
        ('{"name": "n", "share": NaN}', "NaN is not a JSON number"),
        ('{"name": "n", "big": ' + "9" * 5000 + "}", "not valid JSON"),
        ('{"name": "n", "count": true, "count": 1}', 'an object has the name "count" twice'),
        ('{"name": "n", "count": 1, "count": 2}', 'an object has the name "count" twice'),
        ('{"name": "n", "na\\u006de": "n"}', 'an object has the name "name" twice'),
        ('{"name": "n", "\\ud800": 1}', "half a character"),
    ],
)
def test_texts_that_are_no_objects_are_refused(data: str | bytes, message: str) -> None:
    error = refused(data)
    assert message in str(error)
    assert error.code in ("invalid_json", "unknown_parameter")


@pytest.mark.parametrize(
    ("data", "message", "param"),
    [
        ({"name": None}, "name: expected `str`, got `null`.", "name"),
        ({"count": True}, "count: expected `int | null`, got `bool`.", "count"),
        ({"count": 5.0}, "count: expected `int | null`, got `float`.", "count"),
        ({"count": 10**60}, "count: expected `int` <= 9.", "count"),
        ({"share": 10**400}, "share: ", "share"),  # msgspec 0.21 has other words than 0.23
        ({"words": ["x" * 99]}, "words[0]: expected `str` of length <= 50.", "words[0]"),
        ({"inner": {}}, "The field inner.kind is missing.", "inner.kind"),
        ({"inner": {"kind": "image"}}, "inner.kind: unsupported value 'image'.", "inner.kind"),
        ({"inner": {"kind": "x" * 999}}, "…", "inner.kind"),
        ({"items": [{"kind": "text", "a b": 1}]}, 'Unknown field: items[0]."a b". Leave it out.', "items[0].a b"),
        ({"either": [1, "a"]}, "either[1]: expected `int`, got `str`.", "either[1]"),
        ({"named": {"n": "x"}}, "named: expected `float`, got `str`.", "named"),
        ({"x" * 5000: 1}, 'Unknown field: "' + "x" * 40 + '…". Leave it out.', "x" * 40 + "…"),
        ({"a`b\n": 1}, 'Unknown field: "a`b?". Leave it out.', "a`b?"),
        ({"name": "half \ud800"}, "The line has half a character", None),
        ({"anything": [{"a": "\udfff"}]}, "The line has half a character", None),
    ],
)
def test_fields_that_are_wrong_are_named(data: dict[str, Any], message: str, param: str | None) -> None:
    error = refused(data)
    assert message in str(error)
    assert error.param == param


def test_a_missing_field_is_named() -> None:
    error = refused("{}")
    assert (str(error), error.param, error.code) == ("The field name is missing.", "name", "missing_field")


def test_values_in_messages_are_short_and_printable() -> None:
    assert shown("a\n\x1b[1m") == '"a??[1m"'
    assert shown("x" * 100) == '"' + "x" * 40 + '…"'
    assert (shown([1]), shown({}), shown(None), shown(1.5)) == ("a list", "an object", "null", "1.5")
    assert clipped("é漢") == "é漢"


def test_half_characters_are_found() -> None:
    assert half_character("ab\ud800c") == 2
    assert half_character("ab🦊") is None
