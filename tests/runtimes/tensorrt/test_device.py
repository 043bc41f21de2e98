"""The CUDA calls: what they are told, and every way they can fail is one clear message."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.tensorrt.device import CudaDevice


class Results(SimpleNamespace):
    """``CUresult``: members with a name."""


class FakeDriver:
    """``cuda.bindings.driver``: every call succeeds, is noted, and returns a number, unless told otherwise."""

    def __init__(self, **answers: Any) -> None:
        names = ("CUDA_SUCCESS", "CUDA_ERROR_OUT_OF_MEMORY", "CUDA_ERROR_NO_DEVICE", "CUDA_ERROR_LAUNCH_FAILED")
        self.CUresult = Results(**{name: SimpleNamespace(name=name) for name in names})
        self.CUdevice_attribute = SimpleNamespace(
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major", CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor"
        )
        self.CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=SimpleNamespace(value=1))
        self.CUmemorytype = SimpleNamespace(CU_MEMORYTYPE_DEVICE=2)
        self.CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
        self.CUDA_MEMCPY2D = SimpleNamespace
        self.calls: list[tuple[Any, ...]] = []
        self.answers = {"cuDeviceGetCount": 2, "cuDeviceGetName": b"Test GPU\0\0", **answers}

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            answer = self.answers.get(name, 7)
            if name == "cuDeviceGetAttribute":
                answer = {"major": 12, "minor": 1}[arguments[0]]
            if isinstance(answer, Exception):
                raise answer
            if isinstance(answer, str):
                return (getattr(self.CUresult, answer), None)
            return (self.CUresult.CUDA_SUCCESS, answer)

        return call

    def names(self) -> list[str]:
        return [name for name, *_ in self.calls]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"cuInit": RuntimeError("libcuda.so.1 not found")}, r"No CUDA driver was found .* \(libcuda\.so\.1\)"),
        ({"cuInit": "CUDA_ERROR_NO_DEVICE"}, r"does not start \(CUDA_ERROR_NO_DEVICE\).*nvidia-smi"),
        ({"cuDeviceGetCount": 0}, "The CUDA driver finds no GPU"),
        ({"cuDeviceGetCount": 1}, "There is no GPU 1; this machine has 1, numbered from 0"),
    ],
    ids=str,
)
def test_no_gpu(answers: dict[str, Any], message: str) -> None:
    with pytest.raises(LucidError, match=message):
        CudaDevice(FakeDriver(**answers), 1)


def test_full_memory_and_failed_calls() -> None:
    device = CudaDevice(
        FakeDriver(cuMemAllocAsync="CUDA_ERROR_OUT_OF_MEMORY", cuGraphLaunch="CUDA_ERROR_LAUNCH_FAILED")
    )
    with pytest.raises(LucidError, match="The memory of Test GPU is full"):
        device.allocate(10)
    with pytest.raises(RuntimeError, match="cuGraphLaunch failed: CUDA_ERROR_LAUNCH_FAILED"):
        device.replay(1)
