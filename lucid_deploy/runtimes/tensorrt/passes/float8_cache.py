"""Write the conversions of an FP8 cache as TensorRT takes them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

_FLOAT8 = ir.DataType.FLOAT8E4M3FN


def float8_cache(model: ir.Model) -> bool:
    """Replace casts to and from E4M3 by ``QuantizeLinear`` and ``DequantizeLinear`` with the scale 1.

    TensorRT-RTX 1.7 takes E4M3 from ``Concat`` and those two, and gives it to these alone and to plugins; a ``Cast`` it
    refuses. ONNX's ``Concat`` takes no E4M3, so that graphs join by way of float16, which is undone here.
    Requires: what is cast to E4M3 is float32, except in a join; nothing lies beyond 448.
    Result: no ``Cast`` has E4M3 on either side; every number is as it was.

    Returns:
        Whether there was such a cast.
    """
    nodes = [node for node in model.graph if _is_cast(node)]
    for node in nodes:
        if _to_float8(node) and not _join(model, node):
            _replace(model, node, "QuantizeLinear", ir.DataType.FLOAT, _FLOAT8)
    for node in nodes:
        if _to_float8(node):
            continue
        if node.outputs[0].uses() or node.outputs[0].is_graph_output():
            _replace(model, node, "DequantizeLinear", _target(node), _target(node))
        else:
            model.graph.remove(node, safe=True)
    return bool(nodes)


def _is_cast(node: ir.Node) -> bool:
    if node.op_type != "Cast" or node.domain != "":
        return False
    return _to_float8(node) or _is_float8(node.inputs[0])


def _is_float8(value: ir.Value | None) -> bool:
    """Whether a value is of E4M3: a graph's input, or what was cast to it."""
    if value is None or value.dtype is not None:
        return value is not None and value.dtype == _FLOAT8
    maker = value.producer()
    return maker is not None and maker.op_type == "Cast" and _to_float8(maker)


def _target(node: ir.Node) -> ir.DataType:
    return ir.DataType(node.attributes["to"].as_int())


def _to_float8(node: ir.Node) -> bool:
    return _target(node) == _FLOAT8


def _join(model: ir.Model, node: ir.Node) -> bool:
    """Join numbers of E4M3 as they are where a cast does it by way of another type; return whether it was one."""
    source = node.inputs[0]
    joined = None if source is None else source.producer()
    if joined is None or joined.op_type != "Concat" or len(joined.outputs[0].uses()) != 1:
        return False
    casts = [value.producer() if value is not None else None for value in joined.inputs]
    parts = [cast.inputs[0] for cast in casts if cast is not None and _is_cast(cast) and not _to_float8(cast)]
    if len(parts) != len(joined.inputs):
        return False
    for index, part in enumerate(parts):
        joined.replace_input_with(index, part)
    old, new = node.outputs[0], joined.outputs[0]
    new.type = ir.TensorType(_FLOAT8)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
    new.name = old.name
    return True


def _replace(model: ir.Model, cast: ir.Node, operator: str, scale_type: ir.DataType, dtype: ir.DataType) -> None:
    """Put an operator with the scale 1 in the place of a cast to a type."""
    old, source = cast.outputs[0], cast.inputs[0]
    assert source is not None
    scale = _constant(model, f"one_{scale_type.name.lower()}", np.ones((), np.float32), scale_type)
    zero = _constant(model, "zero_float8", np.zeros((), np.float32), _FLOAT8)
    node = ir.node(operator, [source, scale, zero], name=f"{old.name}_{operator}")
    new = node.outputs[0]
    new.shape, new.type = old.shape, ir.TensorType(dtype)
    model.graph.insert_before(cast, node)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    model.graph.remove(cast, safe=True)
    new.name = old.name


def _constant(model: ir.Model, name: str, array: np.ndarray, dtype: ir.DataType) -> ir.Value:
    """Return an initializer of that name, made if it is not there."""
    if name not in model.graph.initializers:
        tensor = ir.tensor(array.astype(dtype.numpy()), dtype=dtype, name=name)
        value = ir.Value(name=name, shape=ir.Shape(()), type=ir.TensorType(dtype), const_value=tensor)
        model.graph.register_initializer(value)
    return model.graph.initializers[name]
