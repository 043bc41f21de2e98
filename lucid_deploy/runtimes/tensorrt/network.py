"""Parse a prepared graph into a network, and build the network into an engine.

Polygraphy's builders are no help here: they neither read external weights of a graph in memory nor report progress.
"""

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
    """How an engine is built."""

    capabilities: tuple[int, ...] = ()  # compute capabilities to build for, 86 for 8.6; () lets the backend choose
    workspace: int | None = None  # most scratch bytes of a layer; None lets the backend choose
    weightless: bool = False  # leave the weights out; loading takes them from the artifact
    capturable: bool = False  # refuse whatever would keep the engine from being recorded as a CUDA graph


@dataclass(frozen=True)
class BuiltEngine:
    """A serialised engine and what is known about it."""

    content: Any = field(repr=False)  # a buffer
    layers: int  # of the network
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
    # Types come from the graph; TensorRT before 11 needs a flag for that, TensorRT-RTX does nothing else.
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    with failure.raising():  # the path is where external data is looked for; the file itself is not read
        parsed = parser.parse(graph.model, str(directory / f"{graph.stage}.onnx"))
    if not parsed:
        raise LucidError(f"{backend.title} cannot read the {graph.stage} graph: {explain(logger.errors)}")
    plugin_layers = check_network(trt, network, graph)
    config = _configure(trt, builder, profile, settings)
    config.progress_monitor = make_monitor(trt, progress, failure)
    with failure.raising():
        content = builder.build_serialized_network(network, config)
    if content is None:
        raise LucidError(
            f"{backend.title} cannot build the {graph.stage} engine: {explain(logger.errors)}"
            + (" The limit of --workspace may be too low." if settings.workspace else "")
        )
    return BuiltEngine(content, network.num_layers, plugin_layers, time.perf_counter() - started)


def check_network(trt: Any, network: Any, graph: PreparedGraph) -> dict[str, list[str]]:
    """Check that the plugin library took its nodes, no loop is left, and updates of a static cache are in place.

    Attention layers are marked so that those without a fused kernel for their type and width may take several.

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
            f"Of the {graph.stage} graph's {graph.cache_updates} cache updates TensorRT does {updates} in place."
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
    config.clear_flag(trt.BuilderFlag.TF32)  # it rounds float32 factors to 11 bits
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
