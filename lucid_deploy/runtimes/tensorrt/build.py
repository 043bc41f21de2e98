"""Build the TensorRT engines of an artifact: check everything, then parse, build, and write the folder atomically.

Polygraphy's builders are not used: they cannot read the external weights of a graph in memory.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lucid_deploy.artifact import STAGES, VERIFY, Artifact
from lucid_deploy.artifact.read import unchanged
from lucid_deploy.errors import LucidError
from lucid_deploy.files import atomic_folders
from lucid_deploy.plugins.hosts.tensorrt.build import LIBRARY_NAME, check_kernels, plugin_abi
from lucid_deploy.plugins.hosts.tensorrt.registry import register_plugins
from lucid_deploy.plugins.table import DECODE_ATTENTION
from lucid_deploy.runtimes.tensorrt.backend import Backend, load_backend
from lucid_deploy.runtimes.tensorrt.callbacks import (
    CallbackFailure,
    explain,
    make_logger,
    make_monitor,
    without_collection,
)
from lucid_deploy.runtimes.tensorrt.limits import Range, choose_limits, profile_shapes
from lucid_deploy.runtimes.tensorrt.manifest import (
    MANIFEST,
    EngineFile,
    EngineManifest,
    PluginFile,
    engine_directory,
    file_facts,
    source_hashes,
)
from lucid_deploy.runtimes.tensorrt.plugin_library import find_or_build
from lucid_deploy.runtimes.tensorrt.prepare import (
    FP8,
    PLUGIN_OPERATORS,
    PreparedGraph,
    check_artifact,
    check_float_formats,
    kernel_head_dims,
    prepare_graph,
)
from lucid_deploy.version import __version__

Progress = Callable[[str, int, int], None]
_LOOPS = ("TRIP_LIMIT", "RECURRENCE", "ITERATOR", "LOOP_OUTPUT")


@dataclass(frozen=True)
class BuildOptions:
    """Options of :func:`build_engines`."""

    backend: str | None = None  # tensorrt-rtx or tensorrt; None: the installed one, tensorrt-rtx if both are
    max_batch: int | None = None  # most rows; None: 4
    max_context: int | None = None  # most tokens of a row; None: the model's
    prefill_chunk: int | None = None  # most new tokens of one prefill; None: 2048, or the context if that is shorter
    capabilities: tuple[str, ...] = ()  # compute capabilities, such as 8.6; (): all, or the GPU's if building uses one
    weightless: bool = False  # leave the weights out of the engines; building then needs a GPU
    plugin: Path | None = None  # the plugin library; None: see find_or_build
    overwrite: bool = False  # whether existing engines may be replaced
    speculate: bool = False  # whether to build a third engine, which verifies drafts


@dataclass(frozen=True)
class BuildReport:
    """The result of :func:`build_engines`."""

    directory: Path  # of the engines
    manifest: EngineManifest  # written beside them
    built: dict[str, dict[str, Any]]  # by stage: number of layers of the network, and seconds to build it

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {"directory": str(self.directory), **asdict(self.manifest), "built": self.built}


def build_engines(
    artifact: Artifact,
    options: BuildOptions,
    progress: Progress | None = None,
    announce: Callable[[str], None] = lambda line: None,
) -> BuildReport:
    """Build the prefill and the decode engine of an artifact, and with ``speculate`` one that verifies drafts.

    Everything that can be checked is checked before TensorRT reads a graph. The folder appears whole or not at all.
    ``progress`` is called with (phase, done, total), ``announce`` with a sentence before a plugin library is compiled.
    """
    backend = load_backend(options.backend)
    limits = choose_limits(artifact, options.max_batch, options.max_context, options.prefill_chunk)
    capabilities = _check(artifact, backend, options)
    stages = (*STAGES, VERIFY) if options.speculate else STAGES
    graphs = [prepare_graph(artifact, stage, limits.max_context) for stage in stages]
    is_for_here = backend.needs_gpu_to_build or options.weightless
    if is_for_here:
        capabilities = (_capability_here(backend, options),)
        check_float_formats(artifact, capabilities)
    shown = progress or (lambda *_: None)
    library = _library(artifact, backend, options, capabilities, shown, announce)
    for_others = () if is_for_here else capabilities
    folder = engine_directory(artifact, backend.name)
    try:
        with atomic_folders(folder, overwrite=options.overwrite) as (building,), unchanged(artifact):
            engines, built = {}, {}
            for graph in graphs:
                text, profile = f"Building the {graph.stage} engine", profile_shapes(artifact, graph.stage, limits)
                shown(text, 0, 1)
                in_place = graph.stage == "decode" and artifact.manifest.cache == "static"
                result = build_engine(
                    backend,
                    graph,
                    artifact.directory,
                    profile,
                    Settings(for_others, options.weightless, capturable=in_place),
                    lambda done, total, text=text: shown(text, done, total),  # type: ignore[misc]
                )
                path = building / f"{graph.stage}.engine"
                path.write_bytes(result.content)
                engines[graph.stage] = EngineFile(
                    **file_facts(path), profile=profile, plugin_layers=result.plugin_layers
                )
                built[graph.stage] = {"layers": result.layers, "seconds": result.seconds}
            manifest = EngineManifest(
                backend=backend.name,
                backend_version=backend.version,
                toolkit_version=__version__,
                capabilities=capabilities,
                limits=limits,
                weightless=options.weightless,
                sources=source_hashes(artifact),
                plugin=_keep_plugin(library, building),
                engines=engines,
            )
            (building / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    except OSError as error:
        raise LucidError(f"Writing {folder} failed: {error.strerror or error}. Nothing was left behind.") from error
    return BuildReport(folder, manifest, built)


def _check(artifact: Artifact, backend: Backend, options: BuildOptions) -> tuple[int, ...]:
    """Check options, backend, artifact and output folder; return the compute capabilities to build for."""
    backend.check_version()
    check_artifact(artifact)
    capabilities = backend.capabilities(options.capabilities)
    check_float_formats(artifact, capabilities)
    if options.weightless and len(capabilities) > 1:
        raise LucidError("An engine without weights is built for one compute capability; name only one.")
    folder = engine_directory(artifact, backend.name)
    if os.path.lexists(folder.parent) and not folder.parent.is_dir():
        raise LucidError(f"{folder.parent}, where engines are written, is not a folder. Move it away.")
    if folder.exists() and not options.overwrite:
        raise LucidError(f"{folder} exists already. Pass --overwrite to replace it.")
    return capabilities


def _capability_here(backend: Backend, options: BuildOptions) -> int:
    """Return the compute capability of this machine's GPU."""
    from lucid_deploy.runtimes.tensorrt.device import open_device

    try:
        return open_device().capability
    except LucidError as error:
        why = f"{backend.title} times kernels" if backend.needs_gpu_to_build else "--weightless compiles"
        instead = "leave out --weightless" if options.weightless else "build with --backend tensorrt-rtx"
        raise LucidError(f"{why} on the GPU of the building machine. {error} Without a GPU, {instead}.") from error


