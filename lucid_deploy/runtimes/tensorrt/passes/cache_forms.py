"""Rewrite caches for TensorRT: an FP8 cache without casts, and buffers of a fixed length."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lucid_deploy.export.passes.editing import constant, replace

_FLOAT8 = ir.DataType.FLOAT8E4M3FN


def fix_axis(model: ir.Model, axis: str, size: int) -> bool:
    """Give a dynamic axis of the graph's inputs and outputs a fixed size.

    TensorRT writes into a cache in place only if the buffer's length is known when the engine is built.
    Requires: nothing. Expressions that contain the axis, such as ``axis + 1``, are not touched.
    Result: no input or output has the axis itself. The shapes of values in between are removed, since they may name the
    axis; readers of the graph infer them again.

    Returns:
        Whether an input or output had it.
    """
    found = False
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is None:
            continue
        dims = [size if isinstance(dim, ir.SymbolicDim) and dim.value == axis else dim for dim in value.shape]
        found = found or list(value.shape) != dims
        value.shape = ir.Shape(dims)
    if found:
        outputs = set(model.graph.outputs)
        for value in (value for node in model.graph for value in node.outputs):
            if value not in outputs:
                value.shape = None
    return found


def float8_cache(model: ir.Model) -> bool:
    """Replace casts to and from E4M3 by ``QuantizeLinear`` and ``DequantizeLinear`` with the scale 1.

    In TensorRT-RTX 1.7 only these two and ``Concat`` may return E4M3, and only they and plugins may read it; a ``Cast``
    is refused. ONNX's ``Concat`` takes no E4M3, so graphs concatenate caches in float16; this is undone here.
    Requires: what is cast to E4M3 is float32, except after a ``Concat``; no magnitude is above 448.
    Result: no ``Cast`` has E4M3 on either side; every value is as it was.

    Returns:
        Whether there was such a cast.
    """
    nodes = [node for node in model.graph if _is_cast(node)]
    for node in nodes:
        if _target(node) == _FLOAT8 and not _join(model, node):
            _replace(model, node, "QuantizeLinear", ir.DataType.FLOAT)
    for node in nodes:
        if _target(node) == _FLOAT8:
            continue
        if node.outputs[0].uses() or node.outputs[0].is_graph_output():
            _replace(model, node, "DequantizeLinear", _target(node))
        else:
            model.graph.remove(node, safe=True)
    return bool(nodes)


def _is_cast(node: ir.Node) -> bool:
    return (node.domain, node.op_type) == ("", "Cast") and (_target(node) == _FLOAT8 or _is_float8(node.inputs[0]))


def _is_float8(value: ir.Value | None) -> bool:
    """Whether a value is of E4M3 by its type or, if it has no type, by the cast that makes it."""
    if value is None or value.dtype is not None:
        return value is not None and value.dtype == _FLOAT8
    maker = value.producer()
    return maker is not None and maker.op_type == "Cast" and _target(maker) == _FLOAT8


def _target(node: ir.Node) -> ir.DataType:
    return ir.DataType(node.attributes["to"].as_int())


def _join(model: ir.Model, node: ir.Node) -> bool:
    """Concatenate E4M3 values directly, if a Concat joins casts of such values and this cast back is its only reader.

    Returns:
        Whether the graph was changed.
    """
    source = node.inputs[0]
    joined = None if source is None else source.producer()
    if joined is None or joined.op_type != "Concat" or len(joined.outputs[0].uses()) != 1:
        return False
    casts = [value.producer() if value is not None else None for value in joined.inputs]
    parts = [cast.inputs[0] for cast in casts if cast is not None and _is_cast(cast) and _target(cast) != _FLOAT8]
    if len(parts) != len(joined.inputs):
        return False
    for index, part in enumerate(parts):
        joined.replace_input_with(index, part)
    node.outputs[0].type = ir.TensorType(_FLOAT8)
    replace(model.graph, node, [], joined.outputs[0])
    return True


def _replace(model: ir.Model, cast: ir.Node, operator: str, scale_type: ir.DataType) -> None:
    """Replace a cast by an operator with the scale 1."""
    one = constant(model.graph, f"one_{scale_type.name.lower()}", np.ones((), scale_type.numpy()))
    zero = constant(model.graph, "zero_float8", np.zeros((), _FLOAT8.numpy()))
    cast.outputs[0].type = ir.TensorType(_target(cast))
    replace(model.graph, cast, [ir.node(operator, [cast.inputs[0], one, zero])])
