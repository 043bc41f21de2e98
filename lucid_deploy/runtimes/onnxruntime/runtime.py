"""The runtime ``onnxruntime``: an artifact's graphs, on the CPU or with another execution provider."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.onnxruntime.capabilities import capabilities_of
from lucid_deploy.runtimes.options import RuntimeOptions
from lucid_deploy.runtimes.runtime import Capabilities, Runtime

if TYPE_CHECKING:
    import onnx

    from lucid_deploy.artifact import Artifact
    from lucid_deploy.runtimes.evaluated_graph import Graph
    from lucid_deploy.runtimes.layers import Layers
    from lucid_deploy.runtimes.session import Session


class OnnxRuntime(Runtime):
    """See :class:`~lucid_deploy.runtimes.runtime.Runtime`."""

    name = "onnxruntime"
    description = "The artifact's graphs in onnxruntime, on the CPU or with a GPU provider."
    options = frozenset({"threads", "provider", "kernels"})

    def capabilities(self, options: RuntimeOptions) -> Capabilities:
        """See :meth:`Runtime.capabilities`."""
        return capabilities_of(options)

    def open(self, artifact: Artifact, options: RuntimeOptions) -> Session[Any]:
        """See :meth:`Runtime.open`."""
        if artifact.manifest.cache == "static":
            from lucid_deploy.runtimes.onnxruntime.static_session import StaticOrtSession

            return StaticOrtSession(artifact, options)
        from lucid_deploy.runtimes.onnxruntime.session import OrtSession

        return OrtSession(artifact, options)

    def open_layers(self, session: Session[Any], artifact: Artifact | None) -> Layers:
        """See :meth:`Runtime.open_layers`."""
        from lucid_deploy.runtimes.onnxruntime.layers import OrtLayers
        from lucid_deploy.runtimes.onnxruntime.session import OrtSession

        assert isinstance(session, OrtSession)
        if artifact is None:
            raise LucidError("The layers of a graph are cut out of its file: name the artifact that the session runs.")
        if artifact.manifest.inline:
            raise LucidError(
                "The solves of graphs that export --inline wrote are not to be told from other nodes, so that no layer "
                "can be run by itself. Verify an artifact of the same checkpoint without --inline for causes."
            )
        return OrtLayers(artifact, session.options)

    def open_graph(self, model: onnx.ModelProto, options: RuntimeOptions) -> Graph:
        """See :meth:`Runtime.open_graph`."""
        from lucid_deploy.runtimes.onnxruntime.graph import open_ort_graph

        return open_ort_graph(model, options)


RUNTIME = OnnxRuntime()
