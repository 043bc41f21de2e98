"""A runtime that records with which options it is asked to open an artifact."""

from __future__ import annotations

from typing import Any

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes import Capabilities, Runtime, RuntimeOptions, Session


class Recording(Runtime):
    """Records the options, and opens nothing."""

    name = "recording"
    description = "Opens nothing."
    options = frozenset({"threads"})

    def __init__(self, can: Capabilities | None = None) -> None:
        self.can, self.opened = can or Capabilities(devices=("cpu", "npu")), []

    def capabilities(self, options: RuntimeOptions) -> Capabilities:
        return self.can

    def open(self, artifact: Artifact, options: RuntimeOptions) -> Session[Any]:
        self.opened.append(options)
        raise LucidError("That was all.")
