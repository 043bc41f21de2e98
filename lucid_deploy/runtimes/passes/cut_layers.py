"""Add a graph's residual stream and V to its outputs and, to run layers one by one, add inputs for each layer."""

from __future__ import annotations

import re

import onnx

from lucid_deploy.errors import CheckFailed
from lucid_deploy.plugins.table import DECODE_ATTENTION, PRECONDITION

RESIDUAL = "residual.{}"  # output: the residual stream after the embedding (0) and after layer i (i + 1)
GIVEN = "given.{}"  # input, with cut: what layer i reads; with i = number of layers, what the final norm reads
VALUES = "values.{}"  # output: V of the new tokens in the i-th layer that solves, before the solve
# The index of V among an operator's inputs.
VALUE_INPUT = {each.name: each.place(name) for each, name in ((PRECONDITION, "V"), (DECODE_ATTENTION, "V_new"))}
_NORM = re.compile(r"model\.layers\.(\d+)\.input_layernorm\.weight")
_FINAL_NORM = "model.norm.weight"
# Operators that select the last token before the final norm; the first of them reads the residual stream.
_LAST_TOKEN = ("Cast", "Gather", "GatherElements", "GatherND", "Reshape", "Slice", "Unsqueeze")


def cut_layers(model: onnx.ModelProto, layers: int, cut: bool) -> None:
    """Add the outputs ``residual.i`` and ``values.i`` and, with ``cut``, the inputs ``given.i``.

    Requires: the norm before each layer reads a weight of the checkpoint's name, directly or through casts, and has
    the residual stream as its other input, directly or through a cast; a layer's residual stream is one tensor of the
    main graph. ``values.i`` is V of the i-th operator with the preconditioner, from 0; standard attention has none.
    Modifies the graph in place; types and weights stay. Raises CheckFailed if it does not find one of the norms.
    """
    graph = model.graph
    streams = _residual_streams(graph, layers)
    operators = [node for node in graph.node if node.op_type in VALUE_INPUT]
    types = _element_types(model)
    if any(stream not in types for stream in streams):
        types = _element_types(onnx.shape_inference.infer_shapes(model))
    for index, stream in enumerate(streams):
        kind = types[stream]
        shape = ["batch", "sequence", "hidden"]
        if cut:
            given = GIVEN.format(index)
            for node in graph.node:
                for place, name in enumerate(node.input):
                    if name == stream:
                        node.input[place] = given
            graph.input.append(onnx.helper.make_tensor_value_info(given, kind, shape))
        _add_output(graph, stream, RESIDUAL.format(index), kind)
    for index, node in enumerate(operators):
        values = node.input[VALUE_INPUT[node.op_type]]
        _add_output(graph, values, VALUES.format(index), types.get(values, 0))


def _residual_streams(graph: onnx.GraphProto, layers: int) -> list[str]:
    """Return the names of the tensors that the layers and the final norm read."""
    producers = {name: node for node in graph.node for name in node.output}
    found: dict[int, str] = {}
    weights = {item.name for item in graph.initializer}
    for node in graph.node:
        if node.op_type == "Cast" or len(node.input) < 2:
            continue
        for place, name in enumerate(node.input):
            source = _through(name, producers)
            match = _NORM.fullmatch(source)
            if source not in weights or not (match or source == _FINAL_NORM):
                continue
            index = int(match[1]) if match else layers
            stream = node.input[0 if place else 1]
            found[index] = _through(stream, producers, ("Cast",) if match else _LAST_TOKEN)
    missing = [index for index in range(layers + 1) if index not in found]
    if missing:
        raise CheckFailed(
            f"The graph has no norm with the weight of layer {missing[0]}, so its layers cannot be separated."
            if missing[0] < layers
            else f"The graph has no norm with the weight {_FINAL_NORM}, so its head cannot be separated."
        )
    return [found[index] for index in range(layers + 1)]


def _through(name: str, producers: dict[str, onnx.NodeProto], operators: tuple[str, ...] = ("Cast",)) -> str:
    """Go back from a tensor through nodes of these operators, and return the first node's input."""
    while name in producers and producers[name].op_type in operators:
        name = producers[name].input[0]
    return name


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    graph = model.graph
    values = [*graph.value_info, *graph.input, *graph.output]
    return {value.name: value.type.tensor_type.elem_type for value in values}


def _add_output(graph: onnx.GraphProto, source: str, name: str, kind: int) -> None:
    """Add an output of this name and element type that is a copy of the tensor ``source``."""
    graph.node.append(onnx.helper.make_node("Identity", [source], [name], name=f"show_{name}"))
    graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
