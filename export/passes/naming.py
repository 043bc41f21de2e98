"""Layers of a traced graph's nodes, and stable names for axes, nodes and values."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import onnx_ir as ir

SCOPES = "pkg.torch.onnx.name_scopes"  # metadata key: the modules in which a node was traced


def layers_of(nodes: Iterable[ir.Node]) -> dict[ir.Node, int | None]:
    """Return the index of the layer of each node; None for nodes outside all layers.

    The tracer records no scope for a few nodes (operators with several outputs). Such a node belongs to a layer if the
    nearest nodes with a scope before and after it both do.
    """
    found: dict[ir.Node, int | None] = {}
    layer: int | None = None
    waiting: list[ir.Node] = []
    for node in nodes:
        scope = node.metadata_props.get(SCOPES)
        if scope is None:
            waiting.append(node)
            continue
        match = re.search(r"\blayers\.(\d+)", " ".join(ast.literal_eval(scope)))
        here = int(match.group(1)) if match else None
        found.update(dict.fromkeys(waiting, here if here == layer else None))
        found[node] = layer = here
        waiting.clear()
    found.update(dict.fromkeys(waiting))
    return found


def name_axes(model: ir.Model, input_axes: dict[str, Sequence[int | str]]) -> None:
    """Rename the tracer's symbolic dimensions in all shapes after the inputs' axes, in place.

    Requires: ``input_axes`` has the size or name of each axis of every graph input.
    Result: the inputs have exactly these shapes; other values' shapes use the same names, also within expressions.
    """
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        wanted = input_axes[str(value.name)]
        for old, new in zip(value.shape or (), wanted, strict=True):
            if isinstance(old, ir.SymbolicDim) and re.fullmatch(r"\w+", str(old.value)):
                names[str(old.value)] = str(new)
        value.shape = ir.Shape(wanted)
    inputs = set(model.graph.inputs)
    for value in _values(model.graph):
        if value.shape is not None and value not in inputs:
            value.shape = ir.Shape([_rename(dim, names) for dim in value.shape])


def _rename(dim: int | ir.SymbolicDim, names: dict[str, str]) -> int | str | None:
    if isinstance(dim, int):
        return dim
    if dim.value is None:
        return None
    return re.sub(r"[A-Za-z_]\w*", lambda match: names.get(match.group(), match.group()), str(dim.value))


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph.all_nodes():
        yield from node.outputs


def name_values(model: ir.Model, layers: Mapping[ir.Node, int | None], kept: Collection[str]) -> None:
    """Name nodes and intermediate values by layer and operator instead of the tracer's counters, in place.

    Requires: inputs, outputs and the weights named in ``kept`` have their final names.
    Result: the third ``MatMul`` of layer 5 is ``layers.5/MatMul_2``, whatever the model's depth and tracer's version.
        A node's second output has the suffix ``.1``. Constants are numbered in the order in which they are read.
    """
    graph = model.graph
    fixed = {*graph.inputs, *graph.outputs, *(value for value in graph.initializers.values() if value.name in kept)}
    seen: Counter[str] = Counter()
    constants: dict[ir.Value, None] = {}
    for node in graph:
        layer = layers.get(node)
        scope = node.op_type if layer is None else f"layers.{layer}/{node.op_type}"
        node.name = f"{scope}_{seen[scope]}"
        seen[scope] += 1
        for place, value in enumerate(node.outputs):
            if value not in fixed:
                value.name = node.name if place == 0 else f"{node.name}.{place}"
        constants.update((value, None) for value in node.inputs if value is not None and value.is_initializer())
    for number, value in enumerate(value for value in constants if value not in fixed):
        graph.initializers.pop(str(value.name))
        value.name = f"constant_{number}"
        assert value.const_value is not None
        value.const_value.name = value.name
        graph.initializers[value.name] = value
