"""Choose how a session's layers are run one by one."""

from __future__ import annotations

from typing import Any

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.layers import Layers
from lucid_deploy.runtimes.session import Session

PROVIDERS = ("cpu", "cuda")  # the others build engines of whole graphs


def open_layers(session: Session[Any], artifact: Artifact | None, index: int = 0) -> Layers:
    """Return the layers behind a session.

    Args:
        session: What runs the model.
        artifact: What it runs, for runtimes that run graphs.
        index: Number of the GPU, for providers that use one.

    Raises:
        LucidError: This runtime's layers cannot be run one by one.
    """
    if session.runtime == "torch":
        from lucid_deploy.runtimes.torch.layers import TorchLayers
        from lucid_deploy.runtimes.torch.session import TorchSession

        assert isinstance(session, TorchSession)
        return TorchLayers(session.model)
    if session.runtime == "onnxruntime" and session.provider in PROVIDERS and artifact is not None:
        from lucid_deploy.runtimes.onnxruntime.layers import OrtLayers

        return OrtLayers(artifact, session.provider or "cpu", index, session.kernels or "functions")
    raise LucidError(
        f"{session.label} runs a graph as one piece, so that no layer can be run by itself: own and inherited errors, "
        "and what the solve adds, are not known. Verify the artifact with --runtime onnxruntime or torch for them."
    )
