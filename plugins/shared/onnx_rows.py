"""ONNX bodies whose rows are divided by training's diagonal, made of the bodies whose diagonal is 1.

The two differ in what rows are multiplied by before they are solved, so the body of one is that of the other with a few
nodes more, and graphs without the attribute stay as they are.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx
from onnxscript import opset23 as op
from onnxscript import script, values

from lucid_deploy.plugins.table import DIAGONAL, DOMAIN, VERSION

_NEW = "row_"  # begins the names of values that are added


@script(values.Opset(DOMAIN, VERSION), default_opset=op)
def RowFactor(K, token, width, root_d, epsilon: float, power: float):
    """L_ii to the power −``power``: (B, H, N, D) and (B, 1, N, 1) to (B, H, N, 1), 1 at padding."""
    keys = op.Cast(K, to=1)
    mean_square = op.ReduceSumSquare(keys, [3], keepdims=1) / op.Cast(width, to=1)
    log_factor = token * root_d * (epsilon / (mean_square + epsilon))
    return op.Exp(log_factor * power)


@dataclass(frozen=True)
class DividedRows:
    """Where a body with diagonal 1 is changed; it has the values ``width``, ``root_d`` and ``token_new``.

    Attributes:
        keys: The new tokens' keys.
        power: 1: what is multiplied is multiplied by 1/L_ii; 0.5: by its root.
        places: What is multiplied: by the output of the node that reads it, the place among that node's inputs.
        equal: Values that become another one's, since factors differ from head to head where tokens do not.
    """

    keys: str
    power: float
    places: Mapping[str, int]
    equal: Mapping[str, str] = field(default_factory=dict)


def with_divided_rows(body: onnx.FunctionProto, where: DividedRows) -> onnx.FunctionProto:
    """Return a body whose rows are divided.

    Args:
        body: Of the operator with diagonal 1.
        where: Where its rows are made.

    Raises:
        ValueError: The body has not the values that are named.
    """
    produced = {node.output[0] for node in body.node}
    absent = [name for name in (*where.places, *where.equal) if name not in produced]
    if absent:
        raise ValueError(f"{body.name} has no value {', '.join(absent)}")
    made = onnx.FunctionProto.FromString(body.SerializeToString())
    made.attribute.append(DIAGONAL.name)
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
    del made.node[:]
    made.node.extend(nodes)
    return made


def _factor_nodes(keys: str, power: float) -> list[onnx.NodeProto]:
    """Return the nodes of :func:`RowFactor` as they stand in a body."""
    function = RowFactor.to_function_proto()
    given = dict(zip(function.input, (keys, "token_new", "width", "root_d"), strict=True))
    for node in function.node:
        node.name = _NEW + node.name
        for names in (node.input, node.output):
            names[:] = [given.get(name, _NEW + name) for name in names]
        for attribute in node.attribute:
            if attribute.ref_attr_name == "power":
                attribute.ClearField("ref_attr_name")
                attribute.f = power
    return list(function.node)
