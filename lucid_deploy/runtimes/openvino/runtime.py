"""The runtime ``openvino``: an artifact's inlined graphs, on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lucid_deploy.runtimes.openvino import CAPABILITIES
from lucid_deploy.runtimes.options import RuntimeOptions
from lucid_deploy.runtimes.runtime import Capabilities, Runtime

if TYPE_CHECKING:
    from lucid_deploy.artifact import Artifact
    from lucid_deploy.runtimes.session import Session


class OpenVinoRuntime(Runtime):
    """Opens artifacts in OpenVINO."""

    name = "openvino"
    description = "The inlined graphs in OpenVINO, on the CPU."
    options = frozenset({"threads"})

    def capabilities(self, options: RuntimeOptions) -> Capabilities:
        return CAPABILITIES

    def open(self, artifact: Artifact, options: RuntimeOptions) -> Session[Any]:
        from lucid_deploy.runtimes.openvino.session import OpenVinoSession, StaticOpenVinoSession

        return (StaticOpenVinoSession if artifact.manifest.cache == "static" else OpenVinoSession)(artifact, options)


RUNTIME = OpenVinoRuntime()
