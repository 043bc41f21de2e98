"""The runtime ``onnxruntime``: an artifact's graphs, on the CPU or with another execution provider."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lucid_deploy.artifact import OPSET_TENSOR_SCATTER
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.onnxruntime import CAPABILITIES
from lucid_deploy.runtimes.options import RuntimeOptions
from lucid_deploy.runtimes.runtime import Capabilities, Runtime

if TYPE_CHECKING:
    from lucid_deploy.artifact import Artifact, Manifest
    from lucid_deploy.runtimes.layers import Layers
    from lucid_deploy.runtimes.session import Session


class OnnxRuntime(Runtime):
    """Opens artifacts in onnxruntime."""

    name = "onnxruntime"
    description = "The artifact's graphs in onnxruntime, on the CPU or with a GPU provider."
    options = frozenset({"threads", "provider", "kernels"})

    def capabilities(self, options: RuntimeOptions) -> Capabilities:
        return CAPABILITIES[options.provider]

    def runs_form(self, manifest: Manifest) -> bool:
        from lucid_deploy.runtimes.onnxruntime.compatibility import has_tensor_scatter

        return manifest.cache != "static" or manifest.opset < OPSET_TENSOR_SCATTER or has_tensor_scatter()

    def open(self, artifact: Artifact, options: RuntimeOptions) -> Session[Any]:
        from lucid_deploy.runtimes.onnxruntime.session import OrtSession, StaticOrtSession

        return (StaticOrtSession if artifact.manifest.cache == "static" else OrtSession)(artifact, options)

    def open_layers(self, session: Session[Any], artifact: Artifact | None) -> Layers:
        from lucid_deploy.runtimes.onnxruntime.layers import OrtLayers
        from lucid_deploy.runtimes.onnxruntime.session import OrtSession

        assert isinstance(session, OrtSession)
        if artifact is None:
            raise LucidError("Layers are run from the artifact's graph files: pass the artifact that the session runs.")
        if artifact.manifest.inline:
            raise LucidError(
                "Layers cannot be isolated in the graphs of export --inline. To find causes, verify an artifact of "
                "the same checkpoint that was exported without --inline."
            )
        return OrtLayers(session)


RUNTIME = OnnxRuntime()
