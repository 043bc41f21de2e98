"""Trace the PyTorch model into all graphs of an export, without weights, so that memory stays small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from lucid_deploy.artifact import CACHES, OPSET_TENSOR_SCATTER, STAGES, VERIFY, TensorInfo
from lucid_deploy.errors import LucidError
from lucid_deploy.export.capture import capture
from lucid_deploy.export.options import NO_STATIC_FP8
from lucid_deploy.export.passes.naming import layers_of, name_axes, name_values
from lucid_deploy.export.passes.optimize import optimize
from lucid_deploy.export.passes.quantize_weights import quantize_weights
from lucid_deploy.export.passes.repeat_layers import Excerpt, NotRepeatable, excerpt, repeat_layers, repeat_names
from lucid_deploy.export.passes.static_cache import static_cache, write_rows
from lucid_deploy.export.passes.store_transposed import store_transposed
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.description import LayerDescription, describe, drafts_unsupported_reason

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    from lucid_deploy.export.artifact_files import ArtifactContents
    from lucid_deploy.export.options import ExportOptions
    from lucid_deploy.export.quantize.method import Progress
    from lucid_deploy.model.adapter_slots import Slots

Descriptions: TypeAlias = tuple[LayerDescription, ...]
_Infos: TypeAlias = tuple[TensorInfo, ...]
_PREFIX = "model."  # of weights' names in a trace: the attribute of Stage that holds the model


@dataclass(frozen=True)
class Traced:
    """The graph of a stage, with the inputs and outputs of :func:`graph_inputs` and :func:`graph_outputs`."""

    model: ir.Model  # its weights are initializers without data, named as in the PyTorch model
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    transposed: frozenset[str]  # names of the weights that the graph reads as [in, out], not [out, in]


def graph_inputs(
    layers: Descriptions, stage: str, cache: str = "growing", with_adapters: bool = False
) -> tuple[TensorInfo, ...]:
    """Return names, types and axes of a stage's inputs; a static cache changes those of all stages but prefill."""
    new: int | str = 1 if stage == "decode" else "sequence"
    static = _is_static(stage, cache)
    tokens = "max_context" if static else "past_sequence"
    return (
        TensorInfo("input_ids", "int64", ("batch", new)),
        TensorInfo("attention_mask", "int64", ("batch", "max_context" if static else f"past_sequence + {new}")),
        TensorInfo("position_ids", "int64", ("batch", new)),
        *_cache_infos(layers, "past_key_values", tokens, "past_"),
        *([TensorInfo("cache_length", "int64", ("batch",))] if static else []),
        *([TensorInfo("adapter_ids", "int64", ("batch",))] if with_adapters else []),
    )


def graph_outputs(
    layers: Descriptions, vocab_size: int, stage: str, logits: str, cache: str = "growing"
) -> tuple[TensorInfo, ...]:
    """Return names, types and axes of a stage's outputs."""
    new: int | str = 1 if stage == "decode" else "sequence"
    tokens = "max_context" if _is_static(stage, cache) else f"past_sequence + {new}"
    return (
        TensorInfo("logits", "float32", ("batch", new if logits == "all" or stage == VERIFY else 1, vocab_size)),
        *_cache_infos(layers, "present", tokens, ""),
    )


def _cache_infos(layers: Descriptions, prefix: str, tokens: str, ring: str) -> list[TensorInfo]:
    """Return the cache's tensors, layer by layer; ``ring`` is put in front of the names of rings' axes."""
    return [
        TensorInfo(f"{prefix}.{index}.{tensor.name}", tensor.dtype, tensor.axes(tokens, ring))
        for index, layer in enumerate(layers)
        for tensor in layer.cache
    ]


def _is_static(stage: str, cache: str) -> bool:
    return stage != "prefill" and cache == "static"


def trace_caches(contents: ArtifactContents, progress: Progress) -> tuple[dict[str, dict[str, Traced]], dict[str, str]]:
    """Make the stages' graphs with every kind of cache that is asked for; they read quantized weights if there are any.

    Prefill graphs are the same for both kinds of cache, so they are traced once, with the first kind. The other graphs
    of the second kind are derived from those of the first one where that can be done.

    Returns:
        The graphs by cache and stage; and for each kind of cache that is left out, the reason.
    """
    options, source, left_out = contents.options, contents.source, {}
    first, *others = CACHES if options.every_form else (options.cache or CACHES[0],)
    if others and options.stored_cache_dtype == "fp8":
        others, left_out = [], {"static": NO_STATIC_FP8}
    traced: dict[str, dict[str, Traced]] = {}
    for cache in (first, *others):
        traced[cache] = {}
        stages = _stages(contents, cache)
        for step, stage in enumerate(stages):
            if stage == STAGES[0] and cache != first:
                continue
            progress(f"Tracing {stage}" if cache == first else f"Tracing {stage}, {cache} cache", step, len(stages))
            growing = traced[first].get(stage) if cache != first else None
            try:
                traced[cache][stage] = _derive_or_trace(contents, stage, cache, growing)
            except LucidError as error:  # a class of transformers may run other code with a static cache
                if cache == first:
                    raise
                left_out[cache] = str(error)
                del traced[cache]
                break
        progress("Tracing", len(stages), len(stages))
    if contents.quantization is not None:
        for model in (graph.model for stages in traced.values() for graph in stages.values()):
            names = {source.stored_name(str(name)): str(name) for name in model.graph.initializers}
            quantize_weights(model, contents.quantization, names)
    return traced, left_out


