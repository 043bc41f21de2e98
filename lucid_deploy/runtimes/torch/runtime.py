"""The runtime ``torch``: the PyTorch model with an artifact's weights, without running its graphs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import LUCID, STANDARD, LucidConfig
from lucid_deploy.runtimes.options import RuntimeOptions
from lucid_deploy.runtimes.runtime import Capabilities, Runtime
from lucid_deploy.runtimes.torch import CAPABILITIES

if TYPE_CHECKING:
    from lucid_deploy.artifact import Artifact
    from lucid_deploy.runtimes.layers import Layers
    from lucid_deploy.runtimes.session import Session


class TorchRuntime(Runtime):
    """Opens artifacts in PyTorch."""

    name = "torch"
    description = "The PyTorch model with the artifact's weights, without its graphs."
    options = frozenset({"threads", "ablate"})

    def capabilities(self, options: RuntimeOptions) -> Capabilities:
        return CAPABILITIES

    def open(self, artifact: Artifact, options: RuntimeOptions) -> Session[Any]:
        from lucid_deploy.runtimes.torch.artifact_weights import load_adapters, load_artifact_model
        from lucid_deploy.runtimes.torch.session import TorchSession
        from lucid_deploy.runtimes.torch.threads import torch_threads

        check_cuda(options.device)
        with torch_threads(options.threads):
            config = artifact.config if options.ablate is None else _without_preconditioner(artifact.config)
            model = load_artifact_model(artifact, options.device, config=config)
            rows = load_adapters(artifact, model)
        return TorchSession(model, options.allow_extrapolation, options.threads, rows)

    def open_layers(self, session: Session[Any], artifact: Artifact | None) -> Layers:
        from lucid_deploy.runtimes.torch.layers import TorchLayers
        from lucid_deploy.runtimes.torch.session import TorchSession

        assert isinstance(session, TorchSession)
        session.run_default_adapter()
        return TorchLayers(session.model)


def _without_preconditioner(config: LucidConfig) -> LucidConfig:
    """Return the configuration with standard attention, Y = V, instead of LUCID attention, for the same weights."""
    if LUCID not in config.kinds:
        raise LucidError("The model has no LUCID layers, so it can't be run without their preconditioner.")
    return replace(config, layer_kinds=tuple(STANDARD if kind == LUCID else kind for kind in config.kinds))


def check_cuda(device: str) -> None:
    """Raise a LucidError if ``device`` is a CUDA device and PyTorch finds none."""
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise LucidError("PyTorch sees no CUDA device; run with --device cpu, or install a CUDA build of PyTorch.")


RUNTIME = TorchRuntime()
