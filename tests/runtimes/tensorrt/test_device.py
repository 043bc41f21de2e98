"""The CUDA calls: what they are told, and every way they can fail is one clear message."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
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


def test_what_the_device_says_about_itself() -> None:
    device = CudaDevice(FakeDriver(), 1)
    assert (device.name, device.capability, device.stream) == ("Test GPU", 121, 7)


def test_full_memory_and_failed_calls() -> None:
    device = CudaDevice(
        FakeDriver(cuMemAllocAsync="CUDA_ERROR_OUT_OF_MEMORY", cuGraphLaunch="CUDA_ERROR_LAUNCH_FAILED")
    )
    with pytest.raises(LucidError, match="The memory of Test GPU is full"):
        device.allocate(10)
    with pytest.raises(RuntimeError, match="cuGraphLaunch failed: CUDA_ERROR_LAUNCH_FAILED"):
        device.replay(1)


def test_recording_ends_even_if_the_work_fails() -> None:
    driver = FakeDriver()
    device = CudaDevice(driver)
    with pytest.raises(ValueError, match="work"):
        device.record(lambda: (_ for _ in ()).throw(ValueError("work")))
    assert driver.names()[-2:] == ["cuStreamBeginCapture", "cuStreamEndCapture"]
    assert device.record(lambda: None) == 7
    assert driver.names()[-2:] == ["cuGraphInstantiate", "cuGraphDestroy"]


def test_copies_name_their_sizes_and_wait_where_they_must() -> None:
    driver = FakeDriver()
    device, array = CudaDevice(driver), np.arange(6, dtype=np.int64)
    device.upload(100, array)
    assert driver.calls[-1] == ("cuMemcpyHtoDAsync", 100, array.ctypes.data, 48, 7)
    device.download(array, 100)
    assert driver.names()[-2:] == ["cuMemcpyDtoHAsync", "cuStreamSynchronize"]
    device.copy_rows(1, 20, 2, 10, 8, 3)
    copy = driver.calls[-1][1]
    assert (copy.dstDevice, copy.dstPitch, copy.srcDevice, copy.srcPitch) == (1, 20, 2, 10)
    assert (copy.WidthInBytes, copy.Height) == (8, 3)
    before = len(driver.calls)
    device.copy_rows(1, 20, 2, 10, 0, 3)  # an empty cache
    device.upload(1, np.zeros(0, np.int64))
    assert len(driver.calls) == before
