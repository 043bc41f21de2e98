"""Helpers for graph passes on ``onnx_ir`` models: constants, and chains of new nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir


def constant(graph: ir.Graph, name: str, array: np.ndarray[Any, Any]) -> ir.Value:
    """Return the initializer of this name; add it with these contents if the graph has none."""
    if name not in graph.initializers:
        tensor = ir.tensor(array, name=name)
        kind, shape = ir.TensorType(tensor.dtype), ir.Shape(array.shape)
        graph.register_initializer(ir.Value(name=name, shape=shape, type=kind, const_value=tensor))
    return graph.initializers[name]


def integers(graph: ir.Graph, name: str, *values: int) -> ir.Value:
    """Return an int64 initializer with these values, as :func:`constant` does."""
    return constant(graph, name, np.array(values, np.int64))


class NodeChain:
    """New nodes with one output each, whose names start with a prefix; the caller inserts ``nodes`` into the graph."""

    def __init__(self, prefix: str) -> None:
        self.prefix, self.nodes = prefix, list[ir.Node]()

    def add(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        suffix: str,
        attributes: dict[str, Any] | None = None,
        dtype: ir.DataType | None = ir.DataType.FLOAT,
        domain: str = "",
    ) -> ir.Value:
        """Add a node and return its output, named ``PREFIX.SUFFIX``."""
        node = ir.node(operator, inputs, attributes or {}, domain=domain, name=f"{self.prefix}.{suffix}_node")
        node.outputs[0].name = f"{self.prefix}.{suffix}"
        if dtype is not None:
            node.outputs[0].dtype = dtype
        self.nodes.append(node)
        return node.outputs[0]

    def cast(self, value: ir.Value, dtype: ir.DataType, suffix: str) -> ir.Value:
        """Return the value cast to a dtype; the value itself if it has that dtype already."""
        return value if value.dtype == dtype else self.add("Cast", [value], suffix, {"to": int(dtype)}, dtype)

    def insert_behind(self, graph: ir.Graph, value: ir.Value) -> None:
        """Insert the nodes right after the node that produces a value; at the start if it is an input of the graph."""
        producer = value.producer()
        if producer is None:
            graph.insert_before(graph[0], self.nodes)
        else:
            graph.insert_after(producer, self.nodes)


def replace(graph: ir.Graph, old: ir.Node, made: Sequence[ir.Node], value: ir.Value | None = None) -> None:
    """Replace a node with one output by new nodes; the last of them gets the old node's name.

    Args:
        value: The value that takes over the old output's readers, name, shape and type; None: the last node's output.
    """
    before, after = old.outputs[0], made[-1].outputs[0] if value is None else value
    name, after.shape, after.type = before.name, before.shape, before.type
    if made:
        made[-1].name = old.name
    graph.insert_before(old, made)
    ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
    graph.remove(old, safe=True)
    after.name = name
