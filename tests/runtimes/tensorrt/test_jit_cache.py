"""Kernels that TensorRT-RTX compiles at run time are kept for the next start, and never trusted blindly."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.runtimes.tensorrt.load_engines import JitCache

Exported = Callable[..., tuple[Path, Artifact]]


class Cache:
    """``IRuntimeCache``: a list of kernels; content of another environment is refused and changes nothing."""

    def __init__(self, environment: bytes = b"driver 1") -> None:
        self.environment, self.kernels = environment, b""

    def serialize(self) -> bytearray:
        return bytearray(self.environment + b"|" + self.kernels)

    def deserialize(self, content: bytes) -> bool:
        environment, _, kernels = bytes(content).partition(b"|")
        if environment != self.environment:
            return False
        self.kernels = kernels
        return True


class Config:
    """``IRuntimeConfig``."""

    def __init__(self, environment: bytes = b"driver 1", takes: bool = True) -> None:
        self.environment, self.takes, self.cache = environment, takes, None
        self.dynamic_shapes_kernel_specialization_strategy: Any = "lazy"

    def create_runtime_cache(self) -> Cache:
        return Cache(self.environment)

    def set_runtime_cache(self, cache: Any) -> bool:
        self.cache = cache
        return self.takes


@pytest.fixture(autouse=True)
def _cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def attached(path: Path, **options: Any) -> tuple[JitCache, Config]:
    cache, config = JitCache(path), Config(**options)
    cache.attach(config)
    return cache, config


def test_what_was_compiled_is_there_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "jit" / "cache.bin"
    cache, config = attached(path)
    other = Config()
    cache.attach(other)
    assert other.cache is config.cache, "one cache for all contexts of an engine"
    config.cache.kernels = b"compiled"  # type: ignore[attr-defined]
    cache.save()
    assert attached(path)[1].cache.kernels == b"compiled"  # type: ignore[attr-defined]
    assert [entry.name for entry in path.parent.iterdir()] == ["cache.bin"] and caplog.records == []


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:5], lambda data: b"", lambda data: data + b"x"]
)
def test_a_damaged_file_is_said_and_made_anew(
    damage: Callable[[bytes], bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cache.bin"
    cache, config = attached(path)
    config.cache.kernels = b"compiled"  # type: ignore[attr-defined]
    cache.save()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    cache, config = attached(path)
    assert config.cache.kernels == b""  # type: ignore[attr-defined]
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == f"The cache of compiled kernels {path} is damaged: they are compiled anew."
    config.cache.kernels = b"compiled"  # type: ignore[attr-defined]
    cache.save()
    assert path.read_bytes() == whole


def test_a_folder_that_cannot_be_written_costs_the_cache_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "jit").write_text("a file where the folder should be")
    cache, _ = attached(tmp_path / "jit" / "cache.bin")
    caplog.clear()
    cache.save()
    assert "Compiled kernels were not kept for the next start" in caplog.text


def test_tensorrt_rtx_has_what_is_called() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason='needs TensorRT-RTX: pip install -e ".[rtx]"')
    assert callable(trt.ICudaEngine.create_runtime_config)
    for name in ("create_runtime_cache", "set_runtime_cache"):
        assert callable(getattr(trt.IRuntimeConfig, name))
    assert isinstance(trt.IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy, property)
    for name in ("serialize", "deserialize"):
        assert callable(getattr(trt.IRuntimeCache, name))
    assert (
        "-> bool" in trt.IRuntimeCache.deserialize.__doc__ and "-> bool" in trt.IRuntimeConfig.set_runtime_cache.__doc__
    )
    assert trt.DynamicShapesKernelSpecializationStrategy.EAGER is not None
