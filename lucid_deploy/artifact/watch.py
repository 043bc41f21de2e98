"""Noticing that an artifact's files change while it is in use.

Runtimes map the weights into memory: what is written into the file shows in the model at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lucid_deploy.artifact.manifest import MANIFEST
from lucid_deploy.artifact.read import Artifact, check_still_there
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


@contextmanager
def unchanged(artifact: Artifact) -> Iterator[None]:
    """Refuse what a block makes of an artifact that was replaced since it was opened: it may be made of parts of two.

    Raises:
        CheckFailed: It was, before the block or in it; also where the block failed, as it did not find what it knew.
    """
    watch = ArtifactWatch(artifact)
    try:
        yield
    except Exception:
        watch.check()  # which says more than a library does of halves of two artifacts
        raise
    watch.check()
    check_still_there(artifact)  # else it was replaced before the watch


def _identity(path: Path) -> _Identity | None:
    try:
        facts = os.stat(path)
    except OSError:  # removed, or out of reach: what is mapped can no longer be told from what lies there
        return None
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns
