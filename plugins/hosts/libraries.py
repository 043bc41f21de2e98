"""Folders of built libraries and compiled kernels."""

from __future__ import annotations

import os
from pathlib import Path

from lucid_deploy.errors import LucidError

PREBUILT = Path(__file__).with_name("prebuilt")  # exists in wheels built by ``make wheel``, not in a checkout


def cache_folder() -> Path:
    """Return lucid-deploy's folder in the user's cache; it need not exist.

    Raises:
        LucidError: The user has no home folder, and XDG_CACHE_HOME is not set.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lucid-deploy"
    except RuntimeError as error:
        raise LucidError(
            "This user has no home folder, so there is no place for built libraries and kernels. Set HOME or "
            "XDG_CACHE_HOME to a folder."
        ) from error


def prebuilt(name: str) -> Path | None:
    """Return the path of a prebuilt library, installed with this package; None if there is none of that name."""
    path = PREBUILT / name
    return path if path.is_file() else None


def origin(library: Path) -> str:
    """Return a library's origin for messages: the wheel, or a build on this machine."""
    return "from the wheel" if library.parent == PREBUILT else "built here"
