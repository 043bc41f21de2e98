"""What ``verify`` says of its progress where stderr is no terminal, and what is left without it."""

from __future__ import annotations


def error_line(stderr: str) -> str:
    """Return stderr without the lines that announce phases; there is one line, the error, and nothing else."""
    rest = [line for line in stderr.splitlines(keepends=True) if not line.startswith("Phase ")]
    assert len(rest) == 1, stderr
    return rest[0]
