"""Choose onnxruntime's execution provider for a session, and check that the session runs with it.

If a provider does not start, onnxruntime falls back to the CPU; this module raises an error instead.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lucid_deploy.artifact import ADAPTERS, WEIGHTS, Artifact
from lucid_deploy.errors import LucidError, spelled_out
from lucid_deploy.runtimes.session import Limits

_CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
_GPU_PACKAGE = "pip uninstall onnxruntime && pip install onnxruntime-gpu"
_RTX_PACKAGE = "onnxruntime-ep-nv-tensorrt-rtx"
_RTX_MODULE = "onnxruntime_ep_nv_tensorrt_rtx"  # import name of that package
# By name on the command line: onnxruntime's name of the provider, and how to install it.
_KNOWN = {
    "cpu": (CPU, 'pip install "lucid-deploy[cpu]"'),
    "cuda": (_CUDA, _GPU_PACKAGE),
    "tensorrt": ("TensorrtExecutionProvider", f'{_GPU_PACKAGE} "lucid-deploy[trt]"'),
    "nv-tensorrt-rtx": ("NvTensorRTRTXExecutionProvider", f"pip install {_RTX_PACKAGE}"),
}


@dataclass(frozen=True)
class ProviderPlan:
    """How a provider runs one stage."""

    graph: Path  # the file to load
    options: dict[str, str]  # the provider's options, by name
    limits: Limits | None = None  # the largest sizes in its optimization profile; None: any size


def plan_provider(artifact: Artifact, name: str, index: int, stage: str) -> ProviderPlan:
    """Return how a provider runs a stage.

    The TensorRT providers get the default profile of ``lucid-deploy build``, so that no new shape makes them rebuild
    an engine, and cache their engines and kernels in the artifact's folder. For ``tensorrt``, a graph with operators of
    our plugin library is copied, and the operators get the domain that onnxruntime expects. The plugins are
    registered with TensorRT here, because onnxruntime only opens the library, and only logs a failure.
    """
    graph, options = artifact.graph_path(stage), _basic_options(artifact, name, index)
    if name in ("cpu", "cuda"):
        return ProviderPlan(graph, options)
    from lucid_deploy.runtimes.tensorrt.limits import choose_limits
    from lucid_deploy.runtimes.tensorrt.prepare import PLUGIN_OPERATORS

    limits = choose_limits(artifact)
    if name == "nv-tensorrt-rtx":
        options["nv_runtime_cache_path"] = str(provider_folder(artifact, name))
        return ProviderPlan(graph, options | profile_options(artifact, stage, limits, "nv"), limits)
    library = _plugin_library() if artifact.manifest.uses(PLUGIN_OPERATORS) else None
    folder = provider_folder(artifact, name, library)
    if library is not None:
        options["trt_extra_plugin_lib_paths"] = str(library)
        graph = plugin_graph(artifact, stage, limits, folder)
    for cache in ("engine", "timing"):
        options |= {f"trt_{cache}_cache_enable": "1", f"trt_{cache}_cache_path": str(folder)}
    return ProviderPlan(graph, options | profile_options(artifact, stage, limits, "trt"), limits)


def profile_options(artifact: Artifact, stage: str, limits: Limits, prefix: str) -> dict[str, str]:
    """Return the optimization profile of a stage as provider options, ``name:1x4x0x64,…`` for all inputs."""
    from lucid_deploy.runtimes.tensorrt.limits import profile_shapes

    shapes = profile_shapes(artifact, stage, limits)
    return {
        f"{prefix}_profile_{which}_shapes": ",".join(
            f"{name}:{'x'.join(map(str, ranges[index]))}" for name, ranges in shapes.items()
        )
        for index, which in enumerate(("min", "opt", "max"))
    }


def provider_folder(artifact: Artifact, provider: str, library: Path | None = None) -> Path:
    """Return the folder of a provider's files for this artifact and plugin library; create it if it is missing."""
    from lucid_deploy.runtimes.tensorrt.manifest import FOLDER, file_facts, source_hashes

    facts = {**source_hashes(artifact), "plugin": file_facts(library)["sha256"] if library is not None else None}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    folder = artifact.directory / FOLDER / f"onnxruntime-{provider}" / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def plugin_graph(artifact: Artifact, stage: str, limits: Limits, folder: Path) -> Path:
    """Write a copy of a stage's graph in which TensorRT finds our plugins, replacing an older one; return its path.

    In the original, onnxruntime inlines the functions, loops included, before a provider sees them. Files with weights
    are copied beside the graph unless they exist: onnxruntime and TensorRT read external data only from there.
    """
    from lucid_deploy.runtimes.tensorrt.prepare import prepare_graph

    graph = prepare_graph(artifact, stage, limits.max_context, for_onnxruntime=True)
    path = folder / f"{stage}.onnx"
    try:
        with tempfile.TemporaryDirectory(prefix=".lucid-", dir=folder) as scratch:
            made = Path(scratch, path.name)
            made.write_bytes(graph.model)
            os.replace(made, path)
            for name in (WEIGHTS,) if artifact.manifest.adapters is None else (WEIGHTS, ADAPTERS):
                copy = folder / name  # no link: ONNX refuses external data behind symbolic or hard links
                if not copy.is_file() or copy.is_symlink() or copy.stat().st_nlink != 1:
                    made = Path(scratch, name)
                    shutil.copyfile(artifact.path(name), made)
                    os.replace(made, copy)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return path


