"""Write ``Attention`` as two products and a softmax, for a runtime or a type without a fused kernel."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir


def explicit_attention(model: ir.Model) -> bool:
    """Replace the standard ``Attention`` by ``MatMul``, ``Where`` and ``Softmax``.

    TensorRT refuses an ``Attention`` without a fused kernel, as all are in float32, unless the parsing program
    marks it as decomposable. This form needs nothing of the sort. It costs the scores, ``(B, H, N, T)`` numbers of the
    attention's type for the layer that is being computed.
    Requires: such nodes have tensors of four axes, numbers of heads that are known, a bool mask of one head, one
    output, and no attribute that is not zero. A row that sees no token gives NaN, so a mask must let every row see one.
    Result: no such node is left.

    Returns:
        Whether there was one.
    """
    nodes = [node for node in model.graph if node.op_type == "Attention" and node.domain in ("", "ai.onnx")]
    for node in nodes:
        tensors = list(node.inputs)
        set_otherwise = [name for name, attribute in node.attributes.items() if attribute.value != 0]
        if len(tensors) != 4 or None in tensors or len(node.outputs) != 1 or set_otherwise:
            raise ValueError(f"{node.name}: an Attention of another form")
        _Explicit(model.graph, node).replace()
    return bool(nodes)


class _Explicit:
    """Replaces one node; query heads that share a key get an axis of their own in front of the tokens."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self._graph, self._node = graph, node
        dtype = None if node.inputs[0] is None else node.inputs[0].dtype
        if dtype is None:
            raise ValueError(f"{node.name}: Attention of an unknown type")
        self._dtype: ir.DataType = dtype

    def replace(self) -> None:
        query, key, value, mask = self._node.inputs
        heads, shared, width = self._size(query, 1), self._size(key, 1), self._size(query, 3)
        grouped = shared not in (1, heads)
        if grouped:  # (B, H, N, D) to (B, H/G, G, N, D); keys and values get an axis of one group
            query = self._add("Reshape", [query, self._numbers("split", [0, shared, heads // shared, -1, width])], "q")
            two = self._numbers("group", [2])
            key, value = (self._add("Unsqueeze", [x, two], n) for x, n in ((key, "k"), (value, "y")))
            mask = self._add("Unsqueeze", [mask, self._numbers("head", [1])], "seen")
        axes = [0, 1, 2, 4, 3] if grouped else [0, 1, 3, 2]
        turned = self._add("Transpose", [key], "turned", perm=axes)
        scale = self._constant("scale", 1 / math.sqrt(width))
        scores = self._add("MatMul", [self._add("Mul", [query, scale], "scaled"), turned], "scores")
        hidden = self._constant("hidden", -math.inf)
        weights = self._add("Softmax", [self._add("Where", [mask, scores, hidden], "masked")], "weights", axis=-1)
        result = self._add("MatMul", [weights, value], "heads")
        if grouped:
            result = self._add("Reshape", [result, self._numbers("join", [0, heads, -1, width])], "joined")
        old = self._node.outputs[0]
        name, result.shape, result.type = old.name, old.shape, old.type
        ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
        self._graph.remove(self._node, safe=True)
        result.name = name

    def _size(self, tensor: ir.Value | None, axis: int) -> int:
        size = None if tensor is None or tensor.shape is None or len(tensor.shape) != 4 else tensor.shape[axis]
        if not isinstance(size, int):
            raise ValueError(f"{self._node.name}: Attention with heads of unknown number or width")
        return size

    def _add(self, operator: str, inputs: list[ir.Value | None], name: str, **attributes: object) -> ir.Value:
        made = ir.node(operator, inputs, attributes=attributes, name=f"{self._node.name}_{name}")  # type: ignore[arg-type]
        made.outputs[0].name = made.name
        if operator != "Constant":
            made.outputs[0].dtype = ir.DataType.BOOL if name == "seen" else self._dtype
        self._graph.insert_before(self._node, made)
        return made.outputs[0]

    def _constant(self, name: str, value: float) -> ir.Value:
        array = np.array(value, dtype=self._dtype.numpy())
        return self._add("Constant", [], name, value=ir.tensor(array, dtype=self._dtype))

    def _numbers(self, name: str, values: list[int]) -> ir.Value:
        return self._add("Constant", [], name, value=ir.tensor(values, dtype=ir.DataType.INT64))
