"""Constraints on an answer, checked before the model runs: a JSON schema, regular expression, list of texts or grammar.

llguidance (extra ``guided``) compiles them. It was chosen over xgrammar, which needs transformers, Triton and pydantic:
llguidance is one library without dependencies, and reports which keywords of a JSON schema it cannot enforce.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from lucid_deploy.errors import LucidError, missing_extra
from lucid_deploy.json_fields import FieldError, named_field

if TYPE_CHECKING:
    from llguidance import LLParserLimits

MOST_CHARACTERS = 1 << 20  # in a schema, an expression, a grammar, or all choices together
MOST_CHOICES = 10_000  # also the most alternatives plus lines of a grammar
_LEXER_STATES = 50_000  # most states of one grammar's lexer; each takes 1 to 2 kB
# Whitespace between the parts of JSON. It is bounded, or a model might generate whitespace for ever.
JSON_OPTIONS = {"whitespace_pattern": r"[ \n\t]{0,20}"}
# Keywords of older JSON Schema drafts, which newer ones ignore: they would silently not be enforced.
_OLDER = ("dependencies", "disallow", "extends", "divisibleBy")
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")  # values: schemas by name
_DATA = ("const", "enum", "default", "examples")  # their values are data, not schemas
_UNIMPLEMENTED = re.compile(r'Unimplemented keys: \["(.*?)"')
_WHOLE = '%llguidance {"no_forcing": true}\nstart: @answer'  # no_forcing: every tokenization of a text is allowed

# The fields of requests and prompt files that constrain the answer, named as in vLLM.
GuidedJson = Annotated[
    dict[str, Any] | bool | str | None,
    Meta(description="A JSON schema, or its text, that the answer follows."),
]
GuidedRegex = Annotated[str | None, Meta(description="A regular expression that the whole answer matches.")]
GuidedChoice = Annotated[list[str] | None, Meta(description="A list of texts; the answer is one of them.")]
GuidedGrammar = Annotated[str | None, Meta(description="A grammar of the answer, in Lark's syntax or GBNF.")]


@dataclass(frozen=True)
class Constraint:
    """A grammar that answers follow: Lark with llguidance's extensions, or a JSON schema."""

    grammar: str
    is_schema: bool = False

    def compiled(self) -> str:
        """Return the grammar as the JSON text that llguidance compiles."""
        answer: dict[str, Any] = {"name": "answer"}
        if self.is_schema:
            answer["json_schema"] = {**_object(json.loads(self.grammar)), "x-guidance": JSON_OPTIONS}
        else:
            answer["lark_grammar"] = self.grammar
        return json.dumps({"grammars": [{"lark_grammar": _WHOLE}, answer]})

    def check(self) -> None:
        """Have llguidance check the constraint within :func:`limits`; raise a LucidError if it cannot be enforced."""
        if error := _error_of(self):
            raise LucidError(_message(error))


def from_json_schema(schema: Any) -> Constraint:
    """Return the constraint of a JSON schema (a dict or bool); raise a LucidError if it cannot be enforced."""
    if not isinstance(schema, dict | bool):
        raise LucidError("A JSON schema must be an object or a boolean.")
    _check_keywords(schema)
    text = json.dumps(schema)
    _check_size(len(text))
    return _checked(Constraint(text, is_schema=True))


def from_regex(expression: str) -> Constraint:
    """Return the constraint that the whole answer matches a regular expression (Rust's syntax, no look-around)."""
    _check_size(len(expression))
    if not expression:
        raise LucidError("The regular expression is empty.")
    try:
        return _checked(Constraint(f"start: /{library().regex_to_lark(expression, use_ascii='')}/"))
    except ValueError as error:
        raise LucidError(f"The regular expression is not valid: {error}.") from error


def from_choices(choices: Sequence[str]) -> Constraint:
    """Return the constraint to one of these texts; LucidError if there are none or too many, or one is empty."""
    if not choices:
        raise LucidError("There must be at least one choice.")
    if len(choices) > MOST_CHOICES:
        raise LucidError(f"There may be at most {MOST_CHOICES} choices, not {len(choices)}.")
    if not all(choices):
        raise LucidError("A choice must be text that is not empty.")
    _check_size(sum(map(len, choices)))
    # Use one terminal: alternatives of a rule would each be an item of the parser, which allows at most 2000.
    texts = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
    return _checked(Constraint(f"start: CHOICE\nCHOICE: {texts}"))


