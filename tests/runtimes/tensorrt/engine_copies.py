"""Copies of an artifact to build engines in, and limits that are built fast."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lucid_deploy.artifact import Artifact, open_artifact

SMALL: dict[str, Any] = {"max_batch": 2, "max_context": 64, "prefill_chunk": 16}


def copy_of(artifact: Artifact, target: Path) -> Artifact:
    return open_artifact(shutil.copytree(artifact.directory, target, ignore=shutil.ignore_patterns("engines")))
