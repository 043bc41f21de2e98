"""Derive graphs with a static cache from those with a growing cache, and write rows with standard operators."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from lucid_deploy.artifact import OPSET_TENSOR_SCATTER
from lucid_deploy.export.passes.editing import NodeChain, constant, integers
from lucid_deploy.plugins.table import DOMAIN, SCATTER_ROW, VERSION

_INT64, _BOOL = ir.DataType.INT64, ir.DataType.BOOL


def static_cache(
    growing: ir.Model, opset: int, inputs: Mapping[str, Sequence[int | str]], rows: Sequence[str], copies: bool
) -> ir.Model | None:
    """Derive a graph that decodes over a static cache from one that decodes over a growing cache.

    If its mask hides the rows that are not filled yet, the growing graph gives the same outputs over whole buffers as
    over a padded past. New rows are written into the buffers instead of concatenated to them.

    Requires: every tensor of ``rows`` is a ``Concat`` of the past and new rows, and the mask is only read as bool.
    Result: a new model with the given inputs, which returns the written buffers; ``growing`` does not change.

    Args:
        growing: A traced graph of ``decode`` or ``verify``.
        opset: Opset version of the result, see :func:`write_rows`.
        inputs: The result's inputs in order, with their shapes.
        rows: Name suffixes of the cached tensors that have one row per token, such as ``0.key``.
        copies: Whether layers may read a concatenated copy of the whole buffer and the new rows. In decoding, this copy
            would cost more than the layers' own code for static caches.

    Returns:
        The graph; None if ``growing`` does not have the required form.
    """
    model = growing.clone()
    graph = model.graph
    values = {str(value.name): value for value in (*graph.inputs, *graph.outputs)}
    joins = {name: values[f"present.{name}"].producer() for name in rows}
    masks = [use.node for use in values["attention_mask"].uses()]
    if not all(_joins(join, values[f"past_key_values.{name}"], copies) for name, join in joins.items()):
        return None
    if not all(node.op_type == "Cast" and node.outputs[0].dtype == _BOOL for node in masks):
        return None
    length = ir.Value(name="cache_length", type=ir.TensorType(_INT64))
    graph.inputs.insert(list(inputs).index("cache_length"), length)
    for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(axis) for axis in value.shape])
    for value in graph.inputs:
        value.shape = ir.Shape(inputs[str(value.name)])
    mask = _mask(graph, values["attention_mask"], values["input_ids"], length)
    for node in masks:
        ir.convenience.replace_all_uses_with(node.outputs[0], mask)
        graph.remove(node, safe=True)
    for join in joins.values():
        assert join is not None
        _write(graph, join, length)
    write_rows(model, opset)
    return model


def _joins(node: ir.Node | None, past: ir.Value, copies: bool) -> bool:
    """Whether a node concatenates a past and new rows, read (unless ``copies``) by nothing but the graph's output."""
    if node is None or node.op_type != "Concat" or len(node.inputs) != 2 or node.inputs[0] is not past:
        return False
    return node.attributes["axis"].as_int() in (2, -2) and (copies or not node.outputs[0].uses())


def _renamed(axis: int | ir.SymbolicDim) -> int | str | None:
    """Return an axis's size, or its name with ``max_context`` in place of ``past_sequence``; None if it has neither."""
    if isinstance(axis, int) or axis.value is None:
        return axis if isinstance(axis, int) else None
    return re.sub(r"\bpast_sequence\b", "max_context", str(axis.value))


def _mask(graph: ir.Graph, mask: ir.Value, input_ids: ir.Value, length: ir.Value) -> ir.Value:
    """Add nodes for a bool mask ``(B, M + N)``: which of the buffer's M rows are tokens, and True for N new tokens."""
    chain = NodeChain("static_mask")
    zero, one = (constant(graph, f"static_mask.{n}", np.array(n, np.int64)) for n in (0, 1))
    axis = integers(graph, "static_mask.axis", 1)
    size = chain.add("Shape", [mask], "size", {"start": 1, "end": 2}, _INT64)
    columns = chain.add(
        "Range", [zero, chain.add("Squeeze", [size], "rows", dtype=_INT64), one], "columns", dtype=_INT64
    )
    filled = chain.add("Less", [columns, chain.add("Unsqueeze", [length, axis], "length", dtype=_INT64)], "filled")
    filled.dtype = _BOOL
    past = chain.add("And", [filled, chain.cast(mask, _BOOL, "given")], "past", dtype=_BOOL)
    new = chain.add("Expand", [one, chain.add("Shape", [input_ids], "new_size", dtype=_INT64)], "ones", dtype=_INT64)
    whole = chain.add("Concat", [past, chain.cast(new, _BOOL, "new")], "whole", {"axis": 1}, _BOOL)
    whole.shape = ir.Shape([None, None])  # sessions must know that it is not a window's mask, of rank 3
    graph.insert_before(graph[0], chain.nodes)
    return whole


def _write(graph: ir.Graph, join: ir.Node, length: ir.Value) -> None:
    """Make the graph return the buffer with the new rows written into it; keep the ``Concat`` if a layer reads it."""
    past, new = join.inputs
    joined = join.outputs[0]
    node = ir.node(SCATTER_ROW.name, [past, new, length], domain=DOMAIN, version=VERSION, name=f"{join.name}_written")
    written, name = node.outputs[0], joined.name
    assert past is not None
    written.type, written.shape = past.type, past.shape
    graph.insert_after(join, node)
    graph.outputs[graph.outputs.index(joined)] = written
    joined.name, written.name = join.name, name
    if not joined.uses():
        graph.remove(join, safe=True)


def write_rows(model: ir.Model, opset: int) -> None:
    """Replace ``ScatterRow`` nodes by ``TensorScatter`` or, in opsets below 24, by ``ScatterElements``, in place.

    The tracer emits ``ScatterRow`` because the exporter's version conversion rejects nodes newer than its opset.
    Requires: in opsets below 24, each batch row gets only one new row.
    Result: no ``ScatterRow`` is left. With ``TensorScatter``, the model's opset becomes 24, the first that has it.
    """
    for node in list(model.graph):
        if (node.domain, node.op_type) != (DOMAIN, SCATTER_ROW.name):
            continue
        if opset >= OPSET_TENSOR_SCATTER:
            node.domain, node.op_type, node.version = "", "TensorScatter", OPSET_TENSOR_SCATTER
            node.attributes["axis"] = ir.AttrInt64("axis", -2)
            model.opset_imports[""] = OPSET_TENSOR_SCATTER
        else:
            _scatter_elements(model.graph, node)


def _scatter_elements(graph: ir.Graph, node: ir.Node) -> None:
    """Replace a ``ScatterRow``; ``index`` is expanded over heads and width, since every element needs an index."""
    cache, row, index = node.inputs
    assert row is not None
    shape = ir.node("Shape", [row])  # (B, H, 1, D)
    axes = ir.node("Constant", [], {"value": ir.tensor(np.array([1, 2, 3], np.int64))})
    column = ir.node("Unsqueeze", [index, axes.outputs[0]])  # (B, 1, 1, 1)
    indices = ir.node("Expand", [column.outputs[0], shape.outputs[0]])  # (B, H, 1, D)
    scatter = ir.node("ScatterElements", [cache, indices.outputs[0], row], {"axis": 2})
    made = [shape, axes, column, indices, scatter]
    [old], [new] = node.outputs, scatter.outputs
    ir.convenience.replace_nodes_and_values(graph, node, [node], made, [old], [new])
