"""Open an artifact's TensorRT engines: check their manifest, open the GPU, and deserialize them."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.files import atomic_write
from lucid_deploy.plugins.hosts.libraries import cache_folder
from lucid_deploy.plugins.hosts.tensorrt.registry import register_plugins
from lucid_deploy.runtimes.tensorrt.backend import BACKENDS, Backend, dotted, load_backend
from lucid_deploy.runtimes.tensorrt.callbacks import CallbackFailure, explain, make_logger, without_collection
from lucid_deploy.runtimes.tensorrt.device import Device, open_device
from lucid_deploy.runtimes.tensorrt.engine_contexts import Engines
from lucid_deploy.runtimes.tensorrt.manifest import MANIFEST, EngineManifest, check_file, engine_directory, open_engines
from lucid_deploy.runtimes.tensorrt.prepare import check_float_formats, prepare_graph
from lucid_deploy.runtimes.tensorrt.session import TensorRtSession

log = logging.getLogger("lucid_deploy.jit_cache")


class JitCache:
    """The compiled kernels of one engine, shared by all its contexts. Destroy the contexts before the cache."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cache: Any = None
        self._saved = b""

    def attach(self, config: Any) -> None:
        """Let contexts created with this runtime configuration use the cache; the first call reads the file."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            try:
                content = self.path.read_bytes() if self.path.exists() else b""
            except OSError as error:
                log.warning("Compiled kernels in %s cannot be read: %s.", self.path, error.strerror or error)
                content = b""
            if content and not self._cache.deserialize(content):
                log.warning("%s is for another driver or GPU, or damaged: kernels are compiled again.", self.path)
                content = b""
            self._saved = content
        if not config.set_runtime_cache(self._cache):
            log.warning("TensorRT-RTX rejects its runtime cache; every start compiles kernels again.")

    def save(self) -> None:
        """Write the file, atomically, unless it already has all compiled kernels. A failure is logged, not raised."""
        if self._cache is None or (content := bytes(self._cache.serialize())) == self._saved:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self.path, content, mode=0o600)
            self._saved = content
        except OSError as error:
            log.warning("Compiled kernels were not saved for later starts: %s: %s", self.path, error.strerror or error)


def _jit_caches(manifest: EngineManifest, backend: Backend, gpu: Device) -> dict[str, JitCache]:
    """Return a cache of compiled kernels for each engine; none if the backend does not compile at run time."""
    if not hasattr(backend.trt, "IRuntimeCache"):
        return {}
    caches = {}
    for stage, engine in manifest.engines.items():
        facts = "\n".join((engine.sha256, backend.name, backend.version, gpu.name, str(gpu.capability)))
        name = hashlib.sha256(facts.encode()).hexdigest()[:32]
        caches[stage] = JitCache(cache_folder() / "jit" / f"{name}.bin")
    return caches


def open_tensorrt(artifact: Artifact, index: int = 0, allow_extrapolation: bool = False) -> TensorRtSession:
    """Open an artifact's engines on a GPU."""
    backend = _backend(artifact)
    manifest = open_engines(artifact, backend.name, backend.version)
    gpu = open_device(index)
    check_capability(manifest, gpu, artifact)
    return TensorRtSession(artifact, load_engines(artifact, manifest, backend, gpu), gpu, allow_extrapolation)


def _backend(artifact: Artifact) -> Backend:
    """Import the backend that the artifact's engines need; an installed one if there are none, or some for both."""
    built = [name for name in BACKENDS if (engine_directory(artifact, name) / MANIFEST).is_file()]
    return load_backend(built[0] if len(built) == 1 else None)


def check_capability(manifest: EngineManifest, gpu: Device, artifact: Artifact) -> None:
    """Check that the engines were built for this GPU, and that it supports the artifact's float formats."""
    check_float_formats(artifact, (gpu.capability,))
    if manifest.capabilities and gpu.capability not in manifest.capabilities:
        built_for = ", ".join(map(dotted, manifest.capabilities))
        raise LucidError(
            f"The engines of {artifact.directory} were built for compute capability {built_for}; {gpu.name} has "
            f"{dotted(gpu.capability)}. Build them again with --overwrite, here or with --compute-capability."
        )


@without_collection()
def load_engines(artifact: Artifact, manifest: EngineManifest, backend: Backend, gpu: Device | None = None) -> Engines:
    """Deserialize the engines on an opened GPU; ``gpu`` None: do not cache compiled kernels."""
    trt, failure = backend.trt, CallbackFailure()
    folder = engine_directory(artifact, backend.name)
    logger = make_logger(trt, failure)
    if manifest.plugin is not None:
        register_plugins(folder / manifest.plugin.file, trt)
    runtime = trt.Runtime(logger)
    engines, again = {}, f"Build them again: {manifest.build_command(artifact, {})}"
    for stage, entry in manifest.engines.items():
        content = check_file(folder, entry, again)
        with failure.raising():
            engine = runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise CheckFailed(
                f"{backend.title} {backend.version} does not read {folder / entry.file}: {explain(logger.errors)} "
                f"{again}"
            )
        if manifest.weightless:
            _fill_weights(trt, engine, logger, artifact, stage, manifest)
        engines[stage] = engine
    caches = {} if gpu is None else _jit_caches(manifest, backend, gpu)
    in_place = artifact.manifest.cache == "static"

    def make_context(stage: str, runtime: Any = runtime) -> Any:  # keeps alive the runtime, which engines need
        context = _context(trt, engines[stage], caches.get(stage), settled=in_place and stage == "decode")
        if context is None:
            raise LucidError(f"{backend.title} cannot create a context of the {stage} engine: {explain(logger.errors)}")
        return context

    def save() -> None:
        for cache in caches.values():
            cache.save()

    tensors = {
        stage: frozenset(engine.get_tensor_name(index) for index in range(engine.num_io_tensors))
        for stage, engine in engines.items()
    }
    return Engines(manifest, make_context, tensors, logger.errors, save)


def _context(trt: Any, engine: Any, cache: JitCache | None, settled: bool) -> Any:
    """Create a context; ``settled``: it will be recorded as a CUDA graph, so its kernels must not change later."""
    strategies = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)  # TensorRT-RTX only
    if cache is None and (strategies is None or not settled):
        return engine.create_execution_context()
    config = engine.create_runtime_config()
    if strategies is not None and settled:
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
    if cache is not None:
        cache.attach(config)
    return engine.create_execution_context(config)


def _fill_weights(trt: Any, engine: Any, logger: Any, artifact: Artifact, stage: str, manifest: EngineManifest) -> None:
    """Refit an engine that was built without weights with the artifact's weights."""
    graph = prepare_graph(artifact, stage, manifest.limits.max_context)
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    path = str(artifact.directory / f"{stage}.onnx")
    if not parser.refit_from_bytes(graph.model, path) or not refitter.refit_cuda_engine():
        raise CheckFailed(
            f"The {stage} engine does not take the weights of {artifact.directory}: {explain(logger.errors)}"
        )
