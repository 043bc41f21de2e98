"""Noticing that an artifact's files change while it is in use.

Runtimes map the weights into memory: what is written into the file shows in the model at once.
"""

from __future__ import annotations

import os
from pathlib import Path

from lucid_deploy.artifact.manifest import MANIFEST
from lucid_deploy.artifact.read import Artifact
from lucid_deploy.errors import CheckFailed

_Identity = tuple[int, int, int, int]


class ArtifactWatch:
    """Remembers which files an artifact had: device and inode, size, time of the last change.

    Args:
        artifact: The artifact; make the watch before anything reads its files.
    """

    def __init__(self, artifact: Artifact) -> None:
        self._files = {path: _identity(path) for path in map(artifact.path, [MANIFEST, *artifact.manifest.files])}

    def check(self) -> None:
        """Compare; takes some microseconds for each file.

        Raises:
            CheckFailed: A file was written to, replaced, removed or made unreachable.
        """
        for path, known in self._files.items():
            if _identity(path) != known:
                raise CheckFailed(
                    f"{path.parent.name}/{path.name} changed while it was in use: what the model computes may be "
                    "wrong. Put the artifact right and start again."
                )


def _identity(path: Path) -> _Identity | None:
    try:
        facts = os.stat(path)
    except OSError:  # removed, or out of reach: what is mapped can no longer be told from what lies there
        return None
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns
