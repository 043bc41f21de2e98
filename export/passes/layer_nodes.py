"""Which layer the nodes of a traced graph belong to."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable

import onnx_ir as ir

SCOPES = "pkg.torch.onnx.name_scopes"  # where the exporter notes the modules that a node was traced in


def layers_of(nodes: Iterable[ir.Node]) -> dict[ir.Node, int | None]:
    """Return each node's layer, None for those outside all layers.

    A few nodes come without the exporter's note (those of operators with several outputs). They belong to a layer if
    the noted nodes before and behind them do.

    Args:
        nodes: A graph's nodes, in order.
    """
    found: dict[ir.Node, int | None] = {}
    layer: int | None = None
    waiting: list[ir.Node] = []
    for node in nodes:
        note = node.metadata_props.get(SCOPES)
        if note is None:
            waiting.append(node)
            continue
        match = re.search(r"\blayers\.(\d+)", " ".join(ast.literal_eval(note)))
        here = int(match.group(1)) if match else None
        found.update(dict.fromkeys(waiting, here if here == layer else None))
        found[node] = layer = here
        waiting.clear()
    found.update(dict.fromkeys(waiting))
    return found
