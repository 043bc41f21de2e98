"""How a model is to be run: one set of options for the library, the command line, the server and benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from lucid_deploy.errors import LucidError
from lucid_deploy.processors import allowed_threads

PROVIDERS = ("cpu", "cuda", "tensorrt", "nv-tensorrt-rtx")
KERNELS = ("auto", "functions", "library")
ABLATIONS = ("preconditioner", "keys")  # of model.ablation
MOST_THREADS = 1024  # runtimes start any number of threads, until the machine gives way


@dataclass(frozen=True)
class RuntimeOptions:
    """What runs a model, and how.

    Attributes:
        runtime: A runtime's name, or ``auto``: onnxruntime.
        device: A kind of device, such as ``cpu`` or ``cuda``, with ``:N`` for one of several. A runtime that has no
            ``cpu``, which is the default, takes it as its own first device.
        threads: Threads within an operator; None: see :attr:`thread_count`.
        allow_extrapolation: Whether contexts beyond ``max_position_embeddings`` are permitted.
        provider: onnxruntime's execution provider, one of :data:`PROVIDERS`.
        ablate: With PyTorch, a part of LUCID attention to leave out, one of :data:`ABLATIONS`; None: nothing.
        kernels: With onnxruntime on the CPU, what computes our operators: the ``library`` that ``plugin build --target
            onnxruntime`` makes, the graph's ``functions``, or ``auto``: the library where one has been built.

    Raises:
        LucidError: A number of threads that makes no sense, or an unknown provider, ablation or choice of kernels.
    """

    runtime: str = "auto"
    device: str = "cpu"
    threads: int | None = None
    allow_extrapolation: bool = False
    provider: str = "cpu"
    kernels: str = "auto"
    ablate: str | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise LucidError(f"The number of threads must be 1 to {MOST_THREADS}, not {self.threads}.")
        if self.provider not in PROVIDERS:
            raise LucidError(f"Provider {self.provider!r} is not known; known are {', '.join(PROVIDERS)}.")
        if self.ablate is not None and self.ablate not in ABLATIONS:
            raise LucidError(f"Ablation {self.ablate!r} is not known; known are {', '.join(ABLATIONS)}.")
        if self.kernels not in KERNELS:
            raise LucidError(f"Kernels {self.kernels!r} are not known; known are {', '.join(KERNELS)}.")

    @property
    def thread_count(self) -> int | None:
        """Threads for the runtime: the option, or the process's limit; None, where it may use the whole machine."""
        return self.threads or allowed_threads()

    def given(self) -> dict[str, Any]:
        """Return the options that differ from their defaults, by field."""
        return {item.name: value for item in fields(self) if (value := getattr(self, item.name)) != item.default}


def flag(field: str) -> str:
    """Return how the command line spells an option: ``allow_extrapolation`` is ``--allow-extrapolation``."""
    return "--" + field.replace("_", "-")


def is_device(device: str, kinds: Sequence[str]) -> bool:
    """Whether a device such as ``cuda:1`` is of one of these kinds.

    Args:
        device: As in :class:`RuntimeOptions`; ``cpu``, the default, stands for the first kind of a runtime without it.
        kinds: Kinds of devices, the preferred one first.
    """
    kind, colon, number = device.partition(":")
    return device == "cpu" or (kind != "cpu" and kind in kinds and (not colon or number.isdecimal()))


def device_index(device: str) -> int:
    """Return the number of a device: 1 of ``cuda:1``, 0 of one without a number."""
    return int(device.partition(":")[2] or 0)
