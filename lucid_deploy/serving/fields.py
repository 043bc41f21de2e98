"""Reading a JSON body field by field: types are exact, numbers have ranges, and what is left over is refused."""

from __future__ import annotations

import json
from typing import Any

from lucid_deploy.serving.errors import ApiError, invalid

SHOWN = 40  # characters of a wrong value that a message repeats


class Fields:
    """The fields of a JSON object, each read once.

    Args:
        body: The request's body.

    Raises:
        ApiError: It is not a JSON object in UTF-8.
    """

    def __init__(self, body: bytes) -> None:
        try:
            data = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
        except UnicodeDecodeError as error:
            raise invalid(
                f"The body is not UTF-8: {error.reason} at byte {error.start}.", code="invalid_json"
            ) from error
        except (ValueError, RecursionError) as error:
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise invalid(f"The body is not valid JSON: {reason}.", code="invalid_json") from error
        if not isinstance(data, dict):
            raise invalid("The body must be a JSON object.", code="invalid_json")
        self._data: dict[str, Any] = data

    def take(self, name: str) -> Any:
        """Return a field, or None if it is missing or null."""
        return self._data.pop(name, None)

    def integer(self, name: str, default: int | None, low: int, high: int) -> int | None:
        """Return a whole number within a range.

        Raises:
            ApiError: It is something else.
        """
        value = self.take(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong(name, "a whole number", value)
        if not low <= value <= high:
            raise wrong(name, f"{low} to {high}", value)
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """Return a number within a range.

        Raises:
            ApiError: It is something else.
        """
        value = self.take(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong(name, "a number", value)
        if not low <= value <= high:  # whole numbers of any size compare; inf (1e999) is out of every range
            raise wrong(name, f"{low:g} to {high:g}", value)
        return float(value)

    def boolean(self, name: str, default: bool = False) -> bool:
        """Return true or false.

        Raises:
            ApiError: It is something else.
        """
        value = self.take(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise wrong(name, "true or false", value)
        return value

    def text(self, name: str) -> str:
        """Return a text that must be there.

        Raises:
            ApiError: It is missing or something else.
        """
        value = self.take(name)
        if value is None:
            raise invalid(f"The field {name} is missing.", name, "missing_field")
        return checked_text(name, value)

    def accept(self, names: tuple[str, ...]) -> None:
        """Drop fields that do not change the result."""
        for name in names:
            self._data.pop(name, None)

    def refuse(self, neutral: dict[str, tuple[Any, ...]]) -> None:
        """Refuse fields that would change the result and are not supported, unless they have a value without effect.

        Args:
            neutral: Per field its values without effect; null always is one.

        Raises:
            ApiError: A field has another value.
        """
        for name, harmless in neutral.items():
            value = self.take(name)
            if value is not None and not any(value == item and type(value) is type(item) for item in harmless):
                raise invalid(f"{name} is not supported by this server; leave it out.", name, "unsupported_parameter")

    def finish(self) -> None:
        """Refuse what nobody asked for.

        Raises:
            ApiError: There are fields left.
        """
        for name in self._data:
            raise invalid(f"Unknown field: {shown(name)}. Leave it out.", shown(name), "unknown_parameter")


def checked_text(name: str, value: Any) -> str:
    """Return a value that is a text of whole characters.

    Raises:
        ApiError: It is not.
    """
    if not isinstance(value, str):
        raise wrong(name, "a text", value)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise invalid(f"{name} has half a character (a lone surrogate) at {error.start}.", name) from error
    return value


def wrong(name: str, expected: str, value: Any) -> ApiError:
    """Return the error for a value of the wrong type or out of range."""
    return invalid(f"{name} must be {expected}, not {shown(value)}.", name, "invalid_value")


def shown(value: Any) -> str:
    """Return a value as a message repeats it: short, printable."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**SHOWN:
        return f"a number of {len(str(abs(value)))} digits"  # the parser takes no more than 4300
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = value if isinstance(value, str) else json.dumps(value)
    text = "".join(letter if letter.isprintable() else "?" for letter in text[: SHOWN + 1])
    text = text if len(text) <= SHOWN else text[:SHOWN] + "…"
    return f'"{text}"' if isinstance(value, str) else text


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
