"""Directories with something to recognise in them, and what was left beside them."""

from __future__ import annotations

from pathlib import Path


def filled(directory: Path, content: str) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "file").write_text(content)
    return directory


def content(directory: Path) -> str:
    return (directory / "file").read_text()


def hidden(directory: Path) -> list[str]:
    """What was left behind: all temporary names begin with a dot."""
    return sorted(path.name for path in directory.iterdir() if path.name.startswith("."))
