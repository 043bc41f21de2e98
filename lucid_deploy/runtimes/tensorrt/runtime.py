"""The runtime ``tensorrt``: engines that ``lucid-deploy build`` made of an artifact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lucid_deploy.runtimes.options import RuntimeOptions, device_index
from lucid_deploy.runtimes.runtime import Capabilities, Runtime
from lucid_deploy.runtimes.tensorrt import CAPABILITIES

if TYPE_CHECKING:
    from lucid_deploy.artifact import Artifact
    from lucid_deploy.runtimes.session import Session


class TensorRtRuntime(Runtime):
    """Opens engines in TensorRT."""

    name = "tensorrt"
    description = "TensorRT or TensorRT-RTX engines that lucid-deploy build made."

    def capabilities(self, options: RuntimeOptions) -> Capabilities:
        return CAPABILITIES

    def check_installed(self, options: RuntimeOptions) -> None:
        """Check nothing: which of the two packages is needed depends on the engines, so :meth:`open` checks it."""

    def open(self, artifact: Artifact, options: RuntimeOptions) -> Session[Any]:
        from lucid_deploy.runtimes.tensorrt.load_engines import open_tensorrt

        return open_tensorrt(artifact, device_index(options.device), options.allow_extrapolation)


RUNTIME = TensorRtRuntime()
