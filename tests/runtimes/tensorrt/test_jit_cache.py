"""Kernels that TensorRT-RTX compiles at run time are kept for the next start, and never trusted blindly."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.tensorrt.backend import Backend
from lucid_deploy.runtimes.tensorrt.jit_cache import JitCache, jit_cache_path
from lucid_deploy.runtimes.tensorrt.load_engines import load_engines
from lucid_deploy.runtimes.tensorrt.manifest import EngineFile, engine_directory
from lucid_deploy.runtimes.tensorrt.session import TensorRtSession
from tests.runtimes.tensorrt.fake_gpu import FakeDevice, fake_engines

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


class Rtx(SimpleNamespace):
    """``tensorrt_rtx`` as far as loading engines needs it; engines of the name ``none`` make no contexts."""

    def __init__(self) -> None:
        super().__init__(
            __name__="fake",
            ILogger=type("ILogger", (), {"INTERNAL_ERROR": 0, "ERROR": 1}),
            IRuntimeCache=Cache,
            DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
            Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=self.engine),
            configs=[],
            makes=True,
        )

    def engine(self, content: bytes) -> Any:
        def config() -> Config:
            self.configs.append(Config())
            return self.configs[-1]

        def context(config: Any = None) -> Any:
            return SimpleNamespace(config=config) if self.makes else None

        return SimpleNamespace(
            num_io_tensors=0, create_runtime_config=config, create_execution_context=context, content=content
        )


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


def test_an_unchanged_cache_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "cache.bin"
    attached(path)[0].save()
    before = path.stat()
    cache = attached(path)[0]
    cache.save()
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    JitCache(tmp_path / "never").save()
    assert not (tmp_path / "never").exists()


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


def test_another_driver_is_said_and_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "cache.bin"
    attached(path)[0].save()
    cache, _ = attached(path, environment=b"driver 2")
    assert "was made by another driver or on another GPU" in caplog.text
    cache.save()
    assert path.read_bytes().endswith(b"\ndriver 2|")


def test_a_folder_that_cannot_be_written_costs_the_cache_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "jit").write_text("a file where the folder should be")
    cache, _ = attached(tmp_path / "jit" / "cache.bin")
    caplog.clear()
    cache.save()
    assert "Compiled kernels were not kept for the next start" in caplog.text


def test_a_cache_that_is_not_taken_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    attached(tmp_path / "cache.bin", takes=False)
    assert "does not take its runtime cache" in caplog.text


def test_the_name_changes_with_engine_version_and_gpu() -> None:
    engine = EngineFile("decode.engine", 1, "a", {}, {})
    backend, gpu = Backend("tensorrt-rtx", "TensorRT-RTX", None, "1.7"), FakeDevice()
    other = FakeDevice()
    other.name = "another"  # type: ignore[misc]
    paths = {
        jit_cache_path(*given)
        for given in (
            (engine, backend, gpu),
            (replace(engine, sha256="b"), backend, gpu),
            (engine, replace(backend, version="1.8"), gpu),
            (engine, backend, other),
        )
    }
    assert len(paths) == 4


@pytest.mark.parametrize("kind", ["growing", "static"])
def test_contexts_get_the_cache_and_closing_the_session_saves_it(
    kind: str, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, device, trt = exported(cache=kind)[1], FakeDevice(), Rtx()
    artifact = Artifact(tmp_path, source.manifest)
    backend = Backend("tensorrt-rtx", "TensorRT-RTX", trt, "1.7")
    manifest = fake_engines(source, device)[0].manifest
    hashes = {
        stage: replace(entry, sha256=hashlib.sha256(stage.encode()).hexdigest())
        for stage, entry in manifest.engines.items()
    }
    manifest = replace(manifest, engines=hashes)
    folder = engine_directory(artifact, backend.name)
    folder.mkdir(parents=True)
    for entry in manifest.engines.values():
        (folder / entry.file).write_bytes(entry.file.removesuffix(".engine").encode())
    session = TensorRtSession(artifact, load_engines(artifact, manifest, backend, device), device)
    strategies = [config.dynamic_shapes_kernel_specialization_strategy for config in trt.configs]
    assert strategies == ["lazy", "eager" if kind == "static" else "lazy"]
    session.share(device)
    assert trt.configs[2].cache is trt.configs[0].cache is not trt.configs[1].cache
    paths = [jit_cache_path(entry, backend, device) for entry in manifest.engines.values()]
    trt.configs[1].cache.kernels = b"compiled"
    session.close()
    assert [path.read_bytes().rpartition(b"|")[2] for path in paths] == [b"", b"compiled"]
    with pytest.raises(LucidError, match="The session was closed"):
        session.prefill(np.array([[1]]), session.empty_cache(1))
    session.close()
    trt.makes = False
    with pytest.raises(LucidError, match="makes no context of the prefill engine: no reason given"):
        TensorRtSession(artifact, load_engines(artifact, manifest, backend, device), device)


def test_a_session_that_is_only_dropped_saves_too(exported: Exported) -> None:
    artifact, device, saved = exported()[1], FakeDevice(), threading.Event()
    engines = fake_engines(artifact, device)[0]
    session = TensorRtSession(artifact, replace(engines, save=saved.set), device)
    assert not saved.is_set()
    del session
    assert saved.is_set()


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
