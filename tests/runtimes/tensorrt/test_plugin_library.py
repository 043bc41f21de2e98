"""The plugin library is found or built; the CUDA calls, and every way they can fail, are one clear message."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.plugins.hosts.tensorrt.registry import register_plugins
from lucid_deploy.runtimes.tensorrt import plugin_library
from lucid_deploy.runtimes.tensorrt.device import Device
from lucid_deploy.runtimes.tensorrt.plugin_library import default_library, find_or_build


@pytest.mark.parametrize("content", [None, b"not a library"])
def test_missing_and_invalid_libraries_are_refused(content: bytes | None, tmp_path: Path) -> None:
    library = tmp_path / "plugin.so"
    if content is not None:
        library.write_bytes(content)
    with pytest.raises(LucidError, match=str(library)):
        register_plugins(library, SimpleNamespace())


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """An empty cache, and a stand-in for the compilers that records its arguments."""
    calls: list[tuple[Any, ...]] = []

    def build(output: Path, archs: Any, dtypes: Any, progress: Any, head_dims: Any) -> list[Any]:
        calls.append((output.name, archs, dtypes, head_dims))
        output.parent.mkdir(exist_ok=True)
        output.touch()
        return []

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(plugin_library, "build_library", build)
    monkeypatch.setattr(plugin_library, "check_tools", lambda: None)
    return calls


def ask(*given: Any) -> tuple[Path, list[str]]:
    said: list[str] = []
    return find_or_build(*given, said.append, lambda *_: None), said


def test_a_missing_library_is_built_once_and_announced(built: list[tuple[Any, ...]]) -> None:
    library, [line] = ask("float32", (36, 64), (86,))
    assert library.name == "liblucid_tensorrt-float32-d64-86.so" and str(library) in line
    assert built == [(library.name, (86,), ("float32",), (36, 64))]
    assert (
        "There is no plugin library, so one is built now: " in line and "for float32 and heads of width 36, 64" in line
    )
    assert ask("float32", (64,), (86,)) == (library, []) and len(built) == 1
    assert ask("float16", (64,), ())[0].name == "liblucid_tensorrt-float16-d64-all.so", "other kernels"
    assert ask("float32", (64, 128), (75,))[0].name == "liblucid_tensorrt-float32-d64-d128-all.so"


def test_the_wheels_library_is_preferred_and_then_the_users(
    built: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = default_library()
    usual.parent.mkdir()
    usual.touch()
    assert ask("float32", (64,), ()) == (usual, [])
    monkeypatch.setattr("lucid_deploy.plugins.hosts.libraries.PREBUILT", tmp_path / "wheel")
    (tmp_path / "wheel").mkdir()
    (tmp_path / "wheel" / usual.name).touch()
    assert ask("float32", (64,), ()) == (tmp_path / "wheel" / usual.name, []) and built == []


class Results(SimpleNamespace):
    """``CUresult``: members with a name."""


class FakeDriver:
    """``cuda.bindings.driver``: every call succeeds, is recorded, and returns a number, unless told otherwise."""

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
def test_a_missing_driver_or_gpu_is_an_error(answers: dict[str, Any], message: str) -> None:
    with pytest.raises(LucidError, match=message):
        Device(FakeDriver(**answers), 1)


def test_full_memory_and_failed_calls_raise_errors() -> None:
    device = Device(FakeDriver(cuMemAllocAsync="CUDA_ERROR_OUT_OF_MEMORY", cuGraphLaunch="CUDA_ERROR_LAUNCH_FAILED"))
    with pytest.raises(LucidError, match="The memory of Test GPU is full"):
        device.allocate(10)
    with pytest.raises(RuntimeError, match="cuGraphLaunch failed: CUDA_ERROR_LAUNCH_FAILED"):
        device.replay(1)
