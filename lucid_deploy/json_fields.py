"""Read untrusted JSON objects into structs: types are exact, unknown keys are refused, messages name the field.

The structs are msgspec's and say what each field may be; the published JSON schemas come from them, too. Messages of
msgspec about a wrong value are replaced by ours, which show the value.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any, TypeVar, cast

import msgspec
from msgspec import inspect

from lucid_deploy.errors import LucidError

SHOWN = 40  # characters of a wrong value that a message repeats
NAMES = "[...]"  # how msgspec writes any name in an object
T = TypeVar("T")
_WORDS: dict[type, str] = {
    inspect.BoolType: "true or false",
    inspect.IntType: "a whole number",
    inspect.FloatType: "a number",
    inspect.StrType: "a text",
    inspect.ListType: "a list",
    inspect.StructType: "an object",
    inspect.DictType: "an object",
}
_UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`(?: - at `\$\.?(.*)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*?)`(?: - at `\$\.?(.*)`)?", re.DOTALL)
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


class FieldError(LucidError):
    """A JSON text that is not what it should be.

    Attributes:
        param: The field that is wrong, such as ``messages[0].role``; None: the whole.
        code: A word for programs: ``invalid_json``, ``missing_field``, ``unknown_parameter`` or ``invalid_value``.
    """

    def __init__(self, message: str, param: str | None, code: str) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


def decode(data: bytes, form: type[T], what: str = "text") -> T:
    """Return a JSON object in its form.

    A field's type in the form says what it must be. ``Meta(extra={"expected": "…"})`` replaces the words for it.

    Args:
        data: JSON in UTF-8.
        form: A msgspec struct.
        what: What messages call it.

    Raises:
        FieldError: It is not JSON, not an object, an object in it has a name twice, or a field is missing, unknown, of
            another type or out of range.
    """
    try:
        found: T = _decoder(cast(Any, form)).decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _explained(data, form, what, str(error)) from error
    _parsed(data, what)  # msgspec lets the last of two values of a name count
    return found


def wrong(name: str, expected: str, value: Any) -> FieldError:
    """Return the error for a value of the wrong type or out of range."""
    return FieldError(f"{name} must be {expected}, not {shown(value)}.", name, "invalid_value")


def shown(value: Any) -> str:
    """Return a value as a message repeats it: short, printable, texts in quotes."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**SHOWN:
        return f"a number of {len(str(abs(value)))} digits"  # the parser takes no more than 4300
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return f'"{clipped(value)}"' if isinstance(value, str) else clipped(json.dumps(value))


