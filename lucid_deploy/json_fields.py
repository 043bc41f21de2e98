"""Read untrusted JSON objects into structs: types are exact, repeated keys are refused, errors name the field."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec

from lucid_deploy.errors import LucidError

SHOWN = 40  # characters of a wrong value that a message repeats
T = TypeVar("T")
_REASON = re.compile(r"(.*?)(?: - at `\$\.?(.*)`)?", re.DOTALL)  # msgspec's message and the path in it
_FIELD = re.compile(r"Object (contains unknown|missing required) field `(.*)`", re.DOTALL)


class FieldError(LucidError):
    """JSON that cannot be parsed, or a field of it that is missing, unknown or has a value that is not allowed.

    Attributes:
        param: The field that is wrong, such as ``messages[0].role``; None: the whole text.
        code: A word for programs, such as ``invalid_json``, ``missing_field`` or ``invalid_value``.
    """

    def __init__(self, message: str, param: str | None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


@contextmanager
def named_field(name: str) -> Iterator[None]:
    """Turn a LucidError or RecursionError in the body of the ``with`` into a FieldError that names the field."""
    try:
        yield
    except LucidError as error:
        message = str(error)
        raise FieldError(message if message.startswith(name) else f"{name}: {message}", name) from error
    except RecursionError as error:
        raise FieldError(f"{name} is nested too deeply.", name) from error


def decode(
    data: bytes, form: type[T], what: str = "text", prepare: Callable[[dict[str, Any]], None] | None = None
) -> T:
    """Parse a JSON object in UTF-8 into a msgspec struct, which decides about unknown keys, or raise a FieldError.

    Messages about the text as a whole call it ``what``. ``prepare`` may change the parsed object before it is checked.
    """
    try:
        text = data.decode()
        raw = finite(text, object_pairs_hook=_without_repeats)
        if "\\u" in text:  # may be half a character (a lone surrogate), which no reply could repeat
            json.dumps(raw, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        message = f"The {what} has half a character (a lone surrogate), which is no text."
        raise FieldError(message, None, "invalid_json") from error
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise FieldError(f"The {what} is not valid JSON: {reason}.", None, "invalid_json") from error
    if not isinstance(raw, dict):
        raise FieldError(f"The {what} must be a JSON object.", None, "invalid_json")
    if prepare is not None:
        prepare(raw)
    try:
        return msgspec.convert(raw, form)
    except msgspec.ValidationError as error:
        raise _field_error(str(error)) from error


def _field_error(reason: str) -> FieldError:
    found = _REASON.fullmatch(reason)
    assert found is not None
    text, path = found[1], (found[2] or "").removesuffix("[...]")  # msgspec's stand-in for the key of a dict
    if match := _FIELD.fullmatch(text):
        within = f"{path}." if path else ""
        name = within + clipped(match[2])
        if match[1] == "missing required":
            return FieldError(f"The field {name} is missing.", name, "missing_field")
        return FieldError(f"Unknown field: {within}{shown(match[2])}. Leave it out.", name, "unknown_parameter")
    text = clipped(text[0].lower() + text[1:], 200).replace("invalid enum value", "unsupported value")
    return FieldError(f"{path}: {text}." if path else f"{text}.", path or None, "invalid_value")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _no_infinity(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{clipped(digits)} is too large for a number")
    return number


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):  # nobody knows which of the values is meant
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"an object has the name {shown(twice)} twice")
    return made


def finite(text: str, **options: Any) -> Any:
    """Parse JSON; reject NaN, infinity, and numbers such as 1e400 that would become infinite, with a ValueError."""
    return json.loads(text, parse_constant=_no_constant, parse_float=_no_infinity, **options)


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


def clipped(text: str, most: int = SHOWN) -> str:
    """Return a text made printable and cut to ``most`` characters, with an ellipsis in place of the rest."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text[: most + 1])
    return text if len(text) <= most else text[:most] + "…"


def half_character(text: str) -> int | None:
    """Return the index of a text's first lone surrogate (half a character), which UTF-8 cannot encode, or None."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None
