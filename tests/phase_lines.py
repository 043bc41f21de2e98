"""What commands say of their progress where stderr is no terminal, and what is left without it."""

from __future__ import annotations

import re


def error_line(stderr: str) -> str:
    """Return stderr without the lines that announce phases; there is one line, the error, and nothing else."""
    rest = [line for line in stderr.splitlines(keepends=True) if not line.startswith("Phase ")]
    assert len(rest) == 1, stderr
    return rest[0]


def without_progress(stderr: str) -> str:
    """Return stderr without the lines that say every ten seconds how far a command is: on a busy machine there are."""
    return re.sub(r"^[^\n]*; \d+ s so far(, about \d+ s left)?\n", "", stderr, flags=re.M)
