"""Choose and open a runtime for an artifact."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.onnxruntime.providers import check_provider, device_index
from lucid_deploy.runtimes.session import Session

RUNTIMES = ("auto", "torch", "onnxruntime", "tensorrt")
MOST_THREADS = 1024  # runtimes start whatever number they are told, until the machine gives way


def open_session(
    artifact: str | Path | Artifact,
    runtime: str = "auto",
    device: str = "cpu",
    threads: int | None = None,
    allow_extrapolation: bool = False,
    provider: str = "cpu",
    kernels: str = "auto",
) -> Session[Any]:
    """Open an artifact in a runtime.

    Args:
        artifact: Its directory, or an opened artifact.
        runtime: ``onnxruntime``, ``torch`` (the PyTorch model on the artifact's weights), ``tensorrt`` (its engines),
            or ``auto``: onnxruntime.
        device: ``cpu``, or for torch, tensorrt and onnxruntime's GPU providers ``cuda`` or ``cuda:N``; tensorrt and
            these providers take ``cpu`` as ``cuda``.
        threads: Threads within an operator, of this session alone; None lets the runtime choose.
        allow_extrapolation: Whether contexts beyond ``max_position_embeddings`` are permitted.
        provider: onnxruntime's execution provider: ``cpu``, ``cuda``, ``tensorrt`` or ``nv-tensorrt-rtx``.
        kernels: With onnxruntime on the CPU, what computes our operators: the ``library`` that ``plugin build --target
            onnxruntime`` makes, the graph's ``functions``, or ``auto``: the library where one has been built.

    Raises:
        LucidError: An unknown runtime, device, provider or kernels, a package that is not installed or lacks the
            provider, a library of kernels that cannot be used, or no engines or GPU for tensorrt.
        CheckFailed: A damaged artifact.
    """
    if runtime not in RUNTIMES:
        raise LucidError(f"Runtime {runtime!r} is not known; known are {', '.join(RUNTIMES)}.")
    check_provider(provider)
    if provider != "cpu" and runtime not in ("auto", "onnxruntime"):
        raise LucidError(f"--provider is for onnxruntime; runtime {runtime} has none. Leave one of the two out.")
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise LucidError(f"The number of threads must be 1 to {MOST_THREADS}, not {threads}.")
    if kernels == "library" and runtime not in ("auto", "onnxruntime"):
        raise LucidError(f"--kernels library is for onnxruntime; runtime {runtime} has its own. Leave it out.")
    opened = artifact if isinstance(artifact, Artifact) else open_artifact(artifact)
    if runtime == "torch":
        return _open_torch(opened, device, threads, allow_extrapolation)
    if runtime == "tensorrt":
        from lucid_deploy.runtimes.tensorrt.load_engines import open_tensorrt

        return open_tensorrt(opened, device, allow_extrapolation)
    if provider == "cpu" and device != "cpu":
        raise LucidError(
            f"Runtime onnxruntime runs on the CPU; --device {device} needs --runtime torch or tensorrt, or --provider."
        )
    index = device_index(device)
    if provider != "cpu" and opened.manifest.cache_dtype != opened.manifest.dtype:
        raise LucidError(
            f"With --provider {provider} the cache is kept in the model's type, and this artifact's is "
            f"{opened.manifest.cache_dtype}. Export with --cache-dtype auto, or run on the CPU."
        )
    if opened.manifest.cache == "static":
        if provider != "cpu":
            raise LucidError(
                f"A static cache lives in the CPU's memory; with --provider {provider} export with --cache growing."
            )
        from lucid_deploy.runtimes.onnxruntime.static_session import StaticOrtSession

        return StaticOrtSession(opened, threads, allow_extrapolation, kernels)
    from lucid_deploy.runtimes.onnxruntime.session import OrtSession

    return OrtSession(opened, threads, allow_extrapolation, provider, index, kernels)


def _open_torch(artifact: Artifact, device: str, threads: int | None, allow_extrapolation: bool) -> Session[Any]:
    import torch

    from lucid_deploy.runtimes.torch.artifact_weights import load_artifact_model
    from lucid_deploy.runtimes.torch.session import TorchSession
    from lucid_deploy.runtimes.torch.threads import torch_threads

    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise LucidError(f"Device {device!r} is not known; known are cpu, cuda and cuda:N.")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise LucidError("PyTorch sees no CUDA device; run with --device cpu, or install a CUDA build of PyTorch.")
    with torch_threads(threads):
        model = load_artifact_model(artifact, device)
    session = TorchSession(model, allow_extrapolation, threads)
    session.identity = artifact.identity
    return session