def clipped(text: str) -> str:
    """Return the beginning of a text, made printable."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text[: SHOWN + 1])
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


@cache
def _decoder(form: type[T]) -> msgspec.json.Decoder[T]:
    return msgspec.json.Decoder(form)


def _explained(data: bytes, form: type, what: str, reason: str) -> FieldError:
    """Return the error in our words. Parses the text again, which happens only to refused ones."""
    raw = _parsed(data, what)
    for name, text in _leaves(raw):
        if isinstance(text, str) and (place := half_character(text)) is not None:
            return FieldError(f"{name} has half a character (a lone surrogate) at {place}.", name, "invalid_value")
    if match := _UNKNOWN.fullmatch(reason):
        name = _joined(match[2], clipped(match[1]))
        message = f"Unknown field: {_joined(match[2], shown(match[1]))}. Leave it out."
        return FieldError(message, name, "unknown_parameter")
    if match := _MISSING.fullmatch(reason):
        name = _joined(match[2], match[1])
        return FieldError(f"The field {name} is missing.", name, "missing_field")
    match = re.search(r" - at `\$\.?(.*)`$", reason, re.DOTALL)
    if match is None:
        return FieldError(f"The {what} is not valid JSON: {reason}.", None, "invalid_json")
    path = match[1]
    if path.endswith(NAMES):  # a value in an object whose names are data
        path = path.removesuffix(NAMES)
        expected = _words(_at(raw, inspect.type_info(form), path)[1])
        return FieldError(f"{path} must be {expected}.", path, "invalid_value")
    value, kind = _at(raw, inspect.type_info(form), path)
    if value is None and path.isidentifier():
        return FieldError(f"The field {path} is missing.", path, "missing_field")
    if ", got " in reason:
        return wrong(path, _words(kind), value)
    return FieldError(f"{path} must be {_range(kind, value)}, not {_measured(value)}.", path, "invalid_value")


def _parsed(data: bytes, what: str) -> dict[str, Any]:
    """Parse a JSON object with Python's own parser, whose messages say where it went wrong."""
    try:
        raw = json.loads(data.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        message = f"The {what} is not UTF-8: {error.reason} at byte {error.start}."
        raise FieldError(message, None, "invalid_json") from error
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise FieldError(f"The {what} is not valid JSON: {reason}.", None, "invalid_json") from error
    if not isinstance(raw, dict):
        raise FieldError(f"The {what} must be a JSON object.", None, "invalid_json")
    return raw


def _no_constant(name: str) -> Any:
    raise NoNumber(f"{name} is not a JSON number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):  # which of the two is wrong could not be said
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"an object has the name {shown(twice)} twice")
    return made


def _joined(where: str | None, name: str) -> str:
    return f"{where}.{name}" if where else name


def _leaves(raw: Any) -> Iterator[tuple[str, Any]]:
    """Yield every value that is neither an object nor a list, with its path."""
    left: list[tuple[str, Any]] = [("", raw)]
    while left:  # no recursion: it may be nested as deep as Python's own parser goes
        path, value = left.pop()
        if isinstance(value, dict):
            left += [(_joined(path, clipped(name)), item) for name, item in value.items()]
        elif isinstance(value, list):
            left += [(f"{path}[{index}]", item) for index, item in enumerate(value)]
        else:
            yield path, value


class NoNumber(ValueError):
    """JSON that has NaN, an infinite number, or one that would become infinite."""


def finite(text: str) -> Any:
    """Parse JSON; reject NaN, infinity, and numbers such as 1e400 that would become infinite.

    Raises:
        ValueError: It is not JSON, or has such a number.
        RecursionError: It is nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_no_constant, parse_float=_no_infinity)
    except NoNumber as error:
        leaves = _leaves(json.loads(text))
        wrong_at = (path for path, value in leaves if isinstance(value, float) and not math.isfinite(value))
        raise NoNumber(f"{next(wrong_at, 'a field')}: {error}") from error


def _no_infinity(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise NoNumber(f"{clipped(digits)} is too large for a number")
    return number


def half_character(text: str) -> int | None:
    """Return where a text has half a character, a lone surrogate, which UTF-8 cannot hold; None if it has none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def _at(value: Any, kind: inspect.Type, path: str) -> tuple[Any, inspect.Type]:
    """Return the value at a path and what it should be."""
    for name, index in _STEP.findall(path):
        if index:
            value, kind = value[int(index)], _alternative(kind, inspect.ListType).item_type
        else:
            value = value.get(name)
            fields = {field.encode_name: field.type for field in _alternative(kind, inspect.StructType).fields}
            kind = fields[name]
    return value, kind


def _alternative(kind: inspect.Type, wanted: type) -> Any:
    """Return the alternative of a type that is a list, or a struct."""
    return next(part for part in _alternatives(kind) if isinstance(part, wanted))


def _alternatives(kind: inspect.Type) -> list[inspect.Type]:
    if isinstance(kind, inspect.Metadata):
        return _alternatives(kind.type)
    if isinstance(kind, inspect.UnionType):
        return [part for alternative in kind.types for part in _alternatives(alternative)]
    return [kind]


def _words(kind: inspect.Type) -> str:
    """Say what a value must be."""
    if expected := _expected(kind):
        return expected
    parts = [part for part in _alternatives(kind) if not isinstance(part, inspect.NoneType)]
    return " or ".join(dict.fromkeys(map(_word, parts)))


def _word(kind: inspect.Type) -> str:
    if isinstance(kind, inspect.LiteralType):
        return " or ".join(map(shown, kind.values))
    return _WORDS[type(kind)]


def _expected(kind: inspect.Type) -> str:
    """Return the words that a form gives for a type; empty if it gives none."""
    if isinstance(kind, inspect.Metadata):
        return str((kind.extra or {}).get("expected", "")) or _expected(kind.type)
    if isinstance(kind, inspect.UnionType):
        return next(filter(None, map(_expected, kind.types)), "")
    return ""


def _range(kind: inspect.Type, value: Any) -> str:
    """Say what range a value of the right type must be in."""
    for part in _alternatives(kind):
        if isinstance(part, inspect.ListType) and isinstance(value, list) and part.max_length is not None:
            return f"a list of at most {part.max_length}"
        if isinstance(part, inspect.StrType) and isinstance(value, str) and part.min_length is not None:
            most = f" of at most {part.max_length} characters" if part.max_length is not None else ""
            return f"a text{most} that is not empty"
        if isinstance(part, inspect.IntType | inspect.FloatType) and (part.ge, part.gt, part.le) != (None, None, None):
            return _numbers(part)
    return _words(kind)


def _measured(value: Any) -> str:
    """Return a value that is out of range as a message repeats it: with its length, if that may be the reason."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return f"one of {len(value)}" if isinstance(value, str) and len(value) > SHOWN else shown(value)


def _numbers(kind: inspect.IntType | inspect.FloatType) -> str:
    if kind.gt is not None:
        return f"above {kind.gt}" + (f" and at most {kind.le}" if kind.le is not None else "")
    return f"{kind.ge} to {kind.le}" if kind.le is not None else f"{kind.ge} or more"
