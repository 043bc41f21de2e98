"""Derive ONNX function bodies with the training diagonal from bodies with L_ii = 1.

The two differ by a factor 1/L_ii per row, or by its square root on rows and columns; this module adds these products.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import no_type_check

import onnx
from onnxscript import opset23 as op
from onnxscript import script, values

from lucid_deploy.plugins.table import DIAGONAL, DOMAIN, VERSION

_NEW = "row_"  # prefix of the names of added values


@no_type_check  # a body in ONNX Script, which is read, not run
@script(values.Opset(DOMAIN, VERSION), default_opset=op)
def RowFactor(K, token, width, root_d, epsilon: float, power: float):
    """Return L_ii to the power −``power``, (B, H, N, 1), 1 at padding; K is (B, H, N, D), token (B, 1, N, 1)."""
    keys = op.Cast(K, to=1)
    mean_square = op.ReduceSumSquare(keys, [3], keepdims=1) / op.Cast(width, to=1)
    log_factor = token * root_d * (epsilon / (mean_square + epsilon))
    return op.Exp(log_factor * power)


@dataclass(frozen=True)
class DividedRows:
    """Where to multiply by the row factor in a body, which must define ``width``, ``root_d`` and ``token_new``.

    Attributes:
        keys: Name of the new tokens' keys.
        power: 1 to multiply by 1/L_ii, 0.5 to multiply by its square root.
        places: The node inputs to multiply: maps the name of the node's first output to the index of the input.
        equal: Shape values to replace, old name to new name, since the factor adds a head axis to the mask.
    """

    keys: str
    power: float
    places: Mapping[str, int]
    equal: Mapping[str, str] = field(default_factory=dict)


def with_divided_rows(body: onnx.FunctionProto, where: DividedRows) -> onnx.FunctionProto:
    """Return a copy of a body in which the inputs ``where.places`` are multiplied by L_ii^−``where.power``.

    Args:
        body: The operator's body with L_ii = 1.

    Raises:
        ValueError: A key of ``where.places`` or ``where.equal`` is not the first output of a node of the body.
    """
    produced = {node.output[0] for node in body.node}
    absent = [name for name in (*where.places, *where.equal) if name not in produced]
    if absent:
        raise ValueError(f"{body.name} has no value {', '.join(absent)}")
    changed = onnx.FunctionProto.FromString(body.SerializeToString())
    changed.attribute.append(DIAGONAL.name)
    factor = _factor_nodes(where.keys, where.power)
    name, nodes = factor[-1].output[0], []
    for node in body.node:
        if node.output[0] in where.equal:
            node = onnx.helper.make_node("Identity", [where.equal[node.output[0]]], node.output, node.name)
        if node.output[0] in where.places:
            nodes += factor
            factor = []
            index = where.places[node.output[0]]
            scaled = f"{_NEW}{node.output[0]}"
            nodes.append(onnx.helper.make_node("Mul", [node.input[index], name], [scaled], scaled))
            node = onnx.NodeProto.FromString(node.SerializeToString())
            node.input[index] = scaled
        nodes.append(node)
    del changed.node[:]
    changed.node.extend(nodes)
    return changed


def _factor_nodes(keys: str, power: float) -> list[onnx.NodeProto]:
    """Return the nodes of :func:`RowFactor`, reading the body's values."""
    function = RowFactor.to_function_proto()
    arguments = dict(zip(function.input, (keys, "token_new", "width", "root_d"), strict=True))
    for node in function.node:
        node.name = _NEW + node.name
        for names in (node.input, node.output):
            names[:] = [arguments.get(name, _NEW + name) for name in names]
        for attribute in node.attribute:
            if attribute.ref_attr_name == "power":
                attribute.ClearField("ref_attr_name")
                attribute.f = power
    return list(function.node)
