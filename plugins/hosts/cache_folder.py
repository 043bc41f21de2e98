"""Where built libraries and compiled kernels are kept."""

from __future__ import annotations

import os
from pathlib import Path

from lucid_deploy.errors import LucidError


def cache_folder() -> Path:
    """Return lucid-deploy's folder in the user's cache; it need not exist.

    Raises:
        LucidError: The user has no home, and no variable says where else.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lucid-deploy"
    except RuntimeError as error:
        raise LucidError(
            "This user has no home folder, so there is no place for built libraries and kernels. Set HOME or "
            "XDG_CACHE_HOME to a folder."
        ) from error
