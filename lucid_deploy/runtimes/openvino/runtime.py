"""The runtime ``openvino``: an artifact's inlined graphs, on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lucid_deploy.runtimes.openvino.capabilities import CAPABILITIES
from lucid_deploy.runtimes.options import RuntimeOptions
from lucid_deploy.runtimes.runtime import Capabilities, Runtime

if TYPE_CHECKING:
    import onnx

    from lucid_deploy.artifact import Artifact
    from lucid_deploy.runtimes.evaluated_graph import Graph
    from lucid_deploy.runtimes.session import Session


class OpenVinoRuntime(Runtime):
    """See :class:`~lucid_deploy.runtimes.runtime.Runtime`."""

    name = "openvino"
    description = "The graphs of export --inline in OpenVINO, on the CPU."
    options = frozenset({"threads"})

    def capabilities(self, options: RuntimeOptions) -> Capabilities:
        """See :meth:`Runtime.capabilities`."""
        return CAPABILITIES

    def open(self, artifact: Artifact, options: RuntimeOptions) -> Session[Any]:
        """See :meth:`Runtime.open`."""
        if artifact.manifest.cache == "static":
            from lucid_deploy.runtimes.openvino.static_session import StaticOpenVinoSession

            return StaticOpenVinoSession(artifact, options)
        from lucid_deploy.runtimes.openvino.session import OpenVinoSession

        return OpenVinoSession(artifact, options)

    def open_graph(self, model: onnx.ModelProto, options: RuntimeOptions) -> Graph:
        """See :meth:`Runtime.open_graph`."""
        from lucid_deploy.runtimes.openvino.session import open_openvino_graph

        return open_openvino_graph(model, options)


RUNTIME = OpenVinoRuntime()
