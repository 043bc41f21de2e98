"""TensorRT-RTX and TensorRT behind one interface: they differ in the imported module and in a few features."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

from lucid_deploy.errors import LucidError, missing_extra, spelled_out

# By name on the command line: module, extra that installs it, name in messages.
_KNOWN = {
    "tensorrt-rtx": ("tensorrt_rtx", "rtx", "TensorRT-RTX"),
    "tensorrt": ("tensorrt", "trt", "TensorRT"),
}
BACKENDS = tuple(_KNOWN)
# The oldest supported versions: TensorRT's parser has the operator Attention from 10.14 on; TensorRT-RTX 1.7 is the
# oldest with which an engine of ours was built.
LEAST = {"tensorrt-rtx": "1.7", "tensorrt": "10.14"}


@dataclass(frozen=True)
class Backend:
    """An imported TensorRT or TensorRT-RTX."""

    name: str  # tensorrt-rtx or tensorrt
    title: str  # its name in messages
    trt: Any  # the module
    version: str

    @property
    def needs_gpu_to_build(self) -> bool:
        """Whether building times kernels on a GPU; TensorRT-RTX chooses kernels on the machine that runs the engine."""
        return self.name == "tensorrt"

    def check_version(self) -> None:
        """Raise a LucidError if the backend is older than engines need."""
        from packaging.version import InvalidVersion, Version

        least = LEAST[self.name]
        try:
            old = Version(self.version) < Version(least)
        except InvalidVersion:  # a custom build: TensorRT itself reports what it lacks
            return
        if old:
            raise LucidError(
                f"{self.title} {self.version} is too old for engines, which need {least} or newer. Run: "
                + spelled_out(f'pip install "lucid-deploy[{_KNOWN[self.name][1]}]"')
            )

    def capabilities(self, wanted: tuple[str, ...]) -> tuple[int, ...]:
        """Check the compute capabilities to build for and return them, ``8.6`` as 86; () lets the backend choose."""
        if not wanted:
            return ()
        kinds = getattr(self.trt, "ComputeCapability", None)
        if self.needs_gpu_to_build or kinds is None:
            raise LucidError(
                f"{self.title} builds for the GPU of the building machine; --compute-capability is for tensorrt-rtx."
            )
        known = sorted(int(name[2:]) for name in kinds.__members__ if name.startswith("SM"))
        numbers = tuple(_number(text) for text in wanted)
        if wrong := [text for text, number in zip(wanted, numbers, strict=True) if number not in known]:
            raise LucidError(
                f"{self.title} {self.version} cannot build for compute capability {', '.join(wrong)}; it can for "
                + ", ".join(dotted(number) for number in known)
                + "."
            )
        return tuple(dict.fromkeys(numbers))


def dotted(capability: int) -> str:
    """Return a compute capability in NVIDIA's notation: 86 is 8.6."""
    return f"{capability // 10}.{capability % 10}"


def _number(text: str) -> int:
    digits = text.replace(".", "")
    return int(digits) if digits.isdecimal() else -1


def load_backend(name: str | None = None) -> Backend:
    """Import a backend; None: TensorRT-RTX, or TensorRT if only that is installed."""
    if name is None:
        name = "tensorrt" if not _installed("tensorrt-rtx") and _installed("tensorrt") else "tensorrt-rtx"
    module, extra, title = _KNOWN[name]
    if not _installed(name):
        raise missing_extra(module, extra, "build and run TensorRT engines")
    try:
        trt = importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: a shared library of it that cannot be loaded
        raise LucidError(f"{title} is installed but does not load: {error}") from error
    return Backend(name, title, trt, str(trt.__version__))


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(_KNOWN[name][0]) is not None
    except ValueError:  # a loaded module of this name has no __spec__
        return False