def _unwritable(folder: Path, error: OSError) -> LucidError:
    return LucidError(
        f"onnxruntime's TensorRT providers store graphs and engines in {folder}, which cannot be written "
        f"({error.strerror or error}). Copy the artifact to a writable folder, or run with --provider cuda."
    )


def _basic_options(artifact: Artifact, name: str, index: int) -> dict[str, str]:
    """Return the options of a provider for any graph."""
    if name == "cpu":
        return {}
    options = {"device_id": str(index)}
    if name == "cuda":
        options["use_tf32"] = "0"  # it rounds float32 operands to 11 significant bits
    if name == "tensorrt" and artifact.manifest.dtype == "float16":
        options["trt_fp16_enable"] = "1"
    return options


def _plugin_library() -> Path:
    from lucid_deploy.plugins.hosts.tensorrt.build import check_plugin
    from lucid_deploy.plugins.hosts.tensorrt.registry import register_plugins
    from lucid_deploy.runtimes.tensorrt.backend import load_backend
    from lucid_deploy.runtimes.tensorrt.plugin_library import default_library

    library = default_library()
    check_plugin(library)
    register_plugins(library, load_backend("tensorrt").trt)
    return library


def choose_provider(
    ort: Any, options: Any, artifact: Artifact, name: str, index: int, plan: ProviderPlan | None = None
) -> list[Any]:
    """Return the argument ``providers`` of an inference session.

    Nodes that the chosen provider does not support run on the CPU or, with ``tensorrt``, on CUDA if possible. One that
    has its own package is added to the session ``options`` instead; the list is empty then.
    """
    if name == "cpu":
        return [CPU]
    check_available(ort, name)
    provider, available = _KNOWN[name][0], ort.get_available_providers()
    chosen = _basic_options(artifact, name, index) if plan is None else plan.options
    if provider in available:
        cuda = [(_CUDA, _basic_options(artifact, "cuda", index))] if name == "tensorrt" and _CUDA in available else []
        return [(provider, chosen), *cuda, CPU]
    # The GPU is chosen as a device object here, so its number is left out of the options.
    device = _rtx_device(ort, index)
    options.add_provider_for_devices([device], {key: value for key, value in chosen.items() if key != "device_id"})
    return []


def check_available(ort: Any, name: str) -> None:
    """Check that this onnxruntime has a provider, or that the provider's own package is installed."""
    provider, install = _KNOWN[name]
    available = ort.get_available_providers()
    packaged = name == "nv-tensorrt-rtx" and importlib.util.find_spec(_RTX_MODULE) is not None
    if provider not in available and not packaged:
        raise LucidError(
            f"onnxruntime {ort.__version__} has no {provider}; it has {', '.join(available)}. "
            f"Run: {spelled_out(install)}"
        )


def _rtx_device(ort: Any, index: int) -> Any:
    """Register the provider's library with onnxruntime if needed; return GPU ``index`` of those that it can use."""
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
    """Check that a session runs with the provider of this name."""
    provider = _KNOWN[name][0]
    if provider not in session.get_providers():
        raise LucidError(
            f"{provider} does not start, and onnxruntime {ort.__version__} fell back to "
            f"{', '.join(session.get_providers())}. The provider needs an NVIDIA GPU, its driver, and the CUDA and "
            "cuDNN or TensorRT libraries of the versions onnxruntime was built with; lines above say what is missing."
        )
