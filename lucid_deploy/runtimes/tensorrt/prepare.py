"""Prepare an artifact's graphs for TensorRT's parser, and refuse those that cannot be built."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lucid_deploy.artifact import VERIFY, Artifact
from lucid_deploy.artifact.quantization import GROUP_FP8, TOKEN_FP8
from lucid_deploy.errors import LucidError
from lucid_deploy.plugins.table import (
    DECODE_ATTENTION,
    DECODE_ATTENTION_FLOAT8,
    DELTA_RULE,
    DOMAIN,
    EXPERT_MATMUL,
    IN_TENSORRT,
    PRECONDITION,
    QUANTIZED_EXPERT_MATMUL,
)
from lucid_deploy.runtimes.open import check_artifact as check_capabilities
from lucid_deploy.runtimes.tensorrt import CAPABILITIES
from lucid_deploy.runtimes.tensorrt.backend import dotted

if TYPE_CHECKING:
    import onnx

PLUGIN_OPERATORS = tuple(each.name for each in IN_TENSORRT)
# The plugin's operators that layers of a stage use, one node a layer; an fp8 cache has DECODE_ATTENTION_FLOAT8.
_STAGE_OPERATORS = {
    "prefill": (PRECONDITION.name, DELTA_RULE.name),
    "decode": (DECODE_ATTENTION.name, DELTA_RULE.name),
    VERIFY: (DECODE_ATTENTION.name,),
}
# The lowest compute capability by type; for lower ones TensorRT-RTX 1.7 fails with "HW-specific datatypes".
LEAST_CAPABILITY = {"fp8": 89, "nvfp4": 100}


def check_float_formats(artifact: Artifact, capabilities: Iterable[int]) -> None:
    """Check that GPUs support an artifact's float types and kernels, and TensorRT the rounding of its inputs."""
    capabilities, plugged = tuple(capabilities), artifact.manifest.uses(PLUGIN_OPERATORS)
    if _TURING in capabilities and (plugged or artifact.manifest.dtype == "bfloat16"):
        lacking = "the plugin library has no kernels for it" if plugged else "it has no bfloat16"
        raise LucidError(f"Compute capability 7.5 cannot run this artifact: {lacking}. Engines need 8.0 or newer.")
    if artifact.manifest.cache_dtype == "fp8":
        _check_capabilities(artifact, capabilities, "fp8", "cache", "Export with --cache-dtype auto")
    record = artifact.manifest.quantization
    if record is None or not record.is_float:
        return
    if record.activations in (TOKEN_FP8, GROUP_FP8):
        raise LucidError(
            f"The graphs of {artifact.directory} round inputs to fp8 with scales that follow from the inputs, as the "
            "checkpoint says, and TensorRT has no layer for that. Run them with onnxruntime, or export the checkpoint "
            "with --quantize stored --activations float, which leaves the inputs as they are."
        )
    instead = "Export with --quantize int8 or int4 --quantize-format qdq"
    _check_capabilities(artifact, capabilities, record.scheme, "weights", instead)


def _check_capabilities(artifact: Artifact, capabilities: tuple[int, ...], kind: str, what: str, instead: str) -> None:
    least = LEAST_CAPABILITY[kind]
    if lacking := sorted(number for number in capabilities if number < least):
        raise LucidError(
            f"GPUs of compute capability {', '.join(map(dotted, lacking))} do not support {kind}, in which the {what} "
            f"of {artifact.directory} {'is' if what == 'cache' else 'are'}; {dotted(least)} and newer do. {instead} "
            "for the older ones."
        )


_TURING = 75  # compute capability 7.5: no bfloat16, and the plugin has no kernels for it
FP8 = "fp8"  # type of a cache
_LEAST_WIDTH, _MOST_WIDTH, _WIDTH_UNIT = 16, 256, 4  # head widths of the plugin's kernels
_FP8_WIDTH_UNIT = 8  # of kernels that read an fp8 cache


@dataclass(frozen=True)
class PreparedGraph:
    """A graph ready for TensorRT's parser."""

    stage: str  # prefill, decode or verify
    model: bytes  # serialized; its weights remain in the artifact's weight file
    plugin_nodes: dict[str, int]  # how many nodes of each of the plugin's operators it has
    cache_updates: int  # how many nodes write into a static cache


def prepare_graph(artifact: Artifact, stage: str, max_context: int, for_onnxruntime: bool = False) -> PreparedGraph:
    """Load a stage's graph and run the passes that TensorRT needs; a static cache gets ``max_context`` columns."""
    import onnx_ir as ir

    from lucid_deploy.runtimes.tensorrt.passes.attention_forms import half_attention, standard_attention
    from lucid_deploy.runtimes.tensorrt.passes.cache_forms import fix_axis, float8_cache
    from lucid_deploy.runtimes.tensorrt.passes.plugin_nodes import plugin_domain, strip_bodies

    record = artifact.manifest.quantization
    if record is not None and record.format != "qdq":
        raise LucidError(
            f"{artifact.directory} is quantized with onnxruntime's own operators, which TensorRT does not have. Export "
            f"it for TensorRT with --quantize {record.scheme} --quantize-format qdq. If the quantized checkpoint has "
            "zero points, export the checkpoint that it was made from."
        )
    static = artifact.manifest.cache == "static"
    if stage == VERIFY and (reason := artifact.drafts_unsupported_reason):
        raise LucidError(f"No engine can verify drafts: {reason}. Otherwise leave out --speculate.")
    graph = artifact.graph(stage)
    if artifact.manifest.cache_dtype == FP8 and stage != "prefill":
        graph = _reading_fp8(artifact, stage, graph)
    model = ir.serde.deserialize_model(graph)
    standard_attention(model)
    half_attention(model)
    float8_cache(model)
    strip_bodies(model)
    if static and stage != "prefill":
        fix_axis(model, "max_context", max_context)
    nodes = Counter(node.op_type for node in model.graph.all_nodes() if node.domain == DOMAIN)
    _check_operators(artifact, stage, nodes)
    if for_onnxruntime:  # its TensorRT provider looks for plugins in its own domain
        plugin_domain(model)
    updates = sum(node.op_type == "TensorScatter" for node in model.graph.all_nodes())
    return PreparedGraph(stage, ir.serde.serialize_model(model).SerializeToString(), dict(nodes), updates)


