"""Helpers for passes over ``onnx.ModelProto``: find nodes, read attributes, list uses of values, remove nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import onnx
from onnx import helper


def nodes_of(graph: onnx.GraphProto, domain: str, operator: str) -> list[onnx.NodeProto]:
    """Return the nodes of one operator in the main graph, without those in branches and loops."""
    return [node for node in graph.node if (node.domain, node.op_type) == (domain, operator)]


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Return a node's attributes by name."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def cast_type(node: onnx.NodeProto | None) -> int | None:
    """Return the type that a ``Cast`` converts to; None for another node."""
    if node is None or (node.domain, node.op_type) != ("", "Cast"):
        return None
    return next((attribute.i for attribute in node.attribute if attribute.name == "to"), None)


def read_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the name of each value that a node reads or the graph returns, once per use, in branches and loops too."""
    yield from (value.name for value in graph.output)
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from read_names(attribute.g)


def remove_unread(graph: onnx.GraphProto, candidates: Iterable[onnx.NodeProto]) -> None:
    """Remove candidates whose results nothing reads; in ``candidates``, a node must follow the nodes that read it."""
    read = Counter(read_names(graph))
    for node in candidates:
        if node in graph.node and not any(read[name] for name in node.output):
            read.subtract(node.input)
            graph.node.remove(node)


def declare(model: onnx.ModelProto, domain: str, version: int) -> None:
    """Add an operator domain to the model's opset imports, unless it is there already."""
    if not any(item.domain == domain for item in model.opset_import):
        model.opset_import.append(helper.make_opsetid(domain, version))
