"""From an artifact to its TensorRT engines: check everything, then parse, build, and put the result in place whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lucid_deploy.artifact import STAGES, VERIFY, Artifact
from lucid_deploy.artifact.read import unchanged
from lucid_deploy.errors import LucidError
from lucid_deploy.files import atomic_folders
from lucid_deploy.plugins.hosts.tensorrt.build import check_kernels
from lucid_deploy.plugins.table import DECODE_ATTENTION
from lucid_deploy.runtimes.tensorrt.backend import Backend, dotted, load_backend
from lucid_deploy.runtimes.tensorrt.limits import Limits, choose_limits, profile_shapes
from lucid_deploy.runtimes.tensorrt.manifest import (
    MANIFEST,
    EngineFile,
    EngineManifest,
    PluginFile,
    engine_directory,
    file_facts,
    source_hashes,
)
from lucid_deploy.runtimes.tensorrt.network import BuiltEngine, Settings, build_engine
from lucid_deploy.runtimes.tensorrt.plugin_library import find_or_build, register
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

if TYPE_CHECKING:
    from lucid_deploy.runtimes.tensorrt.device import Device

Progress = Callable[[str, int, int], None]
TIMING_CACHE = "timing.cache"
MOST_WORKSPACE = 1 << 64  # TensorRT takes a number of 64 bits


@dataclass(frozen=True)
class BuildOptions:
    """What to build.

    Attributes:
        backend: ``tensorrt-rtx`` or ``tensorrt``; None: the one that is installed.
        max_batch: Most rows; None: 4.
        max_context: Most tokens of a row; None: the model's.
        prefill_chunk: Most new tokens of one prefill; None: 2048, or less if the context is shorter.
        capabilities: Compute capabilities to build for, such as ``8.6``; (): all that the backend supports.
        workspace: Most scratch bytes of a layer; None: the backend chooses.
        weightless: Leave the weights out of the engines. Needs a GPU when building.
        plugin: The plugin library; None: the wheel's, else where ``lucid-deploy plugin build`` puts it.
        overwrite: Whether engines that are there may be replaced.
        plugin_build: Whether a plugin library is built if there is none.
        speculate: Whether a third engine is built, which verifies drafts.
    """

    backend: str | None = None
    max_batch: int | None = None
    max_context: int | None = None
    prefill_chunk: int | None = None
    capabilities: tuple[str, ...] = ()
    workspace: int | None = None
    weightless: bool = False
    plugin: Path | None = None
    overwrite: bool = False
    plugin_build: bool = True
    speculate: bool = False


@dataclass(frozen=True)
class BuildReport:
    """What was built.

    Attributes:
        directory: Where the engines lie.
        manifest: What was written beside them.
        built: By stage: layers of the network, seconds, and timings reused and new where the backend keeps a cache.
    """

    directory: Path
    manifest: EngineManifest
    built: dict[str, dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"directory": str(self.directory), **asdict(self.manifest), "built": self.built}


def build_engines(
    artifact: Artifact,
    options: BuildOptions,
    progress: Progress | None = None,
    announce: Callable[[str], None] = lambda line: None,
) -> BuildReport:
    """Build the prefill and the decode engine of an artifact, and one that verifies drafts if it is asked for.

    Everything that can be checked is checked before TensorRT reads a graph. The folder appears whole or not at all.
    """
    backend = load_backend(options.backend)
    limits = choose_limits(artifact, options.max_batch, options.max_context, options.prefill_chunk)
    if options.workspace is not None and not 1 <= options.workspace < MOST_WORKSPACE:
        raise LucidError(f"--workspace must be at least 1 byte and less than 2⁶⁴, not {options.workspace}.")
    backend.check_version(artifact.manifest.cache == "static")
    backend.check_dtype(artifact.manifest.dtype)
    check_artifact(artifact)
    needs_plugin = artifact.manifest.uses(PLUGIN_OPERATORS)
    capabilities = backend.capabilities(options.capabilities, artifact.manifest.dtype, needs_plugin)
    check_float_formats(artifact, capabilities)
    if options.weightless and len(capabilities) > 1:
        raise LucidError("An engine without weights is built for one compute capability; name one, or none.")
    folder = engine_directory(artifact, backend.name)
    if os.path.lexists(folder.parent) and not folder.parent.is_dir():
        raise LucidError(f"{folder.parent}, where engines go, is no folder. Move it away.")
    if folder.exists() and not options.overwrite:
        raise LucidError(f"{folder} exists already. Pass --overwrite to replace it.")
    stages = (*STAGES, VERIFY) if options.speculate else STAGES
    graphs = [prepare_graph(artifact, stage, limits.max_context) for stage in stages]
    if backend.needs_gpu_to_build or options.weightless:
        capabilities = (_device(backend, options).capability,)
        check_float_formats(artifact, capabilities)
    shown = progress or (lambda *_: None)
    library = None
    if needs_plugin:
        library = options.plugin or find_or_build(
            artifact.manifest.dtype,
            kernel_head_dims(artifact),
            capabilities,
            options.plugin_build,
            announce,
            lambda done, total, name: shown(f"Compiling {name}", done, total),
        )
        library = library.resolve()
        register(library, backend.trt)
        head_dims, reads_fp8 = kernel_head_dims(artifact), _reads_fp8(artifact)
        check_kernels(library, artifact.manifest.dtype, head_dims, reads_fp8, capabilities)
    settings = Settings(
        capabilities=() if backend.needs_gpu_to_build or options.weightless else capabilities,
        workspace=options.workspace,
        weightless=options.weightless,
    )
    return _build(artifact, backend, graphs, limits, settings, capabilities, library, options.overwrite, shown)


def _reads_fp8(artifact: Artifact) -> bool:
    """Whether the plugin reads a cache in fp8."""
    return artifact.manifest.cache_dtype == FP8 and artifact.manifest.uses((DECODE_ATTENTION.name,))


def _device(backend: Backend, options: BuildOptions) -> Device:
    from lucid_deploy.runtimes.tensorrt.device import open_device

    try:
        return open_device()
    except LucidError as error:
        why = f"{backend.title} measures" if backend.needs_gpu_to_build else "--weightless compiles"
        instead = "leave out --weightless" if options.weightless else "build with --backend tensorrt-rtx"
        raise LucidError(f"{why} on the GPU of the building machine. {error} Or {instead}.") from error


def _build(
    artifact: Artifact,
    backend: Backend,
    graphs: list[PreparedGraph],
    limits: Limits,
    settings: Settings,
    capabilities: tuple[int, ...],
    library: Path | None,
    overwrite: bool,
    progress: Progress,
) -> BuildReport:
    folder = engine_directory(artifact, backend.name)
    try:
        with atomic_folders(folder, overwrite=overwrite) as (building,), unchanged(artifact):
            if backend.has_timing_cache:
                old = folder / TIMING_CACHE
                settings = replace(settings, timing_cache=old.read_bytes() if old.is_file() else b"")
            engines, built = {}, {}
            for graph in graphs:
                result, settings = _build_stage(artifact, backend, graph, limits, settings, progress)
                path = building / f"{graph.stage}.engine"
                path.write_bytes(result.content)
                engines[graph.stage] = EngineFile(
                    **file_facts(path),
                    profile=profile_shapes(artifact, graph.stage, limits),
                    plugin_layers=result.plugin_layers,
                )
                built[graph.stage] = {"layers": result.layers, "seconds": result.seconds, "timings": result.timings}
            if settings.timing_cache is not None:
                (building / TIMING_CACHE).write_bytes(settings.timing_cache)
            manifest = EngineManifest(
                backend=backend.name,
                backend_version=backend.version,
                toolkit_version=__version__,
                capabilities=capabilities,
                limits=limits,
                weightless=settings.weightless,
                sources=source_hashes(artifact),
                plugin=_keep_plugin(library, building),
                engines=engines,
            )
            (building / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    except OSError as error:
        raise LucidError(f"Writing {folder} failed: {error.strerror or error}. Nothing was left behind.") from error
    return BuildReport(folder, manifest, built)


def _build_stage(
    artifact: Artifact, backend: Backend, graph: PreparedGraph, limits: Limits, settings: Settings, progress: Progress
) -> tuple[BuiltEngine, Settings]:
    """Build one stage; return it and the settings of the next, which knows the times measured so far."""
    text = f"Building the {graph.stage} engine"
    in_place = graph.stage == "decode" and artifact.manifest.cache == "static"
    progress(text, 0, 1)
    result = build_engine(
        backend,
        graph,
        artifact.directory,
        profile_shapes(artifact, graph.stage, limits),
        replace(settings, capturable=in_place),
        lambda done, total: progress(text, done, total),
    )
    if result.timing_cache is not None:
        settings = replace(settings, timing_cache=result.timing_cache)
    return result, settings


def _keep_plugin(library: Path | None, building: Path) -> PluginFile | None:
    """Copy the library beside the engines, so that the artifact runs on a machine that has none."""
    if library is None:
        return None
    from lucid_deploy.plugins.hosts.tensorrt.build import LIBRARY_NAME, plugin_abi

    shutil.copyfile(library, building / LIBRARY_NAME)
    return PluginFile(**file_facts(building / LIBRARY_NAME), abi=plugin_abi(library))


def describe_capabilities(capabilities: tuple[int, ...]) -> str:
    """Return for which GPUs engines were built, for people."""
    return ", ".join(dotted(number) for number in capabilities) or "all that the backend supports"
