"""The lines of ``lucid-deploy doctor`` for TensorRT: what building needs, and what only running needs. All optional."""

from __future__ import annotations

import contextlib

from lucid_deploy.doctor.diagnosis import Check, importable
from lucid_deploy.errors import LucidError
from lucid_deploy.ort import import_onnxruntime

SWITCH = 'pip uninstall -y onnxruntime onnxruntime-gpu && pip install "onnxruntime-gpu>=1.23.1,<2"'


def _backend(name: str) -> str:
    from lucid_deploy.runtimes.tensorrt.backend import dotted, load_backend

    backend = load_backend(name)
    backend.check_version()
    kinds = getattr(backend.trt, "ComputeCapability", None)
    if backend.needs_gpu_to_build or kinds is None:
        return "imports; builds for the GPU of this machine"
    numbers = sorted(int(each[2:]) for each in kinds.__members__ if each.startswith("SM"))
    return "imports; builds without a GPU, for compute capability " + ", ".join(map(dotted, numbers))


def _plugin_library() -> str:
    from lucid_deploy.plugins.hosts.prebuilt import origin
    from lucid_deploy.plugins.hosts.tensorrt.build import PLUGIN_ABI, check_plugin
    from lucid_deploy.runtimes.tensorrt.plugin_library import default_library

    library = default_library()
    check_plugin(library)
    return f"{library} ({origin(library)}), ABI {PLUGIN_ABI}"


def _polygraphy() -> str:
    from lucid_deploy.packaging.tensorrt.polygraphy_files import check_polygraphy

    check_polygraphy()
    return "imports"


def _compiler() -> str:
    from lucid_deploy.plugins.hosts.compiler import find_compiler

    return find_compiler()


def _tensorrt_headers() -> str:
    from lucid_deploy.plugins.hosts.tensorrt.build import find_tensorrt_headers

    return str(find_tensorrt_headers())


def _cuda_headers() -> str:
    from lucid_deploy.plugins.hosts.tensorrt.build import find_cuda_headers

    return str(find_cuda_headers())


def _gpu() -> str:
    from lucid_deploy.runtimes.tensorrt.backend import dotted
    from lucid_deploy.runtimes.tensorrt.device import open_device

    device = open_device()
    return f"{device.name}, compute capability {dotted(device.capability)}"


def _onnxruntime_gpu() -> str:
    """Both distributions own the module's folder, so whichever was installed last has overwritten the other."""
    import importlib.metadata

    ort = import_onnxruntime()
    found = {}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    if len(found) == 2:
        raise LucidError(
            "onnxruntime and onnxruntime-gpu are both installed, into one folder, and the files are a mixture of both. "
            f"Keep one of them: {SWITCH}"
        )
    if "onnxruntime-gpu" not in found:
        raise LucidError(f"not installed; it takes the place of onnxruntime, of which it has everything: {SWITCH}")
    return "providers: " + ", ".join(ort.get_available_providers())


_KERNELS, _RTX, _TRT = (f'pip install "lucid-deploy[{name}]"' for name in ("kernels", "rtx", "trt"))
# What raises a LucidError says itself what to do; the hint is for a package that does not import.
CHECKS = (
    Check("Triton", "plugin build", importable("triton"), _KERNELS, package="triton"),
    Check("C++ compiler", "plugin build", _compiler, package=None),
    Check("TensorRT headers", "plugin build", _tensorrt_headers, package=None),
    Check("CUDA headers", "plugin build", _cuda_headers, package=None),
    Check("plugin library", "build, LUCID models", _plugin_library, package=None),
    Check("TensorRT-RTX", "build; run on a GPU", lambda: _backend("tensorrt-rtx"), _RTX, package="tensorrt_rtx_cu13"),
    Check("TensorRT", "build --backend tensorrt", lambda: _backend("tensorrt"), _TRT, package="tensorrt"),
    Check("Polygraphy", "package --target tensorrt", _polygraphy, package="polygraphy"),
    Check("cuda-bindings", "run on a GPU", importable("cuda.bindings.driver"), _RTX),
    Check("onnxruntime-gpu", "run --provider", _onnxruntime_gpu, package="onnxruntime-gpu"),
    Check("CUDA driver, GPU", "run on a GPU", _gpu, package=None),
)
