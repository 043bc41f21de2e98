"""A runtime that notes what it is asked to open."""

from __future__ import annotations

from typing import Any

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes import Capabilities, Runtime, RuntimeOptions, Session


class Recording(Runtime):
    """Notes what it is asked to open."""

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