def _stages(contents: ArtifactContents, cache: str) -> tuple[str, ...]:
    """Return the stages to export; ``verify`` only if caches take several rows a step and can drop rejected drafts."""
    writes_rows = cache != "static" or contents.options.opset_for(cache) >= OPSET_TENSOR_SCATTER  # else one row a step
    reason = drafts_unsupported_reason(contents.layers)
    return (*STAGES, VERIFY) if writes_rows and reason is None else STAGES


def _derive_or_trace(contents: ArtifactContents, stage: str, cache: str, growing: Traced | None) -> Traced:
    options = contents.options
    derived = growing and derive_static(growing, contents.layers, stage, options.opset_for(cache))
    slots = None if contents.adapters is None else contents.adapters.slots
    return derived or trace(contents.source.config, stage, options, cache, contents.float32_head, slots)


def derive_static(growing: Traced, layers: Descriptions, stage: str, opset: int) -> Traced | None:
    """Return the graph of a stage with a static cache, made from its graph with a growing one.

    Return None if the stage must be traced: standard attention decodes over the buffers themselves, which the growing
    graph would copy first, and another package's layer may treat the two kinds of cache differently.
    """
    tensors = [(index, tensor) for index, layer in enumerate(layers) for tensor in layer.cache]
    rows = [f"{index}.{tensor.name}" for index, tensor in tensors if tensor.sort == "rows"]
    with_adapters = any(info.name == "adapter_ids" for info in growing.inputs)
    infos = graph_inputs(layers, stage, "static", with_adapters)
    model = static_cache(growing.model, opset, {info.name: info.shape for info in infos}, rows, copies=stage == VERIFY)
    if model is None:
        return None
    vocab_size = growing.outputs[0].shape[-1]
    assert isinstance(vocab_size, int)
    outputs = graph_outputs(layers, vocab_size, stage, "last", "static")
    for value, info in zip(model.graph.outputs, outputs, strict=True):
        _set_shape(value, info)
    return Traced(model, infos, outputs, growing.transposed)


def trace(
    config: LucidConfig,
    stage: str,
    options: ExportOptions,
    cache: str = "growing",
    float32_head: bool = True,
    slots: Slots | None = None,
) -> Traced:
    """Trace one stage; raise ``LucidError`` if a class of transformers does what ONNX cannot express.

    Args:
        cache: Kind of cache of this graph; the options may ask for several.
        slots: Room that is reserved for adapters; None: none.
    """

    def contract(config: LucidConfig) -> tuple[_Infos, _Infos]:
        layers = describe(config, options.stored_cache_dtype)
        outputs = graph_outputs(layers, config.vocab_size, stage, options.logits, cache)
        return graph_inputs(layers, stage, cache, slots is not None), outputs

    def traced(config: LucidConfig) -> _Graph:
        module = _stage_module(config, stage, options, float32_head, slots)
        return _trace_whole(module, *contract(config), options.opset_for(cache))

    shorter = excerpt(config, describe(config, options.stored_cache_dtype))
    try:
        graph = None if shorter is None else _repeated(traced(shorter.config), shorter, *contract(config))
        if graph is None:
            graph = traced(config)
    except Exception as error:
        if not config.class_config or isinstance(error, LucidError):
            raise
        reason = str(error).strip().split("\n")[0][:200]
        raise LucidError(
            f"The graph of {config.family} cannot be traced: its class does what cannot be written in ONNX "
            f"({type(error).__name__}: {reason})."
        ) from error
    name_values(graph.model, graph.layers, graph.weights)
    return Traced(graph.model, *contract(config), graph.transposed)


@dataclass(frozen=True)
class _Graph:
    """A stage's graph, with the inputs and outputs that ``graph_inputs`` and ``graph_outputs`` describe."""

    model: ir.Model  # the graph; its weights are initializers without data
    layers: dict[ir.Node, int | None]  # the layer of each node; None outside all layers
    transposed: frozenset[str]  # names of the weights that the graph reads as [in, out], not [out, in]

    @property
    def weights(self) -> set[str]:
        return {name for name, value in self.model.graph.initializers.items() if value.const_value is None}


