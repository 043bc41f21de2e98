"""The fields that say what an answer must be, as vLLM names them; lines of files and bodies of requests have them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from msgspec import Meta

from lucid_deploy.errors import LucidError
from lucid_deploy.generation.constraint import Constraint, from_choices, from_grammar, from_json_schema, from_regex
from lucid_deploy.json_fields import FieldError

GuidedJson = Annotated[
    dict[str, Any] | bool | str | None,
    Meta(description="A JSON schema, or its text, that the answer follows.", extra={"expected": "a JSON schema"}),
]
GuidedRegex = Annotated[str | None, Meta(description="A regular expression that the whole answer matches.")]
GuidedChoice = Annotated[
    list[str] | None, Meta(description="Texts of which the answer is one.", extra={"expected": "a list of texts"})
]
GuidedGrammar = Annotated[str | None, Meta(description="A grammar of the answer, in Lark's syntax or GBNF.")]


def schema_of(given: Any) -> Constraint:
    """Return the constraint of a JSON schema, or of its text.

    Raises:
        LucidError: It is no schema, or cannot be enforced.
    """
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError) as error:
            raise LucidError(f"The schema is not JSON: {error}.") from error
    return from_json_schema(given)


_MAKE: dict[str, Callable[[Any], Constraint]] = {
    "guided_json": schema_of,
    "guided_regex": from_regex,
    "guided_choice": from_choices,
    "guided_grammar": from_grammar,
}
NAMES = tuple(_MAKE)


def constraint_of(given: Mapping[str, Any]) -> Constraint | None:
    """Return the constraint that fields ask for; None if they ask for none.

    Args:
        given: Fields by name; those that are None are not there.

    Raises:
        FieldError: There are several, or it cannot be enforced.
    """
    names = [name for name in NAMES if given.get(name) is not None]
    if len(names) > 1:
        raise FieldError(f"{names[1]} cannot be combined with {names[0]}.", names[1], "invalid_value")
    return named(names[0], _MAKE[names[0]], given[names[0]]) if names else None


def named(name: str, make: Callable[[Any], Constraint], value: Any) -> Constraint:
    """Make a constraint from a field's value; errors name the field.

    Raises:
        FieldError: It cannot be enforced.
    """
    try:
        return make(value)
    except LucidError as error:
        raise FieldError(f"{name}: {error}", name, "invalid_value") from error
    except RecursionError as error:
        raise FieldError(f"{name} is nested too deeply.", name, "invalid_value") from error
