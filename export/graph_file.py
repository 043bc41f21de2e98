"""Write a traced graph: its weights refer to the shared weight file, and its operators get their function bodies."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import onnx

from lucid_deploy.artifact import ADAPTERS, WEIGHTS
from lucid_deploy.artifact.quantization import EMBEDDING, PACKED, ROWS
from lucid_deploy.errors import LucidError
from lucid_deploy.export.functions import function_proto
from lucid_deploy.export.passes.pair_heads import pair_heads
from lucid_deploy.plugins.table import DIAGONAL, DOMAIN
from lucid_deploy.version import __version__

if TYPE_CHECKING:
    import onnx_ir as ir

    from lucid_deploy.export.weights import StoredTensor


def write_graph(
    path: Path,
    model: ir.Model,
    plan: dict[str, StoredTensor],
    inline: bool = False,
    adapters: Mapping[str, StoredTensor] = MappingProxyType({}),
) -> None:
    """Write a graph beside its weight file and check it; ``LucidError`` if it cannot be read again. Changes ``model``.

    Args:
        plan: Where the weights lie in the weight file.
        inline: Replace operators by their bodies instead of attaching the bodies as functions.
        adapters: Where the stacked matrices of adapters lie in the adapter file.
    """
    import onnx_ir as ir

    types = {"float32": ir.DataType.FLOAT}
    for value in model.graph.initializers.values():
        if value.const_value is None:
            name = str(value.name)
            view = name.endswith(ROWS)  # the same bytes in another shape
            tensor = adapters.get(name) or plan[_stored_name(name.removesuffix(ROWS) + PACKED if view else name, plan)]
            kind = types.get(tensor.dtype) or ir.DataType[tensor.dtype.upper()]
            value.const_value = ir.ExternalTensor(
                ADAPTERS if name in adapters else WEIGHTS,
                tensor.offset,
                tensor.size,
                kind,
                shape=value.shape if view and value.shape is not None else ir.Shape(tensor.shape),
                name=name,
                base_dir=str(path.parent),
            )
    if inline:
        pair_heads(model)
    proto = ir.serde.serialize_model(model)
    _attach_functions(proto)
    if inline:
        proto = _inlined(proto)
    _strip_traces(proto)
    onnx.save(proto, str(path))
    _check(path)


def _check(path: Path) -> None:
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except onnx.checker.ValidationError as error:
        if not str(error).startswith("Unable to read proto file"):
            raise
        raise LucidError(f"{path.name} was written and cannot be read again. Check the disk.") from error


def _stored_name(name: str, plan: Collection[str]) -> str:
    """Return the stored name of a graph's weight: a tied head is the embedding, whichever name the tracer kept."""
    return name if name in plan else EMBEDDING


def _attach_functions(proto: onnx.ModelProto) -> None:
    opset = next(item.version for item in proto.opset_import if item.domain == "")
    nodes = [node for node in proto.graph.node if node.domain == DOMAIN]
    training = any(attribute.name == DIAGONAL.name for node in nodes for attribute in node.attribute)
    for name in sorted({node.op_type for node in nodes}):
        one_token = _of_one_token(proto, name)
        proto.functions.append(function_proto(name, opset, training, one_token, several=not one_token))


def _of_one_token(proto: onnx.ModelProto, name: str) -> bool:
    """Whether the first input (batch, heads, sequence, width) of all nodes of an operator has one token.

    The stage does not tell: a layer may give an operator several rows for the one token of a decode step.
    """
    infos = {info.name: info for info in (*proto.graph.value_info, *proto.graph.input)}
    nodes = [node for node in proto.graph.node if node.domain == DOMAIN and node.op_type == name]
    shapes = [infos[node.input[0]].type.tensor_type.shape.dim if node.input[0] in infos else [] for node in nodes]
    return all([axis.dim_value for axis in shape][2:3] == [1] for shape in shapes)


def _inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph without functions, with standard operators only."""
    import onnx.inliner

    whole = onnx.inliner.inline_local_functions(proto)
    kept = [item for item in whole.opset_import if item.domain != DOMAIN]
    del whole.opset_import[:]
    whole.opset_import.extend(kept)
    return whole


def _strip_traces(proto: onnx.ModelProto) -> None:
    """Remove the tracer's metadata (stack traces with paths of this machine) and set the producer."""
    proto.producer_name, proto.producer_version = "lucid-deploy", __version__
    for item in (
        proto,
        proto.graph,
        *proto.graph.node,
        *proto.graph.value_info,
        *proto.graph.input,
        *proto.graph.output,
    ):
        del item.metadata_props[:]
    for node in proto.graph.node:
        node.doc_string = ""