def _repeated(graph: _Graph, shorter: Excerpt, inputs: _Infos, outputs: _Infos) -> _Graph | None:
    """Build the whole model's graph from the excerpt's; None if its layers cannot be repeated."""
    names = [info.name for info in inputs], [info.name for info in outputs]
    try:
        model, layers = repeat_layers(graph.model, graph.layers, shorter.origins, shorter.sources, *names)
    except NotRepeatable:
        return None
    return _Graph(model, layers, frozenset(repeat_names(graph.transposed, shorter.sources)))


def _trace_whole(module: torch.nn.Module, inputs: _Infos, outputs: _Infos, opset: int) -> _Graph:
    arguments, axes = _example(inputs)
    model = capture(module, arguments, axes, [info.name for info in inputs], [info.name for info in outputs])
    write_rows(model, opset)
    weights = _detach_weights(model)
    optimize(model)
    # Inputs that the model does not read stay, such as position_ids without rotary embedding.
    transposed = store_transposed(model, set(weights))
    shapes = {name: value.shape.numpy() for name, value in weights.items() if value.shape is not None}
    name_axes(model, {**{info.name: info.shape for info in inputs}, **shapes})
    for value, info in zip(model.graph.outputs, outputs, strict=True):
        _set_shape(value, info)
    for value in weights.values():
        model.graph.inputs.remove(value)
        model.graph.initializers[str(value.name)] = value
    return _Graph(model, layers_of(model.graph), frozenset(transposed))


def _stage_module(
    config: LucidConfig, stage: str, options: ExportOptions, float32_head: bool, slots: Slots | None
) -> torch.nn.Module:
    import torch

    from lucid_deploy.model.adapter_slots import AdapterRows
    from lucid_deploy.model.build import make_model

    class Stage(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = make_model(config)
            self.rows = None if slots is None else AdapterRows(self.model, slots)

        def forward(
            self,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor,
            position_ids: torch.Tensor,
            past: list[Any],
            cache_length: torch.Tensor | None = None,
            adapter_ids: torch.Tensor | None = None,
        ) -> Any:
            if self.rows is not None:
                self.rows.ids = adapter_ids
            return self.model(
                input_ids,
                past,
                attention_mask,
                position_ids,
                decode=stage != "prefill",
                last_only=options.logits == "last" and stage != VERIFY,
                cache_length=cache_length,
            )

    with torch.device("meta"):
        module = Stage().to(getattr(torch, options.dtype)).eval().requires_grad_(False)
    module.model.store_cache_as(options.stored_cache_dtype)
    module.model.lm_head.in_float32 = float32_head
    return module


def _example(inputs: tuple[TensorInfo, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return example arguments on the meta device, each axis name with its own size (rings: 3), and dynamic axes."""
    import torch

    sizes = {"batch": 2, "sequence": 5, "past_sequence": 7, "past_sequence + sequence": 12, "past_sequence + 1": 8}
    sizes["max_context"] = 9
    sizes |= {axis: 3 for info in inputs for axis in info.shape if isinstance(axis, str) and axis not in sizes}  # rings
    tensors: dict[str, torch.Tensor] = {}
    axes: dict[str, dict[int, Any]] = {}
    for info in inputs:
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in info.shape]
        tensors[info.name] = torch.empty(shape, dtype=getattr(torch, info.dtype), device="meta")
        axes[info.name] = {i: torch.export.Dim.DYNAMIC for i, axis in enumerate(info.shape) if isinstance(axis, str)}

    def arguments(of: dict[str, Any]) -> tuple[Any, ...]:
        """Put the inputs' tensors, or their axes, in the order of the traced module's parameters."""
        past: dict[str, list[Any]] = {}  # by layer
        for name, value in of.items():
            if name.startswith("past_key_values."):
                past.setdefault(name.split(".")[1], []).append(value)
        layers = [tuple(layer) for layer in past.values()]
        rest: tuple[Any, ...] = (of.get("cache_length"), of.get("adapter_ids"))
        while rest and rest[-1] is None:
            rest = rest[:-1]
        return (of["input_ids"], of["attention_mask"], of["position_ids"], layers, *rest)

    return arguments(tensors), arguments(axes)


def _detach_weights(model: ir.Model) -> dict[str, ir.Value]:
    """Turn weights into graph inputs, so that the optimizer does not look for their data; return them by name."""
    weights = {}
    for value in list(model.graph.initializers.values()):
        data = value.const_value
        if data is not None and getattr(getattr(data, "raw", None), "is_meta", False):
            model.graph.initializers.pop(str(value.name))
            value.const_value = None
            value.name = str(value.name).removeprefix(_PREFIX)
            model.graph.inputs.append(value)
            weights[value.name] = value
    return weights


def _set_shape(value: ir.Value, info: TensorInfo) -> None:
    import onnx_ir as ir

    value.name = info.name
    value.shape = ir.Shape(info.shape)