def from_grammar(text: str) -> Constraint:
    """Return the constraint of a grammar in Lark's syntax with llguidance's extensions, or in GBNF."""
    _check_size(len(text))
    if (count := text.count("|") + text.count("\n")) > MOST_CHOICES:  # compile time grows with its square
        raise LucidError(f"The grammar has {count} alternatives and lines; at most {MOST_CHOICES} are compiled.")
    library()
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return _checked(Constraint(any_to_lark(text)))
    except LucidError:
        raise
    except Exception as error:  # such as the library's GbnfToLarkError
        raise LucidError(f"The grammar is not valid: {_first_line(str(error))}.") from error


def schema_of(given: Any) -> Constraint:
    """Return the constraint of a JSON schema, given as an object or as JSON text."""
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
    """Return the constraint that a request's fields set, or None; raise a FieldError if a field is invalid."""
    names = [name for name in NAMES if given.get(name) is not None]
    if len(names) > 1:
        raise FieldError(f"{names[1]} cannot be combined with {names[0]}.", names[1], "invalid_value")
    if not names:
        return None
    with named_field(names[0]):
        return _MAKE[names[0]](given[names[0]])


def limits() -> LLParserLimits:
    """Return llguidance's limits for one grammar: its size, memory, and the work for one token."""
    bounds: LLParserLimits = library().LLParserLimits(max_lexer_states=_LEXER_STATES, verbose_errors=False)
    return bounds


@lru_cache(16)  # prompt files may repeat one schema on every line; few entries, as a grammar may have megabytes
def _error_of(constraint: Constraint) -> str:
    """Return llguidance's first error or warning about a grammar; empty if there is none."""
    matcher = library().LLMatcher
    _, error = matcher.validate_grammar_with_warnings(constraint.compiled(), None, limits=limits())
    return error[0] if error else ""


def library() -> Any:
    """Import and return llguidance; raise a LucidError if it is not installed."""
    try:
        import llguidance
    except ImportError as error:
        raise missing_extra("llguidance", "guided", "constrain answers by a schema, a regex or a grammar") from error
    return llguidance


def _checked(constraint: Constraint) -> Constraint:
    constraint.check()
    return constraint


def _check_size(characters: int) -> None:
    if characters > MOST_CHARACTERS:
        raise LucidError(f"The constraint has {characters} characters; at most {MOST_CHARACTERS} are compiled.")


def _object(schema: Any) -> dict[str, Any]:
    """Return a schema as an object; booleans are replaced by equivalent objects."""
    if isinstance(schema, dict):
        return schema
    return {} if schema else {"enum": []}


def _check_keywords(schema: Any) -> None:
    """Refuse keywords that llguidance accepts but does not enforce, and its own ``x-guidance``.

    llguidance lets an object repeat names that ``additionalProperties`` allows, so ``minProperties`` would not hold.
    """
    if isinstance(schema, dict) and "x-guidance" in schema:
        raise LucidError("The schema's keyword x-guidance changes how it is enforced; leave it out.")
    for item in _schemas(schema):
        required, least = item.get("required"), item.get("minProperties")
        named = len(set(map(str, required))) if isinstance(required, list) else 0
        if isinstance(least, int | float) and least > max(1, named):
            raise LucidError(_cannot("minProperties", " beyond the number of required names"))
        if found := [name for name in _OLDER if name in item]:
            raise LucidError(_cannot(found[0]))


def _schemas(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield a schema and all schemas nested in it that are objects."""
    left: list[Any] = [schema]
    while left:  # no recursion: a schema may be nested deeply
        item = left.pop()
        if isinstance(item, list):
            left += item
        elif isinstance(item, dict):
            yield item
            for keyword, value in item.items():
                if keyword in _BY_NAME and isinstance(value, dict):
                    left += value.values()
                elif keyword not in _DATA:
                    left.append(value)


def _cannot(keyword: str, more: str = "") -> str:
    return f"The schema's keyword {keyword} cannot be enforced{more}."


def _message(error: str) -> str:
    """Convert an error of llguidance to a one-line message for users."""
    if match := _UNIMPLEMENTED.search(error):
        return _cannot(match[1])
    if "oneOf constraints are not supported" in error:
        return _cannot("oneOf", " unless its schemas exclude each other")
    if "can't validate <" in error:
        return "A grammar must not name special tokens."
    return f"The constraint cannot be enforced: {_first_line(error)}."


def _first_line(error: str) -> str:
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    reason = next((line for line in lines if line.startswith("error: ")), "")
    text = lines[0] if lines else "no reason is given"
    text = re.sub(r"^at \d+\(\d+\): (failed to compile JSON schema: )?", "", text)
    return f"{text} {reason}".strip().rstrip(".")[:300]
