"""The checks behind ``lucid-deploy doctor``: each tries to import, find or run a package or tool."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

from lucid_deploy.errors import LucidError, spelled_out
from lucid_deploy.ort import import_onnxruntime
from lucid_deploy.processors import allowed_threads, processor_quota

SWITCH = 'pip uninstall -y onnxruntime onnxruntime-gpu && pip install "onnxruntime-gpu>=1.23.1,<2"'


@dataclass(frozen=True)
class Check:
    """One check of a package or tool."""

    name: str  # the package or tool
    purpose: str  # what it is needed for
    # Returns a remark. An ImportError, or a LucidError that says what to do, means that the thing is missing (broken,
    # if its package is installed); any other exception means that it is broken.
    try_it: Callable[[], str]
    hint: str = ""  # what to do if it is not installed
    required: bool = False  # whether the command fails if it is not ok
    package: str | None = ""  # the distribution whose version is shown; empty: it is named `name`; None: there is none


@dataclass(frozen=True)
class Finding:
    """The outcome of a check; ``status`` is ok, missing or broken."""

    name: str
    status: str
    version: str
    purpose: str
    remark: str
    required: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_check(check: Check) -> Finding:
    """Run one check; a missing or broken package is its result, not an exception."""
    try:
        version = "" if check.package is None else importlib.metadata.version(check.package or check.name)
    except importlib.metadata.PackageNotFoundError:
        version = ""

    def finding(status: str, remark: str) -> Finding:
        return Finding(check.name, status, version, check.purpose, remark, check.required)

    absent = "broken" if version else "missing"
    try:
        return finding("ok", check.try_it())
    except ImportError as error:
        return finding(absent, f"installed but does not import: {error}" if version else spelled_out(check.hint))
    except LucidError as error:
        return finding(absent, str(error))
    except Exception as error:  # noqa: BLE001 (whatever is broken in another package is the finding)
        return finding("broken", f"{type(error).__name__}: {error}")


def _python() -> str:
    return f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"


def _processors() -> str:
    threads, quota = allowed_threads(), processor_quota()
    text = f"{os.cpu_count()} processors"
    if quota is not None:
        text += f"; the control group's quota: {quota:g} processors"
    return text if threads is None else f"{text}; threads of this process: {threads}, unless --threads is given"


def _torch() -> str:
    import torch

    from lucid_deploy.plugins.precondition.torch_operator import precondition

    k = torch.ones(1, 1, 3, 4)  # equal keys: K̂K̂ᵀ/√d = √d, so L is a triangle of ones and Y_i = V_i − V_{i−1}
    v = torch.tensor([1.0, 3.0, 6.0]).reshape(1, 1, 3, 1).expand(1, 1, 3, 4)
    y = precondition(k, v, eps=0.0)[0, 0, :, 0]
    if not torch.allclose(y, torch.tensor([1.0, 2.0, 3.0]), atol=1e-4):
        raise RuntimeError(f"the preconditioner gives {y.tolist()} instead of [1, 2, 3]")
    return "solves; CUDA device found" if torch.cuda.is_available() else "solves; no CUDA device"


def _onnxruntime() -> str:
    providers = ", ".join(import_onnxruntime().get_available_providers())
    return f"{_computes('functions', 'Install another version of onnxruntime')}; providers: {providers}"


def _computes(kernels: str, remedy: str) -> str:
    """Run the small models of the conformance cases; return a remark, or raise RuntimeError if a result is wrong."""
    from lucid_deploy.conformance.runner import FAILED, PASSED, run_cases
    from lucid_deploy.runtimes.options import RuntimeOptions

    results = run_cases(RuntimeOptions(kernels=kernels), only="model_")
    if wrong := [each for each in results if each.status == FAILED]:
        raise RuntimeError(f"computes {wrong[0].case} incorrectly: {wrong[0].remark}. {remedy}, and trust no answer.")
    return f"computes {sum(each.status == PASSED for each in results)} small models correctly"


def _openvino() -> str:
    from lucid_deploy.runtimes.openvino.compiled_graph import import_openvino

    import_openvino()
    return "imports; runs inlined graphs"


def _cpu_kernels() -> str:
    from lucid_deploy.plugins.hosts.libraries import origin
    from lucid_deploy.plugins.hosts.onnxruntime.build import check_ort_library, default_ort_library, kernels_name

    library = default_ort_library()
    check_ort_library(library)
    found = f"{library} ({origin(library)}), {kernels_name(library)}"
    try:
        import_onnxruntime()
    except ImportError:
        return f"{found}; not tried: onnxruntime is not installed"
    return f"{found}; {_computes('library', 'Build the library again')}"


def importable(module: str) -> Callable[[], str]:
    """Return a check that only imports a module."""

    def try_it() -> str:
        importlib.import_module(module)
        return "imports"

    return try_it


def calls(module: str, function: str) -> Callable[[], str]:
    """Return a check that calls a function of ours; the remark is what it returns, or ``imports`` if nothing."""
    return lambda: str(getattr(importlib.import_module(f"lucid_deploy.{module}"), function)() or "imports")


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
    from lucid_deploy.plugins.hosts.libraries import origin
    from lucid_deploy.plugins.hosts.tensorrt.build import PLUGIN_ABI, check_plugin
    from lucid_deploy.runtimes.tensorrt.plugin_library import default_library

    library = default_library()
    check_plugin(library)
    return f"{library} ({origin(library)}), ABI {PLUGIN_ABI}"


def _gpu() -> str:
    from lucid_deploy.runtimes.tensorrt.backend import dotted
    from lucid_deploy.runtimes.tensorrt.device import open_device

    device = open_device()
    return f"{device.name}, compute capability {dotted(device.capability)}"


def _onnxruntime_gpu() -> str:
    """Check that onnxruntime-gpu is installed without onnxruntime, since each overwrites files of the other."""
    ort = import_onnxruntime()
    found = {}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    if len(found) == 2:
        raise LucidError(
            "onnxruntime and onnxruntime-gpu are both installed, into one folder, so its files are a mixture of both. "
            f"Keep one of them: {SWITCH}"
        )
    if "onnxruntime-gpu" not in found:
        raise LucidError(f"not installed; it replaces onnxruntime, and includes all of it: {SWITCH}")
    return "providers: " + ", ".join(ort.get_available_providers())


_EXPORT, _KERNELS, _RTX, _TRT = (f'pip install "lucid-deploy[{name}]"' for name in ("export", "kernels", "rtx", "trt"))
_PLUGIN, _PACKAGE = "plugins.hosts.tensorrt.build", "packaging.tensorrt.package"
# A LucidError itself says what to do; the hint is shown for a package that is not installed.
CHECKS = (
    Check("lucid-deploy", "everything", _python, "", required=True),
    Check("processors", "everything", _processors, package=None),
    # torch is optional, but if it is installed, our solve must compute the right result in it.
    Check("torch", "export, verify", _torch, _EXPORT, required=find_spec("torch") is not None),
    Check("onnx", "everything", importable("onnx"), "pip install onnx", required=True),
    Check("onnxscript", "export", importable("onnxscript"), _EXPORT),
    Check("safetensors", "checkpoints", importable("safetensors"), "pip install safetensors", required=True),
    Check("tokenizers", "text prompts", importable("tokenizers"), "pip install tokenizers"),
    Check("onnxruntime", "run, verify", _onnxruntime, 'pip install "lucid-deploy[cpu]"'),
    Check("CPU kernels", "run faster", _cpu_kernels, package=None),
    Check("OpenVINO", "run --runtime openvino", _openvino, 'pip install "lucid-deploy[openvino]"', package="openvino"),
    *(
        Check(package, "serve", importable(package.replace("-", "_")), 'pip install "lucid-deploy[serve]"')
        for package in ("starlette", "uvicorn", "prometheus-client", "jinja2")
    ),
    Check("llguidance", "structured answers", importable("llguidance"), 'pip install "lucid-deploy[guided]"'),
    Check("ray", "serve --engine ray", importable("ray"), 'pip install "lucid-deploy[ray]"'),
    # For TensorRT and GPUs, and a compiler, which builds the CPU's kernels too; all of it is optional.
    Check("Triton", "plugin build", importable("triton"), _KERNELS, package="triton"),
    Check("C++ compiler", "plugin build", calls("plugins.hosts.compiler", "find_compiler"), package=None),
    Check("TensorRT headers", "plugin build", calls(_PLUGIN, "find_tensorrt_headers"), package=None),
    Check("CUDA headers", "plugin build", calls(_PLUGIN, "find_cuda_headers"), package=None),
    Check("plugin library", "build, LUCID models", _plugin_library, package=None),
    Check("TensorRT-RTX", "build; run on a GPU", lambda: _backend("tensorrt-rtx"), _RTX, package="tensorrt_rtx_cu13"),
    Check("TensorRT", "build --backend tensorrt", lambda: _backend("tensorrt"), _TRT, package="tensorrt"),
    Check("Polygraphy", "package --target tensorrt", calls(_PACKAGE, "check_polygraphy"), package="polygraphy"),
    Check("cuda-bindings", "run on a GPU", importable("cuda.bindings.driver"), _RTX),
    Check("onnxruntime-gpu", "run --provider", _onnxruntime_gpu, package="onnxruntime-gpu"),
    Check("CUDA driver, GPU", "run on a GPU", _gpu, package=None),
)
