"""A GPU: memory, copies, one stream, and CUDA graphs. All of the runtime's CUDA calls are in this file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lucid_deploy.errors import LucidError, missing_extra
from lucid_deploy.runtimes.session import Array

_PURPOSE = "run TensorRT engines"


class Device:
    """A GPU, used through the CUDA driver: memory by address, and one stream that runs all work in order.

    Attributes:
        name: The GPU's name, from the driver.
        capability: Compute capability, 86 for 8.6.
        stream: Handle of the stream, an integer for TensorRT.
    """

    def __init__(self, driver: Any, index: int = 0) -> None:
        self._cu = driver
        self._start()
        count = self._call("cuDeviceGetCount")
        if count == 0:
            raise LucidError("The CUDA driver finds no GPU. TensorRT engines run on NVIDIA GPUs only.")
        if index >= count:
            raise LucidError(f"There is no GPU {index}; this machine has {count}, numbered from 0.")
        handle = self._call("cuDeviceGet", index)
        self.name = self._call("cuDeviceGetName", 256, handle).decode().rstrip("\0")
        kinds = driver.CUdevice_attribute
        major = self._call("cuDeviceGetAttribute", kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, handle)
        minor = self._call("cuDeviceGetAttribute", kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, handle)
        self.capability = 10 * major + minor
        self._context = self._call("cuDevicePrimaryCtxRetain", handle)  # the one that TensorRT and PyTorch use
        self.activate()
        self._stream = self._call("cuStreamCreate", driver.CUstream_flags.CU_STREAM_NON_BLOCKING.value)
        self.stream = int(self._stream)

    def _start(self) -> None:
        """Load and initialize the driver; if there is none, cuda-bindings raises undocumented errors: catch all."""
        try:
            status, *_ = self._cu.cuInit(0)
        except Exception as error:
            raise LucidError(
                "No CUDA driver was found on this machine. Running TensorRT engines needs an NVIDIA GPU and its driver "
                "(libcuda.so.1)."
            ) from error
        if status != self._cu.CUresult.CUDA_SUCCESS:
            raise LucidError(
                f"The CUDA driver does not start ({status.name}). Running TensorRT engines needs an NVIDIA GPU and its "
                "driver; nvidia-smi shows whether both work."
            )

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *results = getattr(self._cu, name)(*arguments)
        if status == self._cu.CUresult.CUDA_SUCCESS:
            return results[0] if len(results) == 1 else results
        if status == self._cu.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise LucidError(
                f"The memory of {getattr(self, 'name', 'the GPU')} is full. Use fewer rows, a shorter context, or "
                "build with a smaller --max-context or --prefill-chunk."
            )
        raise RuntimeError(f"{name} failed: {status.name}")

    def activate(self) -> None:
        """Make the device's context current in the calling thread; call this first in each thread."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, size: int) -> int:
        """Return the address of ``size`` ≥ 1 new bytes; raise a LucidError if the GPU's memory is full."""
        return int(self._call("cuMemAllocAsync", size, self._stream))

    def free(self, address: int) -> None:
        """Free memory as soon as queued work that uses it is done."""
        self._call("cuMemFreeAsync", address, self._stream)

    def fill_zero(self, address: int, size: int) -> None:
        """Set ``size`` bytes to zero, in the order of the stream."""
        self._call("cuMemsetD8Async", address, 0, size, self._stream)

    def upload(self, address: int, array: Array) -> None:
        """Queue a copy of a contiguous array to the device; the array may be changed when this returns."""
        # Pageable memory is staged by the driver before the call returns.
        assert array.flags.c_contiguous
        if array.nbytes:
            self._call("cuMemcpyHtoDAsync", address, array.ctypes.data, array.nbytes, self._stream)

    def download(self, array: Array, address: int) -> None:
        """Copy from the device into a contiguous array, and wait for the copy."""
        assert array.flags.c_contiguous
        if array.nbytes:
            self._call("cuMemcpyDtoHAsync", array.ctypes.data, address, array.nbytes, self._stream)
        self._call("cuStreamSynchronize", self._stream)

    def copy_rows(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, rows: int) -> None:
        """Queue a copy of ``rows`` rows of ``width`` bytes within the device; pitches: bytes from row to row."""
        if not width or not rows:
            return
        copy = self._cu.CUDA_MEMCPY2D()
        copy.srcMemoryType = copy.dstMemoryType = self._cu.CUmemorytype.CU_MEMORYTYPE_DEVICE
        copy.srcDevice, copy.srcPitch = source, source_pitch
        copy.dstDevice, copy.dstPitch = target, target_pitch
        copy.WidthInBytes, copy.Height = width, rows
        self._call("cuMemcpy2DAsync", copy, self._stream)

    def record(self, work: Callable[[], None]) -> Any:
        """Record what ``work`` queues as a CUDA graph, without running it; return the graph."""
        # Thread-local, so that other threads may use the GPU meanwhile without ending the recording.
        self._call(
            "cuStreamBeginCapture", self._stream, self._cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        )
        try:
            work()
        except BaseException:
            self._cu.cuStreamEndCapture(self._stream)
            raise
        graph = self._call("cuStreamEndCapture", self._stream)
        try:
            return self._call("cuGraphInstantiate", graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)

    def replay(self, graph: Any) -> None:
        """Queue a recorded CUDA graph."""
        self._call("cuGraphLaunch", graph, self._stream)

    def drop(self, graph: Any) -> None:
        """Destroy a recorded CUDA graph."""
        self._call("cuGraphExecDestroy", graph)


def open_device(index: int = 0) -> Device:
    """Open the GPU ``index``; raise a LucidError without cuda-bindings, a driver, or that GPU."""
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise missing_extra("cuda-bindings", "rtx", _PURPOSE) from error
    return Device(driver, index)


def bytes_of(dtype: str) -> Any:
    """Return the numpy type for a tensor type: ml_dtypes' for bfloat16, uint8 for the codes of E4M3."""
    if dtype == "float8_e4m3fn":
        return np.dtype(np.uint8)
    if dtype == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(dtype)
