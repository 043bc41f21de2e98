"""Libraries that a platform wheel brings, so that nothing has to be compiled where it is installed."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).with_name("prebuilt")  # in a wheel of make wheel; a checkout has none


def prebuilt(name: str) -> Path | None:
    """Return the library of that file name that was installed with this package; None if none was."""
    path = FOLDER / name
    return path if path.is_file() else None


def origin(library: Path) -> str:
    """Say where a library is from, for people: this package, or a place of the user's."""
    return "from the wheel" if library.parent == FOLDER else "built here"
