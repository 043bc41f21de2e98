"""Put faults into how an int8 artifact rounds one layer's rows for its cache, or reads them from it."""

import numpy as np
from onnx import helper, numpy_helper


def written(graph, layer, suffix):
    """Return the node that puts new rows into a cache tensor, whether it appends or scatters; they are input 1."""
    node = next(node for node in graph.node if f"present.{layer}.{suffix}" in node.output)
    assert node.op_type in ("Concat", "TensorScatter"), node.op_type
    return node


def maker(graph, name):
    """Return the node that computes a tensor."""
    return next(node for node in graph.node if name in node.output)


def stored_scale(layer, suffix, factor):
    """The numbers are right; the scale written beside them is not."""

    def edit(model, stage):
        graph, node = model.graph, written(model.graph, layer, f"{suffix}_scale")
        graph.initializer.append(numpy_helper.from_array(np.float32(factor), "wrong_factor"))
        scaled = helper.make_node("Mul", [node.input[1], "wrong_factor"], ["wrong_scale"])
        graph.node.insert(list(graph.node).index(node), scaled)
        node.input[1] = "wrong_scale"

    return edit


def read_scale(layer, suffix, factor):
    """The rows are written as they should be; read, they are too small by a factor."""

    def edit(model, stage):
        graph, name = model.graph, f"past_key_values.{layer}.{suffix}_scale"
        node = next(node for node in graph.node if node.op_type == "Mul" and node.input[1] == name)
        graph.initializer.append(numpy_helper.from_array(np.float32(factor), "wrong_factor"))
        scaled = helper.make_node("Mul", [node.input[1], "wrong_factor"], ["wrong_scale"])
        graph.node.insert(list(graph.node).index(node), scaled)
        node.input[1] = "wrong_scale"

    return edit


def coarser_levels(layer, suffix, levels):
    """The scale is the largest magnitude over another number of levels, in numbers and scale alike."""

    def edit(model, stage):
        graph = model.graph
        division = maker(graph, written(graph, layer, f"{suffix}_scale").input[1])
        assert division.op_type == "Div"
        graph.initializer.append(numpy_helper.from_array(np.float32(levels), "wrong_levels"))
        division.input[1] = "wrong_levels"

    return edit


def towards_zero(layer, suffix):
    """Numbers are cut off instead of rounded: a cast to integers does that by itself."""

    def edit(model, stage):
        graph = model.graph
        name = written(graph, layer, suffix).input[1]
        while (node := maker(graph, name)).op_type != "Round":
            assert node.op_type in ("Cast", "Clip"), node.op_type
            name = node.input[0]
        node.op_type = "Identity"

    return edit


def swapped_scales(layer):
    """The scales of K and Y are written in each other's place."""

    def edit(model, stage):
        key, value = (written(model.graph, layer, f"{suffix}_scale") for suffix in ("key", "value"))
        key.input[1], value.input[1] = value.input[1], key.input[1]
        first, second = (list(model.graph.node).index(node) for node in (key, value))
        if first < second:  # what it now needs may be made later
            late = model.graph.node.pop(first)
            model.graph.node.insert(second, late)

    return edit
