"""The contenders of a benchmark: exported artifacts in a runtime, and PyTorch's eager model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.options import RuntimeOptions

if TYPE_CHECKING:
    from lucid_deploy.runtimes.session import Session

DEFAULTS = RuntimeOptions()
KINDS = ("artifact", "torch-dense", "torch-blocked")


@dataclass(frozen=True)
class Contender:
    """One model in one runtime, to be measured."""

    name: str  # how tables call it
    # artifact (as options say), torch-dense (PyTorch eager with the dense N×N solve) or torch-blocked
    # (PyTorch eager with this package's operators).
    kind: str
    artifact: str  # directory of the artifact that gives the weights
    options: RuntimeOptions = DEFAULTS  # what runs it; PyTorch's eager models use only threads of these
    # Tokens of the longest context that is measured; None: any number. An artifact's session is opened with
    # extrapolation only if this may exceed the model's maximum, because some sessions compute differently then.
    longest: int | None = None


def open_contender(contender: Contender) -> Session[Any]:
    """Open a contender's session in this process."""
    from lucid_deploy.artifact import open_artifact
    from lucid_deploy.runtimes import open_session

    artifact = open_artifact(contender.artifact)
    if contender.kind == "artifact":
        beyond = contender.longest is None or contender.longest > artifact.config.max_position_embeddings
        return open_session(artifact, replace(contender.options, allow_extrapolation=beyond))
    if contender.kind in ("torch-dense", "torch-blocked"):
        from lucid_deploy.runtimes.torch.artifact_weights import load_artifact_model
        from lucid_deploy.runtimes.torch.session import TorchSession

        implementation = "reference" if contender.kind == "torch-dense" else "blocked"
        model = load_artifact_model(artifact, implementation=implementation)
        return TorchSession(model, allow_extrapolation=True, threads=contender.options.threads)
    raise LucidError(f"Unknown kind of contender {contender.kind!r}; known are {', '.join(KINDS)}.")


def with_kernels(name: str, path: str, options: RuntimeOptions, kernels: Sequence[str]) -> list[Contender]:
    """Return one contender of an artifact for each choice of kernels; the first has the plain name."""
    return [
        Contender(name if each == kernels[0] else f"{name}-{each}", "artifact", path, replace(options, kernels=each))
        for each in kernels
    ]