def _library(
    artifact: Artifact,
    backend: Backend,
    options: BuildOptions,
    capabilities: tuple[int, ...],
    progress: Progress,
    announce: Callable[[str], None],
) -> Path | None:
    """Find or build the plugin library, check that it has the kernels, and register it; None if it is not needed."""
    manifest = artifact.manifest
    if not manifest.uses(PLUGIN_OPERATORS):
        return None
    head_dims = kernel_head_dims(artifact)
    library = options.plugin or find_or_build(
        manifest.dtype,
        head_dims,
        capabilities,
        announce,
        lambda done, total, name: progress(f"Compiling {name}", done, total),
    )
    library = library.resolve()
    register_plugins(library, backend.trt)
    reads_fp8 = manifest.cache_dtype == FP8 and manifest.uses((DECODE_ATTENTION.name,))
    check_kernels(library, manifest.dtype, head_dims, reads_fp8, capabilities)
    return library


def _keep_plugin(library: Path | None, building: Path) -> PluginFile | None:
    """Copy the plugin library beside the engines, so that they run on a machine that has no such library."""
    if library is None:
        return None
    shutil.copyfile(library, building / LIBRARY_NAME)
    return PluginFile(**file_facts(building / LIBRARY_NAME), abi=plugin_abi(library))


@dataclass(frozen=True)
class Settings:
    """How an engine is built."""

    capabilities: tuple[int, ...] = ()  # compute capabilities to build for, 86 for 8.6; () lets the backend choose
    weightless: bool = False  # leave the weights out; loading takes them from the artifact
    capturable: bool = False  # refuse whatever would keep the engine from being recorded as a CUDA graph


