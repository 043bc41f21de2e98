"""Opening engines: every way it can fail is one clear message; compiled kernels are kept for the next start."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.cli import main
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.plugins.hosts.tensorrt.build import PLUGIN_ABI
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.tensorrt.backend import load_backend
from lucid_deploy.runtimes.tensorrt.load_engines import JitCache, check_capability, load_engines, open_tensorrt
from lucid_deploy.runtimes.tensorrt.manifest import MANIFEST, open_engines
from tests.phase_lines import error_line
from tests.runtimes.tensorrt.engine_copies import copy_of
from tests.runtimes.tensorrt.fake_gpu import FakeDevice, fake_engines, has_gpu

Exported = Callable[..., tuple[Path, Artifact]]


def test_engines_for_other_gpus_are_refused(exported: Exported) -> None:
    artifact, device = exported()[1], FakeDevice()
    manifest = fake_engines(artifact, device)[0].manifest
    check_capability(manifest, device, artifact)
    with pytest.raises(LucidError, match=r"built for compute capability 8\.0, 12\.0; fake has 8\.6"):
        check_capability(replace(manifest, capabilities=(80, 120)), device, artifact)


@pytest.fixture(scope="module")
def built(exported: Exported, plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    pytest.importorskip("tensorrt_rtx", reason='building engines needs TensorRT-RTX: pip install -e ".[rtx]"')
    directory = tmp_path_factory.mktemp("built") / "artifact"
    shutil.copytree(exported()[1].directory, directory)
    result = CliRunner().invoke(main, ["build", str(directory), "--plugin", str(plugin), "--json", "-"])
    assert result.exit_code == 0, result.stderr
    assert set(json.loads(result.stdout)["engines"]) == {"prefill", "decode"}
    return open_artifact(directory)


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
def test_an_engine_that_tensorrt_cannot_read_is_refused_with_the_reason(built: Artifact) -> None:
    """Without a driver TensorRT reads no engine; the error passes on its reason."""
    backend = load_backend("tensorrt-rtx")
    manifest = open_engines(built, backend.name, backend.version)
    with pytest.raises(CheckFailed, match=r"does not read .*prefill\.engine: .*: lucid-deploy build .*--backend"):
        load_engines(built, manifest, backend)


def test_weights_are_given_to_engines_that_were_built_without(built: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    real, given, taken = load_backend("tensorrt-rtx"), [], [True]

    class Refitter(SimpleNamespace):
        def refit_cuda_engine(self) -> bool:
            return taken[0]

        def refit_from_bytes(self, model: bytes, path: str) -> bool:
            given.append((len(model) > 1000, path))
            return True

    engine = SimpleNamespace(num_io_tensors=1, get_tensor_name=lambda index: "logits")
    trt = SimpleNamespace(
        __name__="fake",
        ILogger=real.trt.ILogger,
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda content: engine),
        Refitter=lambda engine, logger: Refitter(),
        OnnxParserRefitter=lambda refitter, logger: refitter,
    )
    monkeypatch.setattr("lucid_deploy.runtimes.tensorrt.load_engines.register_plugins", lambda library, trt: None)
    backend = replace(real, trt=trt)
    manifest = replace(open_engines(built, real.name, real.version), weightless=True)
    assert load_engines(built, manifest, backend).tensors["decode"] == {"logits"}
    assert given == [(True, str(built.directory / f"{stage}.onnx")) for stage in ("prefill", "decode")]
    taken[0] = False
    with pytest.raises(CheckFailed, match="The prefill engine does not take the weights"):
        load_engines(built, manifest, backend)


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
@pytest.mark.parametrize("name", ["run", "verify"])
def test_without_a_gpu_there_is_one_message(name: str, built: Artifact) -> None:
    pytest.importorskip("cuda.bindings", reason='needs cuda-bindings: pip install -e ".[rtx]"')
    rest = ["--prompt-ids", "5"] if name == "run" else []
    result = CliRunner().invoke(main, [name, str(built.directory), "--runtime", "tensorrt", *rest])
    assert (result.exit_code, result.stdout) == (2, "")
    assert error_line(result.stderr) == (
        "Error: No CUDA driver was found on this machine. Running TensorRT engines needs an NVIDIA GPU and its driver "
        "(libcuda.so.1).\n"
    )


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("cache", ["growing", "static"])
def test_engines_compute_what_onnxruntime_does(cache: str, exported: Exported, tmp_path: Path) -> None:
    """With the real plugin library, which ``lucid-deploy plugin build`` must have built before."""
    directory = shutil.copytree(exported(cache=cache)[1].directory, tmp_path / "artifact")
    result = CliRunner().invoke(main, ["build", str(directory)])
    assert result.exit_code == 0, result.stderr
    ours, other = open_tensorrt(open_artifact(directory)), open_session(directory)
    ids = np.random.default_rng(0).integers(0, 97, (2, 60))
    caches = [session.empty_cache(2) for session in (ours, other)]
    results = [session.prefill(ids[:, :40], own) for session, own in zip((ours, other), caches, strict=True)]
    np.testing.assert_allclose(*results, rtol=1e-3, atol=1e-3)
    for position in range(40, 60):
        part = ids[:, position : position + 1]
        np.testing.assert_allclose(ours.decode(part, caches[0]), other.decode(part, caches[1]), rtol=1e-3, atol=1e-3)


trt = pytest.importorskip("tensorrt_rtx", reason='building engines needs TensorRT-RTX: pip install -e ".[rtx]"')


def change_manifest(folder: Path, **changes: Any) -> None:
    data = json.loads((folder / MANIFEST).read_text())
    for key, value in changes.items():
        target, *rest = key.split("__")
        (data[target] if rest else data)[rest[0] if rest else target] = value
    (folder / MANIFEST).write_text(json.dumps(data))


def test_engines_of_another_tensorrt_version_are_refused(damaged: tuple[Artifact, Path]) -> None:
    with pytest.raises(LucidError, match=r"built with tensorrt-rtx .* but 9\.9 is.*lucid-deploy build .*--overwrite"):
        open_engines(damaged[0], "tensorrt-rtx", "9.9")


def test_engines_of_another_plugin_abi_are_refused(damaged: tuple[Artifact, Path]) -> None:
    change_manifest(damaged[1], plugin__abi=99)
    with pytest.raises(
        LucidError, match=rf"plugin ABI 99, and this version has {PLUGIN_ABI}\. Run: lucid-deploy plugin build"
    ):
        open_engines(damaged[0], "tensorrt-rtx", trt.__version__)


def test_another_models_engines_are_refused(damaged: tuple[Artifact, Path], exported: Exported, tmp_path: Path) -> None:
    other = copy_of(exported(cache="static")[1], tmp_path / "other")
    shutil.copytree(damaged[1].parent, other.directory / "engines")
    with pytest.raises(LucidError, match=r"another model: decode\.onnx, verify\.onnx differ.*lucid-deploy build"):
        open_engines(other, "tensorrt-rtx", trt.__version__)


@pytest.mark.parametrize("text", ["{", "[]", '{"format_version": 1}', '{"format_version": 1, "engines": {}}'])
def test_a_damaged_manifest_is_refused(damaged: tuple[Artifact, Path], text: str) -> None:
    (damaged[1] / MANIFEST).write_text(text)
    with pytest.raises(CheckFailed, match=r"engines\.json is damaged.*Build them again"):
        open_engines(damaged[0], "tensorrt-rtx", trt.__version__)


def test_a_manifest_that_names_files_elsewhere_is_refused(damaged: tuple[Artifact, Path]) -> None:
    change_manifest(damaged[1], plugin__file="../../../plugin.so")
    with pytest.raises(CheckFailed, match="lies outside the folder"):
        open_engines(damaged[0], "tensorrt-rtx", trt.__version__)


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


def test_compiled_kernels_are_kept_for_the_next_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "jit" / "cache.bin"
    cache, config = attached(path)
    other = Config()
    cache.attach(other)
    assert other.cache is config.cache, "one cache for all contexts of an engine"
    config.cache.kernels = b"compiled"  # type: ignore[attr-defined]
    cache.save()
    assert attached(path)[1].cache.kernels == b"compiled"  # type: ignore[attr-defined]
    assert [entry.name for entry in path.parent.iterdir()] == ["cache.bin"] and caplog.records == []


def test_tensorrt_rtx_has_the_functions_that_are_called() -> None:
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
