"""Parse a prepared graph into a network, and build the network into an engine."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.tensorrt.backend import Backend
from lucid_deploy.runtimes.tensorrt.callbacks import (
    CallbackFailure,
    explain,
    make_logger,
    make_monitor,
    without_collection,
)
from lucid_deploy.runtimes.tensorrt.limits import Range
from lucid_deploy.runtimes.tensorrt.prepare import PreparedGraph

_LOOPS = ("TRIP_LIMIT", "RECURRENCE", "ITERATOR", "LOOP_OUTPUT")


@dataclass(frozen=True)
class Settings:
    """How an engine is built.

    Attributes:
        capabilities: Compute capabilities to build for, 86 for 8.6; () lets the backend choose.
        workspace: Most scratch bytes of a layer; None lets the backend choose.
        weightless: Leave the weights out; loading takes them from the artifact.
        exact_float32: Forbid TF32, which rounds float32 factors to 11 bits.
        capturable: Refuse whatever would keep the engine from being recorded as a CUDA graph.
        timing_cache: Measured times from earlier builds; None where the backend keeps none.
    """

    capabilities: tuple[int, ...] = ()
    workspace: int | None = None
    weightless: bool = False
    exact_float32: bool = True
    capturable: bool = False
    timing_cache: bytes | None = None


@dataclass(frozen=True)
class BuiltEngine:
    """A serialised engine and what is known about it.

    Attributes:
        content: The engine, as a buffer.
        layers: Layers of the network.
        plugin_layers: Names of the layers that the plugin library computes, by operator.
        seconds: Time to parse and build.
        timing_cache: The timing cache after the build, where there is one.
        timings: Measured times that were reused and that are new, where that is known.
    """

    content: Any = field(repr=False)
    layers: int
    plugin_layers: dict[str, list[str]]
    seconds: float
    timing_cache: bytes | None = None
    timings: dict[str, int] | None = None


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
    with failure.of_signals():
        builder = trt.Builder(logger)
    failure.raise_again()
    if builder is None:
        raise LucidError(f"{backend.title} cannot start: {explain(logger.errors)}")
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, logger)
    # The path is where external data is looked for; the file itself is not read.
    with failure.of_signals():
        parsed = parser.parse(graph.model, str(directory / f"{graph.stage}.onnx"))
    failure.raise_again()
    if not parsed:
        raise LucidError(f"{backend.title} cannot read the {graph.stage} graph: {explain(logger.errors)}")
    plugin_layers = check_plugin_layers(trt, network, graph)
    check_in_place(trt, network, graph)
    allow_any_attention(trt, network)
    config = _configure(trt, builder, profile, settings)
    config.progress_monitor = make_monitor(trt, progress, failure)
    cache = _use_timing_cache(config, settings)
    before = _entries(cache)
    with failure.of_signals():
        content = builder.build_serialized_network(network, config)
    failure.raise_again()
    if content is None:
        raise LucidError(
            f"{backend.title} cannot build the {graph.stage} engine: {explain(logger.errors)}"
            + (" The limit of --workspace may be too low." if settings.workspace else "")
        )
    timings = None
    if cache is not None:
        timings = {"reused": before, "new": _entries(cache) - before}
    kept_times = bytes(cache.serialize()) if cache is not None else None
    seconds = time.perf_counter() - started
    return BuiltEngine(content, network.num_layers, plugin_layers, seconds, kept_times, timings)


def _strongly_typed(trt: Any) -> int:
    """Types come from the graph; TensorRT before 11 has to be told, TensorRT-RTX knows nothing else."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def check_plugin_layers(trt: Any, network: Any, graph: PreparedGraph) -> dict[str, list[str]]:
    """Check that the plugin library took all its nodes, and that no loop is left; return its layers by operator."""
    taken: dict[str, list[str]] = {}
    loops = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.PLUGIN_V3:
            layer.__class__ = trt.IPluginV3Layer  # the bindings return the base class
            core = layer.plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
            taken.setdefault(core.plugin_name, []).append(layer.name)
        elif layer.type in [getattr(trt.LayerType, name) for name in _LOOPS]:
            loops.append(layer.name)
    counts = Counter({name: len(layers) for name, layers in taken.items()})
    if counts != Counter(graph.plugin_nodes) or loops:
        raise LucidError(
            f"Of the {graph.stage} graph's custom operators {dict(graph.plugin_nodes)} the plugin library took "
            f"{dict(counts)}" + (f", and loops are left: {', '.join(loops[:3])}" if loops else "") + "."
        )
    return taken


def check_in_place(trt: Any, network: Any, graph: PreparedGraph) -> None:
    """Check that every update of a static cache is TensorRT's in-place one."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    found = sum(layer.type == getattr(trt.LayerType, "KV_CACHE_UPDATE", None) for layer in layers)
    if found != graph.cache_updates:
        raise LucidError(
            f"Of the {graph.stage} graph's {graph.cache_updates} cache updates TensorRT does {found} in place."
        )


def allow_any_attention(trt: Any, network: Any) -> None:
    """Let attention layers without a fused kernel for their type and width be computed by several."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == getattr(trt.LayerType, "ATTENTION_INPUT", None):
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def _configure(trt: Any, builder: Any, profile: dict[str, Range], settings: Settings) -> Any:
    config = builder.create_builder_config()
    shapes = builder.create_optimization_profile()
    for name, (least, best, most) in profile.items():
        shapes.set_shape(name, least, best, most)
    if config.add_optimization_profile(shapes) < 0:
        raise LucidError(f"TensorRT refuses the optimization profile {profile}.")
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if settings.exact_float32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if settings.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace)
    if settings.capturable and hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if settings.weightless:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
    if settings.capabilities:
        config.num_compute_capabilities = len(settings.capabilities)
        for index, capability in enumerate(settings.capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability}"), index)
    elif settings.weightless and hasattr(trt, "ComputeCapability"):
        config.num_compute_capabilities = 1  # an engine that takes its weights later is built for one GPU
        config.set_compute_capability(trt.ComputeCapability.CURRENT, 0)
    return config


def _use_timing_cache(config: Any, settings: Settings) -> Any:
    if settings.timing_cache is None:
        return None
    cache = config.create_timing_cache(settings.timing_cache)
    config.set_timing_cache(cache, False)
    return cache


def _entries(cache: Any) -> int:
    return len(cache.queryKeys()) if cache is not None and hasattr(cache, "queryKeys") else 0