@dataclass(frozen=True)
class BuiltEngine:
    """A serialized engine, its layers, and how long it took to build."""

    content: Any = field(repr=False)  # the serialized engine, a buffer
    layers: int  # number of layers of the network
    plugin_layers: dict[str, list[str]]  # names of the layers that the plugin library computes, by operator
    seconds: float  # to parse and build


@without_collection()
def build_engine(
    backend: Backend,
    graph: PreparedGraph,
    directory: Path,
    profile: dict[str, Range],
    settings: Settings,
    progress: Callable[[int, int], None],
) -> BuiltEngine:
    """Build one engine. The plugin library must be registered already if the graph needs it."""
    started, trt, failure = time.perf_counter(), backend.trt, CallbackFailure()
    logger = make_logger(trt, failure)
    with failure.raising():
        builder = trt.Builder(logger)
    if builder is None:
        raise LucidError(f"{backend.title} cannot start: {explain(logger.errors)}")
    # Strong typing: TensorRT before 11 needs a flag for it; TensorRT 11 and TensorRT-RTX always take the graph's types.
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    with failure.raising():  # external data is read from this path's folder; the file itself is not read
        parsed = parser.parse(graph.model, str(directory / f"{graph.stage}.onnx"))
    if not parsed:
        raise LucidError(f"{backend.title} cannot read the {graph.stage} graph: {explain(logger.errors)}")
    plugin_layers = check_network(trt, network, graph)
    config = _configure(trt, builder, profile, settings)
    config.progress_monitor = make_monitor(trt, progress, failure)
    with failure.raising():
        content = builder.build_serialized_network(network, config)
    if content is None:
        raise LucidError(f"{backend.title} cannot build the {graph.stage} engine: {explain(logger.errors)}")
    return BuiltEngine(content, network.num_layers, plugin_layers, time.perf_counter() - started)


def check_network(trt: Any, network: Any, graph: PreparedGraph) -> dict[str, list[str]]:
    """Check that plugins compute their nodes, no loop is left, and updates of a static cache are in place.

    Mark attention layers as decomposable: several kernels compute them if no fused one has their type and width.

    Returns:
        The names of the plugin's layers, by operator.
    """
    kinds, plugins, loops, updates = trt.LayerType, dict[str, list[str]](), [], 0
    for layer in map(network.get_layer, range(network.num_layers)):
        if layer.type == kinds.PLUGIN_V3:
            layer.__class__ = trt.IPluginV3Layer  # the bindings return the base class
            core = layer.plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
            plugins.setdefault(core.plugin_name, []).append(layer.name)
        elif layer.type in [getattr(kinds, name) for name in _LOOPS]:
            loops.append(layer.name)
        elif layer.type == getattr(kinds, "KV_CACHE_UPDATE", None):
            updates += 1
        elif layer.type == getattr(kinds, "ATTENTION_INPUT", None):
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True
    counts = Counter({name: len(layers) for name, layers in plugins.items()})
    if counts != Counter(graph.plugin_nodes) or loops:
        raise LucidError(
            f"Of the {graph.stage} graph's custom operators {dict(graph.plugin_nodes)} the plugin library took "
            f"{dict(counts)}" + (f", and loops are left: {', '.join(loops[:3])}" if loops else "") + "."
        )
    if updates != graph.cache_updates:
        raise LucidError(
            f"TensorRT does only {updates} of the {graph.stage} graph's {graph.cache_updates} cache updates in place."
        )
    return plugins


def _configure(trt: Any, builder: Any, profile: dict[str, Range], settings: Settings) -> Any:
    config = builder.create_builder_config()
    shapes = builder.create_optimization_profile()
    for name, (least, best, most) in profile.items():
        shapes.set_shape(name, least, best, most)
    if config.add_optimization_profile(shapes) < 0:
        raise LucidError(f"TensorRT refuses the optimization profile {profile}.")
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)  # it rounds float32 operands to 11 significant bits
    if settings.capturable and hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if settings.weightless:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
    if settings.capabilities:
        config.num_compute_capabilities = len(settings.capabilities)
        for index, capability in enumerate(settings.capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability}"), index)
    elif settings.weightless and hasattr(trt, "ComputeCapability"):
        config.num_compute_capabilities = 1  # an engine without weights is built for one GPU
        config.set_compute_capability(trt.ComputeCapability.CURRENT, 0)
    return config
