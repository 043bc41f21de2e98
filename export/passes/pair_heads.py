"""Give ``Attention`` one key/value head for each row of its batch, which every runtime reads alike."""

from __future__ import annotations

import onnx_ir as ir


def pair_heads(model: ir.Model) -> None:
    """Bring key/value heads into the batch wherever query heads share them.

    Requires: ``Attention`` nodes of the main graph have inputs of four axes, numbers of heads that are known, a mask
    that has one head, and one output.
    Result: such a node gets queries ``(B·H, G, N, D)``, keys and values ``(B·H, 1, T, D)`` and a mask
    ``(B·H, 1, N, T)``, of H key/value heads and G query heads each; what reads it reads the same. Nodes whose heads
    are not shared are not touched.

    Args:
        model: Changed in place.
    """
    for node in list(model.graph):
        if node.op_type != "Attention" or node.domain not in ("", "ai.onnx"):
            continue
        query, key = node.inputs[0], node.inputs[1]
        if query is None or key is None or query.shape is None or key.shape is None or len(node.outputs) != 1:
            raise ValueError(f"{node.name}: Attention without shapes")
        heads, shared = query.shape[1], key.shape[1]
        if not isinstance(heads, int) or not isinstance(shared, int):
            raise ValueError(f"{node.name}: Attention with numbers of heads that are not known")
        if heads != shared:
            _pair(model.graph, node, heads // shared, shared)


def _pair(graph: ir.Graph, node: ir.Node, group: int, heads: int) -> None:
    tape, output = _Before(graph, node), node.outputs[0]
    query, key, value, mask = node.inputs
    assert query is not None and key is not None and value is not None and mask is not None
    shape = tape.add("Shape", [query], ir.DataType.INT64)
    tail = {"start": 2, "end": 4}
    split = [(query, group), (key, 1), (value, 1)]
    for place, (tensor, many) in enumerate(split):
        assert tensor is not None and tensor.dtype is not None
        sizes = tape.add(
            "Concat",
            [tape.numbers(-1, many), tape.add("Shape", [tensor], ir.DataType.INT64, tail)],
            ir.DataType.INT64,
            {"axis": 0},
        )
        node.replace_input_with(place, tape.add("Reshape", [tensor, sizes], tensor.dtype))
    assert mask.dtype is not None
    repeated = tape.add("Tile", [mask, tape.numbers(1, heads, 1, 1)], mask.dtype)
    sizes = tape.add(
        "Concat",
        [tape.numbers(-1, 1), tape.add("Shape", [mask], ir.DataType.INT64, tail)],
        ir.DataType.INT64,
        {"axis": 0},
    )
    node.replace_input_with(3, tape.add("Reshape", [repeated, sizes], mask.dtype))
    assert output.dtype is not None
    back = ir.node("Reshape", [output, shape])
    made, name = back.outputs[0], str(output.name)
    made.dtype, made.shape = output.dtype, output.shape
    ir.convenience.replace_all_uses_with(output, made, replace_graph_outputs=True)
    back.replace_input_with(0, output)
    output.name, output.shape, made.name, back.name = f"{name}_of_pairs", None, name, f"{node.name}_back"
    graph.insert_after(node, back)


class _Before:
    """Adds nodes before another one."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self._graph, self._node, self._count = graph, node, 0

    def _name(self) -> str:
        self._count += 1
        return f"{self._node.name}_pairs_{self._count}"

    def add(
        self, operator: str, inputs: list[ir.Value], dtype: ir.DataType, attributes: dict[str, int] | None = None
    ) -> ir.Value:
        """Add a node with one output and return that."""
        made = ir.node(operator, inputs, attributes=attributes)
        made.name = made.outputs[0].name = self._name()
        made.outputs[0].dtype = dtype
        self._graph.insert_before(self._node, made)
        return made.outputs[0]

    def numbers(self, *values: int) -> ir.Value:
        """Add a constant."""
        tensor = ir.tensor(list(values), dtype=ir.DataType.INT64, name=self._name())
        kind = ir.TensorType(ir.DataType.INT64)
        value = ir.Value(name=tensor.name, shape=ir.Shape([len(values)]), type=kind, const_value=tensor)
        self._graph.register_initializer(value)
        return value