def _reading_fp8(artifact: Artifact, stage: str, graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with operators that read an FP8 cache as stored, if layers decode with DecodeAttention."""
    import onnx

    from lucid_deploy.runtimes.passes.stored_cache import read_as_stored

    if not any(layer.uses(DECODE_ATTENTION.name, "decode") for layer in artifact.manifest.layers):
        return graph
    changed = onnx.ModelProto()
    changed.CopyFrom(graph)
    read_as_stored(changed, artifact.graph_path(stage))
    return changed


def _check_operators(artifact: Artifact, stage: str, nodes: Counter[str]) -> None:
    path = artifact.graph_path(stage)
    of_layers = "decode" if stage == VERIFY else stage
    if unknown := sorted(set(nodes) - set(PLUGIN_OPERATORS)):
        raise LucidError(f"{path} has operators that the plugin library does not have: {', '.join(unknown)}.")
    of_fp8 = {DECODE_ATTENTION.name: DECODE_ATTENTION_FLOAT8.name} if artifact.manifest.cache_dtype == FP8 else {}
    found = {of_fp8.get(name, name): name for name in _STAGE_OPERATORS[stage]}
    for name in PLUGIN_OPERATORS:
        wanted = found.get(name)
        layers = sum(layer.uses(wanted, of_layers) for layer in artifact.manifest.layers) if wanted else 0
        if nodes[name] != layers:
            raise LucidError(
                f"{path} has {nodes[name]} nodes {DOMAIN}::{name} where the model has {layers} layers with it: the "
                "custom operators were removed or inlined, and what is in their place cannot be built. Export it again."
            )


def check_artifact(artifact: Artifact) -> None:
    """Check that TensorRT supports an artifact's types, cache, operators and head widths."""
    manifest = artifact.manifest
    check_capabilities(CAPABILITIES, "TensorRT", artifact)
    if manifest.uses((EXPERT_MATMUL.name, QUANTIZED_EXPERT_MATMUL.name)):
        raise LucidError(
            f"{artifact.directory} is a mixture of experts, which the TensorRT plugin does not compute. Run it with "
            "onnxruntime."
        )
    if manifest.cache_dtype == FP8 and (manifest.dtype == "float32" or manifest.cache == "static"):
        raise LucidError(
            "An fp8 cache runs in TensorRT only in float16 or bfloat16 models with a growing cache: TensorRT cannot "
            f"write E4M3 in place. {artifact.directory} is in {manifest.dtype} with a {manifest.cache} cache. Export "
            "with --dtype float16 and --cache growing, or with --cache-dtype auto."
        )
    if manifest.cache == "static" and not artifact.writes_in_place:
        raise LucidError(
            f"The graphs of {artifact.directory} were exported with --opset 23, so they lack TensorScatter, with which "
            "engines write a static cache. To build engines, export without --opset."
        )
    check_head_width(artifact)


def check_head_width(artifact: Artifact) -> None:
    """Raise a LucidError unless the plugin's kernels support the model's head widths."""
    width, manifest = artifact.config.head_dim, artifact.manifest
    unit = _FP8_WIDTH_UNIT if manifest.cache_dtype == FP8 else _WIDTH_UNIT
    fits = _LEAST_WIDTH <= width <= _MOST_WIDTH and width % unit == 0
    if manifest.uses(tuple(name for name in PLUGIN_OPERATORS if name != DELTA_RULE.name)) and not fits:
        raise LucidError(
            f"The model's head_dim is {width}; the TensorRT plugin takes multiples of {unit} from {_LEAST_WIDTH} to "
            f"{_MOST_WIDTH}{'' if unit == _WIDTH_UNIT else ' with a cache in fp8'}. "
            + ("Run it with another runtime." if unit == _WIDTH_UNIT else "Export with --cache-dtype auto.")
        )
    for index, layer in enumerate(manifest.layers):
        rule = layer.uses(DELTA_RULE.name, "prefill")
        for _, keys, values in [tensor.shape for tensor in layer.cache if rule and len(tensor.shape) == 3]:
            if not _LEAST_WIDTH <= keys <= _MOST_WIDTH or keys % _WIDTH_UNIT or values % _WIDTH_UNIT:
                raise LucidError(
                    f"Heads of layer {index} have keys of width {keys} and values of width {values}; the TensorRT "
                    f"plugin takes multiples of {_WIDTH_UNIT}, and keys from {_LEAST_WIDTH} to {_MOST_WIDTH}. Run it "
                    "with another runtime."
                )


def kernel_head_dims(artifact: Artifact) -> tuple[int, ...]:
    """Return the head widths that the plugin's kernels need, ascending; for the delta rule, the widths of keys."""
    manifest, found = artifact.manifest, set()
    if manifest.uses(tuple(name for name in PLUGIN_OPERATORS if name != DELTA_RULE.name)):
        found.add(artifact.config.head_dim)
    for layer in manifest.layers:
        if layer.uses(DELTA_RULE.name, "prefill"):
            found |= {tensor.shape[1] for tensor in layer.cache if len(tensor.shape) == 3}
    return tuple(sorted(found))
