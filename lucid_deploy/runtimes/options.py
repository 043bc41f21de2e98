"""Options for running a model, shared by the library, the command line, the server and benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from lucid_deploy.errors import LucidError
from lucid_deploy.processors import allowed_threads

PROVIDERS = ("cpu", "cuda", "tensorrt", "nv-tensorrt-rtx")
KERNELS = ("auto", "functions", "library")
ABLATIONS = ("preconditioner",)
MOST_THREADS = 1024  # without this bound, runtimes would try to start any number of threads


@dataclass(frozen=True)
class RuntimeOptions:
    """Which runtime runs a model, on which device and with which settings."""

    runtime: str = "auto"  # a runtime's name; auto is onnxruntime
    # A device such as cpu or cuda, with an index if there are several: cuda:1 is the second GPU. For cpu, the default,
    # a runtime that does not run on CPUs uses its first device.
    device: str = "cpu"
    threads: int | None = None  # threads per operator; None: see thread_count; PyTorch keeps its own setting
    allow_extrapolation: bool = False  # permit contexts beyond max_position_embeddings, if RoPE is not dynamic
    provider: str = "cpu"  # onnxruntime's execution provider
    # What computes our operators in onnxruntime on the CPU: the library (the wheel's, or else that of `plugin build
    # --target onnxruntime`), the graph's functions, or auto: the library if there is one.
    kernels: str = "auto"
    ablate: str | None = None  # with PyTorch, a part of LUCID attention to leave out
    adapter: str | None = None  # name of the adapter for rows that choose none; None: no adapter

    def __post_init__(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise LucidError(f"The number of threads must be 1 to {MOST_THREADS}, not {self.threads}.")
        for field, known in (("provider", PROVIDERS), ("ablate", (None, *ABLATIONS)), ("kernels", KERNELS)):
            if (value := getattr(self, field)) not in known:
                names = ", ".join(filter(None, known))
                raise LucidError(f"{field.capitalize()} {value!r} is not known; known are {names}.")

    @property
    def thread_count(self) -> int | None:
        """Threads for onnxruntime and OpenVINO: the option, or the process's limit; None: no limit, or not on Linux."""
        return self.threads or allowed_threads()

    def given(self) -> dict[str, Any]:
        """Return the options that differ from their defaults, by field."""
        return {item.name: value for item in fields(self) if (value := getattr(self, item.name)) != item.default}


def flag(field: str) -> str:
    """Return how the command line spells an option: ``allow_extrapolation`` is ``--allow-extrapolation``."""
    return "--" + field.replace("_", "-")


def is_device(device: str, kinds: Sequence[str]) -> bool:
    """Whether a device such as ``cuda:1`` is of one of these kinds; ``cpu``, the default, fits any runtime."""
    kind, colon, number = device.partition(":")
    return device == "cpu" or (kind != "cpu" and kind in kinds and (not colon or number.isdecimal()))


def device_index(device: str) -> int:
    """Return the number of a device: 1 for ``cuda:1``, 0 if it has no number."""
    return int(device.partition(":")[2] or 0)
