"""Whether an argument of the Python API is what its parameter takes, as the parameter's annotation says.

Annotations of the option classes are read as they stand, such as ``int | None``. Numbers are exact: no bool is a number
and no text is one. Numpy's and PyTorch's whole numbers count as whole numbers, and arrays of them as lists.
"""

from __future__ import annotations

import dataclasses
import numbers
import operator
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping, Set
from pathlib import Path
from typing import Any

from lucid_deploy.errors import LucidError

Convert = Callable[[Any], Any]
_SECRET = "token"  # of the Hub: no message repeats it
_NOT_LISTS = (str, bytes, bytearray, memoryview, Mapping, Set)  # iterable, but of letters, bytes, names or in no order


class _Wrong(Exception):
    """A value is not of a kind: where in it (empty: all of it), what belongs there, and what is there."""

    def __init__(self, value: Any, expected: str = "", place: str = "") -> None:
        self.value, self.expected, self.place = value, expected, place


def check_arguments(given: Mapping[str, Any], annotations: Mapping[str, str]) -> dict[str, Any]:
    """Return arguments as plain Python values: numbers as int and float, lists as tuples, token ids as a list.

    Args:
        given: Values by the names of their parameters.
        annotations: What the parameters take, by name: alternatives with ``|`` between them, each a class or a key of
            :data:`KINDS`.

    Raises:
        LucidError: One is of another type; its name, what it takes and what it was are said.
    """
    return {name: _checked(name, value, annotations[name]) for name, value in given.items()}


def annotations_of(options: type[Any]) -> dict[str, str]:
    """Return what the fields of a dataclass take, as :func:`check_arguments` wants it."""
    return {item.name: str(item.type) for item in dataclasses.fields(options)}


def _checked(name: str, value: Any, annotation: str) -> Any:
    kinds = annotation.split(" | ")
    inside: _Wrong | None = None
    for kind in kinds:
        try:
            return KINDS[kind][1](value) if kind in KINDS else _instance(name, value, kind)
        except _Wrong as error:
            inside = error if error.place else inside
    if inside is not None:
        raise LucidError(f"{name}{inside.place} must be {inside.expected}, not {_shown(name, inside.value)}.")
    words = [
        KINDS[kind][0] if kind in KINDS else f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind} object" for kind in kinds
    ]
    raise LucidError(f"{name} must be {' or '.join(words)}, not {_shown(name, value)}.")


def _shown(name: str, value: Any) -> str:
    if name.endswith(_SECRET):
        return f"a {type(value).__name__}"
    shown = " ".join(reprlib.repr(value).split())
    return shown if _is_unicode(str(value)) else f"{shown}, which is no text in UTF-8"


def _instance(name: str, value: Any, kind: str) -> Any:
    """Return an object of one of our classes, known by its name so that it need not be imported, of checked fields."""
    if kind not in {each.__name__ for each in type(value).__mro__}:
        raise _Wrong(value)
    if not kind.endswith("Options"):
        return value
    fields = (item for item in dataclasses.fields(value) if item.init)
    return dataclasses.replace(
        value,
        **{item.name: _checked(f"{name}.{item.name}", getattr(value, item.name), str(item.type)) for item in fields},
    )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _none(value: Any) -> None:
    if value is not None:
        raise _Wrong(value)


def _bool(value: Any) -> bool:
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):  # numpy's
        return bool(value)
    raise _Wrong(value)


def _int(value: Any) -> int:
    if (isinstance(value, numbers.Integral) and not isinstance(value, bool)) or _is_scalar_array(value):
        try:
            return operator.index(value)
        except (TypeError, RuntimeError):  # of floats; of tensors of PyTorch's device meta, which have no value
            raise _Wrong(value) from None
    raise _Wrong(value)


def _float(value: Any) -> float:
    if (isinstance(value, numbers.Real) and not isinstance(value, bool)) or _is_scalar_array(value):
        try:
            return float(value)
        except (OverflowError, RuntimeError):
            raise _Wrong(value) from None
    raise _Wrong(value)


def _is_scalar_array(value: Any) -> bool:
    """Whether it is an array without axes, numpy's or PyTorch's, of real numbers and not of bools."""
    dtype = getattr(value, "dtype", None)
    real = getattr(dtype, "kind", "") in ("i", "u", "f") or getattr(dtype, "is_complex", True) is False
    return real and getattr(value, "shape", None) == () and not str(dtype).endswith("bool")


def _str(value: Any) -> str:
    if isinstance(value, str) and _is_unicode(value):
        return str.__str__(value)  # of an Enum the text, not its name
    raise _Wrong(value)


def _path(value: Any) -> Path:
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if isinstance(path, str) and "\0" not in path and _is_unicode(path):  # neither ONNX nor a tokenizer takes others
        return Path(path)
    raise _Wrong(value)


def _callable(value: Any) -> Any:
    if not callable(value):
        raise _Wrong(value)
    return value


def _list_of(convert: Convert, expected: str) -> Convert:
    def checked(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, Iterable) or isinstance(value, _NOT_LISTS) or getattr(value, "shape", None) == ():
            raise _Wrong(value)
        found = []
        for place, item in enumerate(value):
            try:
                found.append(convert(item))
            except _Wrong:
                raise _Wrong(item, expected, f"[{place}]") from None
        return tuple(found)

    return checked


def _texts(value: Any) -> tuple[str, ...]:
    """One or several, in any order; None: none, as in OpenAI's API."""
    if value is None:
        return ()
    if isinstance(value, str):
        return (_str(value),)
    return _list_of(_str, "a text")(tuple(value) if isinstance(value, Set) else value)


def _dict_of_ints(value: Any) -> dict[str, int]:
    if not isinstance(value, Mapping):
        raise _Wrong(value)
    return {_str(name): _int(number) for name, number in value.items()}


def _biases(value: Any) -> tuple[tuple[int, float], ...]:
    try:
        pairs = list(dict(value).items())
    except (TypeError, ValueError):
        raise _Wrong(value) from None
    found = []
    for token, bias in pairs:
        try:
            number = _int(token)
        except _Wrong:
            raise _Wrong(token, "token ids, which are whole numbers", "'s keys") from None
        try:
            found.append((number, _float(bias)))
        except _Wrong:
            raise _Wrong(bias, "a number", f"[{number}]") from None
    return tuple(found)


def _array(value: Any) -> Any:
    import numpy as np

    ids = _ids(value)
    if any(not 0 <= token < 2**31 for token in ids):
        raise _Wrong(value)
    return np.array(ids, dtype=np.int64)


_ids = _list_of(_int, "a token id, which is a whole number")
# Words for what is taken, and what returns it or raises _Wrong.
KINDS: dict[str, tuple[str, Convert]] = {
    "None": ("None", _none),
    "bool": ("True or False", _bool),
    "int": ("a whole number", _int),
    "float": ("a number", _float),
    "str": ("a text", _str),
    "Path": ("a path", _path),
    "Callable": ("a function", _callable),
    "Ids": ("a list of token ids", lambda value: list(_ids(value))),
    "Array": ("a list of token ids", _array),
    "Biases": ("a mapping from token ids to numbers", _biases),
    "tuple[str, ...]": ("a list of texts", _list_of(_str, "a text")),
    "Texts": ("a text or several", _texts),
    "dict[str, int]": ("a mapping from names to whole numbers", _dict_of_ints),
}
