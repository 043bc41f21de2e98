"""The errors that a user can cause. Commands turn some others, such as OSError, into these; the rest are bugs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class LucidError(Exception):
    """Bad usage or bad input; the message says what is wrong, where, and what to do. The command line exits with 2."""

    exit_code = 2


class CheckFailed(LucidError):
    """A check gave a negative answer (parity, a corrupted artifact). The command line exits with 1."""

    exit_code = 1


class NotProvenError(CheckFailed):
    """No check failed, but those that passed prove too little. The command line exits with 3."""

    exit_code = 3


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an OSError in the block into a LucidError with the file's name; Python names it only if opening fails."""
    try:
        yield
    except OSError as error:
        raise LucidError(f"{path} cannot be read: {error.strerror or error}.") from error


def printable(text: str) -> str:
    """Replace characters that could move a cursor, change a title or reverse text by U+FFFD; keep tab and newline."""
    return re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "\N{REPLACEMENT CHARACTER}", text)


def in_one_line(error: Exception) -> str:
    """Return a library's message with every run of white space, line breaks included, replaced by one space."""
    return " ".join(str(error).split())


def missing_extra(package: str, extra: str, purpose: str) -> LucidError:
    """Return the error for an optional package that is not installed.

    Args:
        package: Import name of the package, such as ``onnxruntime``.
        extra: The extra of lucid-deploy that brings it, such as ``cpu``.
        purpose: What it is needed for, as the end of "… is needed to …".
    """
    return missing_package(package, f"lucid-deploy[{extra}]", purpose)


def spelled_out(text: str) -> str:
    """Replace ``"lucid-deploy[extra]"`` in a pip command by the packages of the extra.

    lucid-deploy may be installed from a checkout or a wheel: pip then finds it on no index, but finds these packages.
    """
    return re.sub(r'"lucid-deploy\[(\w+)\]"', lambda found: _packages(found[1]), text)


def _packages(extra: str) -> str:
    """Return an extra's requirements as pip takes them, or ``-e ".[extra]"`` if the installation lists none."""
    import importlib.metadata

    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(line) for line in importlib.metadata.requires("lucid-deploy") or ()]
    except importlib.metadata.PackageNotFoundError:
        wanted = []
    named = [item for item in wanted if item.marker is not None and "extra" in str(item.marker)]
    chosen = [item for item in named if item.marker is not None and item.marker.evaluate({"extra": extra})]
    words = [f"{item.name}[{','.join(item.extras)}]" if item.extras else item.name for item in chosen]
    quoted = [f'"{word}{item.specifier}"' for word, item in zip(words, chosen, strict=True)]
    return " ".join(quoted) or f'-e ".[{extra}]"'


def missing_package(package: str, install: str, purpose: str) -> LucidError:
    """Return the error of :func:`missing_extra` for any package; ``install`` is what the user installs by pip."""
    line = spelled_out(f'pip install "{install}"')
    return LucidError(f"The package {package} is needed to {purpose} and is not installed. Run: {line}")
