"""Standard streams that are closed, or encodings that lack characters: neither may end in a traceback."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Sequence
from typing import TextIO

from lucid_deploy.errors import LucidError

# Of the characters that our messages and tables use, what an older encoding writes in place of them.
_PLAIN = {
    "…": "...",
    "→": "->",
    "–": "-",
    "—": "-",
    "‖": "||",
    "·": "*",
    "×": "x",
    "≥": ">=",
    "≤": "<=",
    "≈": "~",
    "─": "-",
    "⁻": "^-",
    "¹": "1",
    "²": "2",
    "₁": "1",
    "₂": "2",
    "’": "'",
    "µ": "u",
    "√": "sqrt",
}
_HANDLER = "lucid_deploy.plain"


def prepare_streams() -> None:
    """Make stdout and stderr take every character, and closed streams harmless.

    Raises:
        LucidError: stdout is closed, so that results would be lost.
    """
    codecs.register_error(_HANDLER, _plain)
    closed = sys.stdout is None
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:  # its number would go to the next file that is opened, and messages into that
            setattr(sys, name, os.fdopen(_null(number), "r" if number == 0 else "w"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)
    if closed:
        raise LucidError("stdout is closed, so the result has nowhere to go; if it is not wanted, use >/dev/null")


def let_go_of_output() -> None:
    """Let go of what cannot be written to stdout and stderr; Python would try again at its end, with status 120."""
    let_go(sys.stdout, 1)
    let_go(sys.stderr, 2)


def let_go(stream: TextIO, number: int) -> None:
    """Let go of what cannot be written to one of them, and of all that comes after it."""
    try:
        stream.flush()
    except OSError:
        _null(number)


def check_encoding(arguments: Sequence[str]) -> None:
    """Refuse arguments that the locale's encoding cannot read: neither ONNX nor a tokenizer takes such paths and texts.

    Raises:
        LucidError: There is one.
    """
    unread = next((item for item in arguments if any("\ud800" <= letter <= "\udfff" for letter in item)), None)
    if unread is None:
        return
    encoding = sys.getfilesystemencoding()
    hint = "Set the environment variable PYTHONUTF8=1, which reads UTF-8 in any locale."
    if encoding == "utf-8":
        hint = "Write it in UTF-8; a file with such a name can be renamed or linked to."
    shown = os.fsencode(unread).decode("utf-8", "backslashreplace")
    raise LucidError(f"The argument {shown} is no text in this locale's encoding, {encoding}. {hint}")


def _null(number: int) -> int:
    handle = os.open(os.devnull, os.O_RDWR)
    if handle != number:
        os.dup2(handle, number)
        os.close(handle)
    return number


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Replace what an encoding lacks: signs of ours by what reads alike, everything else by its number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_PLAIN.get(letter) or _numbered(letter) for letter in lacking), error.end


def _numbered(letter: str) -> str:
    return letter.encode("ascii", "backslashreplace").decode("ascii")
