"""onnxruntime's execution providers: what a session asks for, and a check that it got it.

onnxruntime goes on with the CPU when a provider does not start. Here that is an error.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError, spelled_out
from lucid_deploy.runtimes.onnxruntime.provider_graphs import plugin_graph, profile_options, provider_folder
from lucid_deploy.runtimes.tensorrt.limits import Limits, choose_limits

_CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
_GPU_PACKAGE = "pip uninstall onnxruntime && pip install onnxruntime-gpu"
_RTX_PACKAGE = "onnxruntime-ep-nv-tensorrt-rtx"
_RTX_MODULE = "onnxruntime_ep_nv_tensorrt_rtx"  # of the package
# Name on the command line: name in onnxruntime, how to get it.
_KNOWN = {
    "cpu": (CPU, 'pip install "lucid-deploy[cpu]"'),
    "cuda": (_CUDA, _GPU_PACKAGE),
    "tensorrt": ("TensorrtExecutionProvider", f'{_GPU_PACKAGE} "lucid-deploy[trt]"'),
    "nv-tensorrt-rtx": ("NvTensorRTRTXExecutionProvider", f"pip install {_RTX_PACKAGE}"),
}


@dataclass(frozen=True)
class ProviderPlan:
    """How a provider runs one stage.

    Attributes:
        graph: The file to load.
        options: What the provider is told.
        limits: The largest sizes its optimization profile takes; None: any.
    """

    graph: Path
    options: dict[str, str]
    limits: Limits | None = None


def plan_provider(artifact: Artifact, name: str, index: int, stage: str) -> ProviderPlan:
    """Return how a provider runs a stage.

    The TensorRT providers get the optimization profile that ``lucid-deploy build`` would build, so that no new shape
    makes them build again, and keep what they built or compiled in the artifact. For ``tensorrt`` a LUCID model's graph
    is copied with our plugin's nodes under the names that onnxruntime expects, and the library is brought into
    TensorRT's registry: onnxruntime opens the library, and only ever logs it if that fails; our plugins do not register
    themselves when they are opened.

    Args:
        artifact: The artifact that is to run, with a growing cache.
        name: One of :data:`~lucid_deploy.runtimes.options.PROVIDERS`.
        index: Number of the GPU.
        stage: ``prefill`` or ``decode``.

    Raises:
        LucidError: ``tensorrt`` without a plugin library or without the package tensorrt, or an artifact that cannot
            be written to.
    """
    graph, options = artifact.graph_path(stage), _basic_options(artifact, name, index)
    if name in ("cpu", "cuda"):
        return ProviderPlan(graph, options)
    limits = choose_limits(artifact)
    if name == "nv-tensorrt-rtx":
        options["nv_runtime_cache_path"] = str(provider_folder(artifact, name))
        return ProviderPlan(graph, options | profile_options(artifact, stage, limits, "nv"), limits)
    from lucid_deploy.runtimes.tensorrt.operators import PLUGIN_OPERATORS

    library = _plugin_library() if artifact.manifest.uses(PLUGIN_OPERATORS) else None
    folder = provider_folder(artifact, name, library)
    if library is not None:
        options["trt_extra_plugin_lib_paths"] = str(library)
        graph = plugin_graph(artifact, stage, limits, folder)
    for cache in ("engine", "timing"):
        options |= {f"trt_{cache}_cache_enable": "1", f"trt_{cache}_cache_path": str(folder)}
    return ProviderPlan(graph, options | profile_options(artifact, stage, limits, "trt"), limits)


def _basic_options(artifact: Artifact, name: str, index: int) -> dict[str, str]:
    """Return what a provider is told of any graph."""
    if name == "cpu":
        return {}
    options = {"device_id": str(index)}
    if name == "cuda":
        options["use_tf32"] = "0"  # it rounds float32 factors to 11 bits
    if name == "tensorrt" and artifact.manifest.dtype == "float16":
        options["trt_fp16_enable"] = "1"
    return options


def _plugin_library() -> Path:
    from lucid_deploy.plugins.hosts.tensorrt.build import check_plugin
    from lucid_deploy.runtimes.tensorrt.backend import load_backend
    from lucid_deploy.runtimes.tensorrt.plugin_library import default_library, register

    library = default_library()
    check_plugin(library)
    register(library, load_backend("tensorrt").trt)
    return library


def choose_provider(
    ort: Any, options: Any, artifact: Artifact, name: str, index: int, plan: ProviderPlan | None = None
) -> list[Any]:
    """Return the ``providers`` of an inference session.

    Nodes that the chosen provider leaves go to the CPU, those that ``tensorrt`` leaves to CUDA before. A provider that
    comes as a package of its own is added to ``options`` instead, and the list is empty.

    Args:
        ort: The module onnxruntime.
        options: The session options.
        artifact: The artifact that is to run.
        name: One of :data:`~lucid_deploy.runtimes.options.PROVIDERS`.
        index: Number of the GPU.
        plan: From :func:`plan_provider`; None for a graph that is none of the artifact's stages.

    Raises:
        LucidError: This onnxruntime does not have the provider, or it finds no such GPU.
    """
    if name == "cpu":
        return [CPU]
    check_available(ort, name)
    provider, available = _KNOWN[name][0], ort.get_available_providers()
    told = _basic_options(artifact, name, index) if plan is None else plan.options
    if provider in available:
        cuda = [(_CUDA, _basic_options(artifact, "cuda", index))] if name == "tensorrt" and _CUDA in available else []
        return [(provider, told), *cuda, CPU]
    # The GPU is chosen by its device here, so that its number is not an option.
    device = _rtx_device(ort, index)
    options.add_provider_for_devices([device], {key: value for key, value in told.items() if key != "device_id"})
    return []


def check_available(ort: Any, name: str) -> None:
    """Check that this onnxruntime has a provider, or that the provider's own package is installed.

    Raises:
        LucidError: It has not.
    """
    provider, install = _KNOWN[name][0], spelled_out(_KNOWN[name][1])
    available = ort.get_available_providers()
    packaged = name == "nv-tensorrt-rtx" and importlib.util.find_spec(_RTX_MODULE) is not None
    if provider not in available and not packaged:
        raise LucidError(
            f"onnxruntime {ort.__version__} has no {provider}; it has {', '.join(available)}. Run: {install}"
        )


def _rtx_device(ort: Any, index: int) -> Any:
    """Register the provider's library with onnxruntime, and return the GPU."""
    module = importlib.import_module(_RTX_MODULE)
    name = module.get_ep_name()
    if not any(device.ep_name == name for device in ort.get_ep_devices()):  # a second registration is an error
        try:
            ort.register_execution_provider_library(name, module.get_library_path())
        except Exception as error:
            raise LucidError(
                f"onnxruntime {ort.__version__} does not load {name} of {_RTX_PACKAGE}: {error}"
            ) from error
    devices = [device for device in ort.get_ep_devices() if device.ep_name == name]
    if index >= len(devices):
        raise LucidError(f"{name} finds {len(devices)} GPUs that it can use here; number {index} is not among them.")
    return devices[index]


def check_chosen(ort: Any, session: Any, name: str) -> None:
    """Check that a session runs with its provider.

    Raises:
        LucidError: It does not.
    """
    provider = _KNOWN[name][0]
    if provider not in session.get_providers():
        raise LucidError(
            f"{provider} does not start, and onnxruntime {ort.__version__} went on with "
            f"{', '.join(session.get_providers())}. It needs an NVIDIA GPU, its driver, and the CUDA and cuDNN or "
            "TensorRT libraries of the versions this onnxruntime was built with; the lines above say what is missing."
        )
