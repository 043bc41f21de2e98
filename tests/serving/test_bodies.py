"""The schemas of bodies, held against what the reader takes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from lucid_deploy.json_fields import FieldError
from lucid_deploy.serving.bodies import ChatRequest, CompletionRequest, Message, refuse_unsupported

BASE: dict[str, Any] = {"model": "m", "prompt": "p"}


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"suffix": False}, "suffix"),
        ({"suffix": 0}, "suffix"),
        ({"store": True}, "store"),
        ({"service_tier": "flex"}, "service_tier"),
    ],
)
def test_what_would_change_the_result_is_refused(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(FieldError, match=f"{name} is not supported") as error:
        refuse_unsupported(msgspec.convert({**BASE, **fields}, CompletionRequest))
    assert (error.value.param, error.value.code) == (name, "unsupported_parameter")


@pytest.mark.parametrize("fields", [{"suffix": ""}, {"suffix": None}, {}])
def test_values_without_effect_are_taken(fields: dict[str, Any]) -> None:
    refuse_unsupported(msgspec.convert({**BASE, **fields}, CompletionRequest))


@pytest.mark.parametrize("refusal", ["", None])
def test_an_earlier_answer_that_refused_nothing_is_taken(refusal: str | None) -> None:
    refuse_unsupported(Message(role="assistant", content="", refusal=refusal))


def test_a_part_is_named_with_its_place() -> None:
    for name, value in (("function_call", {}), ("refusal", "I cannot say that.")):
        message = Message(role="assistant", content="", **{name: value})
        with pytest.raises(FieldError, match=rf"messages\[2\]\.{name} is not supported"):
            refuse_unsupported(message, "messages[2].")


@pytest.mark.parametrize("form", [CompletionRequest, ChatRequest])
def test_every_field_is_described(form: Any) -> None:
    _, schemas = msgspec.json.schema_components((form,))
    fields = schemas[form.__name__]["properties"]
    bare = {name for name, schema in fields.items() if "description" not in str(schema) and "$ref" not in str(schema)}
    assert bare == set()
    assert schemas[form.__name__]["additionalProperties"] is False
