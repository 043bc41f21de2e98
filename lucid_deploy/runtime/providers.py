"""onnxruntime's execution providers: what a session asks for, and a check that it got it.

onnxruntime goes on with the CPU when a provider does not start. Here that is an error.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from typing import Any

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError

CPU = "CPUExecutionProvider"
_GPU_PACKAGE = "pip uninstall onnxruntime && pip install onnxruntime-gpu"
_RTX_PACKAGE = "onnxruntime-ep-nv-tensorrt-rtx"
_RTX_MODULE = "onnxruntime_ep_nv_tensorrt_rtx"  # of the package
# Name on the command line: name in onnxruntime, how to get it.
_KNOWN = {
    "cpu": (CPU, 'pip install "lucid-deploy[cpu]"'),
    "cuda": ("CUDAExecutionProvider", _GPU_PACKAGE),
    "tensorrt": ("TensorrtExecutionProvider", f'{_GPU_PACKAGE} "lucid-deploy[trt]"'),
    "nv-tensorrt-rtx": ("NvTensorRTRTXExecutionProvider", f"pip install {_RTX_PACKAGE}"),
}
PROVIDERS = tuple(_KNOWN)


def check_provider(name: str) -> str:
    """Return onnxruntime's name of a provider.

    Raises:
        LucidError: It is not known.
    """
    if name not in _KNOWN:
        raise LucidError(f"Provider {name!r} is not known; known are {', '.join(PROVIDERS)}.")
    return _KNOWN[name][0]


def device_index(device: str) -> int:
    """Return the number of the GPU that ``--device`` names; ``cpu``, the other providers' default, is 0.

    Raises:
        LucidError: It names none.
    """
    found = re.fullmatch(r"cpu|cuda(?::(\d+))?", device)
    if found is None:
        raise LucidError(f"Device {device!r} is not known; known for this provider are cuda and cuda:N.")
    return int(found[1] or 0)


def provider_options(artifact: Artifact, name: str, index: int) -> dict[str, str]:
    """Return what a GPU provider is told.

    For ``tensorrt`` the plugin library is brought into TensorRT's registry too: onnxruntime opens the library, and
    only ever logs it if that fails; our plugins do not register themselves when they are opened.

    Args:
        artifact: The artifact that is to run.
        name: ``cuda``, ``tensorrt`` or ``nv-tensorrt-rtx``.
        index: Number of the GPU.

    Raises:
        LucidError: ``tensorrt`` without a plugin library or without the package tensorrt.
    """
    options = {"device_id": str(index)}
    if name == "cuda":
        options["use_tf32"] = "0"  # it rounds float32 factors to 11 bits
    if name == "tensorrt":
        if artifact.manifest.dtype == "float16":
            options["trt_fp16_enable"] = "1"
        if artifact.config.is_lucid:
            options["trt_extra_plugin_lib_paths"] = _plugin_library()
    return options


def _plugin_library() -> str:
    from lucid_deploy.engines.backend import load_backend
    from lucid_deploy.engines.plugin_library import default_library, register
    from lucid_deploy.plugins.build import check_plugin

    library = default_library()
    check_plugin(library)
    register(library, load_backend("tensorrt").trt)
    return str(library)


def choose_provider(ort: Any, options: Any, artifact: Artifact, name: str, index: int) -> list[Any]:
    """Return the ``providers`` of an inference session: the chosen one, and the CPU for nodes that it leaves.

    A provider that comes as a package of its own is added to ``options`` instead, and the list is empty.

    Args:
        ort: The module onnxruntime.
        options: The session options.
        artifact: The artifact that is to run.
        name: One of :data:`PROVIDERS`.
        index: Number of the GPU.

    Raises:
        LucidError: This onnxruntime does not have the provider, or what :func:`provider_options` raises.
    """
    provider, install = _KNOWN[name]
    if name == "cpu":
        return [CPU]
    available = ort.get_available_providers()
    if provider in available:
        return [(provider, provider_options(artifact, name, index)), CPU]
    if name == "nv-tensorrt-rtx" and importlib.util.find_spec(_RTX_MODULE) is not None:
        options.add_provider_for_devices([_rtx_device(ort, index)], {})
        return []
    raise LucidError(f"onnxruntime {ort.__version__} has no {provider}; it has {', '.join(available)}. Run: {install}")


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
            "TensorRT libraries of the versions this onnxruntime was built with; what it misses stands above."
        )
