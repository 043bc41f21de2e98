"""Remove the progress lines that commands write to stderr if it is no terminal."""

from __future__ import annotations

import re


def error_line(stderr: str) -> str:
    """Return stderr without the lines that announce phases; there is one line, the error, and nothing else."""
    rest = [line for line in stderr.splitlines(keepends=True) if not line.startswith("Phase ")]
    assert len(rest) == 1, stderr
    return rest[0]


def without_progress(stderr: str) -> str:
    """Return stderr without progress lines, which come every ten seconds: on a busy machine there may be some."""
    return re.sub(r"^[^\n]*; \d+ s so far(, about \d+ s left)?\n", "", stderr, flags=re.M)
