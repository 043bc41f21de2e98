"""Open an artifact's TensorRT engines: check their manifest, find the GPU, then let TensorRT read them."""

from __future__ import annotations

import hashlib
from typing import Any

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.runtimes.tensorrt.backend import BACKENDS, Backend, dotted, load_backend
from lucid_deploy.runtimes.tensorrt.callbacks import CallbackFailure, explain, make_logger, without_collection
from lucid_deploy.runtimes.tensorrt.device import Device, open_device
from lucid_deploy.runtimes.tensorrt.float_formats import check_float_formats
from lucid_deploy.runtimes.tensorrt.jit_cache import JitCache, jit_cache_path
from lucid_deploy.runtimes.tensorrt.manifest import MANIFEST, EngineManifest, engine_directory, open_engines
from lucid_deploy.runtimes.tensorrt.plugin_library import register
from lucid_deploy.runtimes.tensorrt.prepare import prepare_graph
from lucid_deploy.runtimes.tensorrt.session import Engines, TensorRtSession


def open_tensorrt(artifact: Artifact, index: int = 0, allow_extrapolation: bool = False) -> TensorRtSession:
    """Open an artifact's engines on a GPU.

    Args:
        artifact: The opened artifact.
        index: Number of the GPU.
        allow_extrapolation: As for :class:`~lucid_deploy.runtimes.session.Session`.

    Raises:
        LucidError: A missing package, no engines or such as cannot be used here, no GPU or driver.
        CheckFailed: A file was cut or changed.
    """
    backend = _backend(artifact)
    manifest = open_engines(artifact, backend.name, backend.version)
    gpu = open_device(index)
    check_capability(manifest, gpu, artifact)
    return TensorRtSession(artifact, load_engines(artifact, manifest, backend, gpu), gpu, allow_extrapolation)


def _backend(artifact: Artifact) -> Backend:
    """Import the backend that the artifact has engines for; the installed one if it has none, or for both."""
    built = [name for name in BACKENDS if (engine_directory(artifact, name) / MANIFEST).is_file()]
    return load_backend(built[0] if len(built) == 1 else None)


def check_capability(manifest: EngineManifest, gpu: Device, artifact: Artifact) -> None:
    """Check that the engines were built for a GPU.

    Raises:
        LucidError: They were not, or the GPU lacks the type of the weights.
    """
    check_float_formats(artifact, (gpu.capability,))
    if manifest.capabilities and gpu.capability not in manifest.capabilities:
        built_for = ", ".join(map(dotted, manifest.capabilities))
        raise LucidError(
            f"The engines of {artifact.directory} were built for compute capability {built_for}; {gpu.name} has "
            f"{dotted(gpu.capability)}. Build them again with --overwrite, here or with --compute-capability."
        )


@without_collection()
def load_engines(artifact: Artifact, manifest: EngineManifest, backend: Backend, gpu: Device | None = None) -> Engines:
    """Let TensorRT read the engines. The GPU must have been opened.

    Args:
        artifact: The opened artifact.
        manifest: From :func:`~lucid_deploy.runtimes.tensorrt.manifest.open_engines`.
        backend: TensorRT.
        gpu: For which GPU compiled kernels are kept, with TensorRT-RTX; None: they are not kept.

    Raises:
        LucidError: The plugin library cannot be used.
        CheckFailed: An engine was changed, or TensorRT does not read it.
    """
    trt, failure = backend.trt, CallbackFailure()
    folder = engine_directory(artifact, backend.name)
    logger = make_logger(trt, failure)
    if manifest.plugin is not None:
        register(folder / manifest.plugin.file, trt)
    runtime = trt.Runtime(logger)
    engines = {}
    for stage, entry in manifest.engines.items():
        content = (folder / entry.file).read_bytes()
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise CheckFailed(
                f"{folder / entry.file} was changed after it was built. "
                f"Build it again: lucid-deploy build {artifact.directory} --overwrite"
            )
        with failure.of_signals():
            engine = runtime.deserialize_cuda_engine(content)
        failure.raise_again()
        if engine is None:
            raise CheckFailed(
                f"{backend.title} {backend.version} does not read {folder / entry.file}: {explain(logger.errors)} "
                f"Build it again: lucid-deploy build {artifact.directory} --overwrite"
            )
        if manifest.weightless:
            _fill_weights(trt, engine, logger, artifact, stage, manifest)
        engines[stage] = engine
    caches = {}
    if gpu is not None and hasattr(trt, "IRuntimeCache"):
        caches = {stage: JitCache(jit_cache_path(entry, backend, gpu)) for stage, entry in manifest.engines.items()}
    in_place = artifact.manifest.cache == "static"

    def make_context(stage: str, runtime: Any = runtime) -> Any:  # holds the runtime, which engines need to live
        context = _context(trt, engines[stage], caches.get(stage), settled=in_place and stage == "decode")
        if context is None:
            raise LucidError(f"{backend.title} makes no context of the {stage} engine: {explain(logger.errors)}")
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
    """Make a context. One that is going to be recorded must not exchange its kernels later."""
    strategies = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)  # of TensorRT-RTX, like the cache
    if cache is None and (strategies is None or not settled):
        return engine.create_execution_context()
    config = engine.create_runtime_config()
    if strategies is not None and settled:
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
    if cache is not None:
        cache.attach(config)
    return engine.create_execution_context(config)


def _fill_weights(trt: Any, engine: Any, logger: Any, artifact: Artifact, stage: str, manifest: EngineManifest) -> None:
    """Give an engine that was built without weights those of the artifact."""
    graph = prepare_graph(artifact, stage, manifest.limits.max_context)
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    path = str(artifact.directory / f"{stage}.onnx")
    if not parser.refit_from_bytes(graph.model, path) or not refitter.refit_cuda_engine():
        raise CheckFailed(
            f"The {stage} engine does not take the weights of {artifact.directory}: {explain(logger.errors)}"
        )
