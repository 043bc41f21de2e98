"""Which values of a graph are read, and how often."""

from __future__ import annotations

from collections.abc import Iterator

import onnx


def read_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield every name that a graph reads or gives, once for each time, those inside of its branches and loops too."""
    yield from (value.name for value in graph.output)
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from read_names(attribute.g)
