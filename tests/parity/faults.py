"""Put faults into an exported artifact: into its weights or its graphs, with a manifest that agrees."""

import hashlib
import json

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lucid_deploy.artifact import MANIFEST, STAGES, WEIGHTS, open_artifact

BROKEN = "ai.lucid.broken"  # domain of an operator that one layer uses in place of the right one


def rehash(directory):
    """Make the manifest agree with what the files are now."""
    path = directory / MANIFEST
    data = json.loads(path.read_text())
    for name, facts in data["files"].items():
        content = (directory / name).read_bytes()
        facts.update(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    path.write_text(json.dumps(data))


def edit_graphs(directory, edit, stages=STAGES):
    """Change graphs: ``edit(model, stage)`` in place."""
    artifact = open_artifact(directory)
    for stage in stages:
        path = artifact.graph_path(stage)
        model = onnx.load(str(path), load_external_data=False)
        edit(model, stage)
        onnx.save(model, str(path))
    rehash(directory)


def weight_places(directory):
    """Return name to (offset, bytes) of the weights, as the decode graph has them."""
    artifact = open_artifact(directory)
    graph = onnx.load(str(artifact.graph_path("decode")), load_external_data=False).graph
    places = {}
    for tensor in graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place:
            places[tensor.name] = (int(place["offset"]), int(place["length"]))
    return places


def change_weight(directory, name, factor=1.01, dtype=np.float32, whole=False):
    """Multiply the largest element of a weight, or all of them."""
    start, size = weight_places(directory)[name]
    data = np.fromfile(directory / WEIGHTS, dtype=np.uint8)
    values = data[start : start + size].view(dtype)
    values[slice(None) if whole else np.abs(values).argmax()] *= dtype(factor)
    data.tofile(directory / WEIGHTS)
    rehash(directory)


def change_row(directory, name, row, factor):
    """Multiply a row of a float32 weight, as the weight file has it."""
    place = next(weight for weight in open_artifact(directory).weights("decode") if weight.name == name)
    values = np.memmap(directory / WEIGHTS, np.float32, "r+", place.offset, place.shape)
    values[row] *= np.float32(factor)
    values.flush()
    del values
    rehash(directory)


def swap_layers(directory, first, second):
    """Exchange the weights of two layers."""
    places = weight_places(directory)
    data = np.fromfile(directory / WEIGHTS, dtype=np.uint8)
    for name, (start, size) in places.items():
        if f".layers.{first}." in name:
            other = places[name.replace(f".layers.{first}.", f".layers.{second}.")][0]
            here, there = data[start : start + size].copy(), data[other : other + size].copy()
            data[start : start + size], data[other : other + size] = there, here
    data.tofile(directory / WEIGHTS)
    rehash(directory)


def rename(graph, old, new):
    """Rename a tensor everywhere inside the main graph."""
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def swap_cache(layer):
    """K and Y leave the graph in each other's place."""

    def edit(model, stage):
        key, value = f"present.{layer}.key", f"present.{layer}.value"
        rename(model.graph, key, "inner_key")
        rename(model.graph, value, "inner_value")
        model.graph.node.append(helper.make_node("Identity", ["inner_key"], [value]))
        model.graph.node.append(helper.make_node("Identity", ["inner_value"], [key]))

    return edit


def normalised_keys(layer):
    """The new rows of K go into the cache normalised; attention and solve use the raw ones."""

    def edit(model, stage):
        graph, key = model.graph, f"present.{layer}.key"
        width = next(v for v in graph.input if v.name == f"past_key_values.{layer}.key").type.tensor_type.shape.dim[3]
        graph.initializer.append(numpy_helper.from_array(np.ones(width.dim_value, np.float32), "unit_scale"))
        rename(graph, key, "raw_key")
        concat = next(node for node in graph.node if "raw_key" in node.output)
        past, new = concat.input
        graph.node.append(helper.make_node("RMSNormalization", [new, "unit_scale"], ["unit_key"], epsilon=1e-5))
        graph.node.append(helper.make_node("Concat", [past, "unit_key"], [key], axis=2))

    return edit


def shifted_rope(layer):
    """One layer rotates by the position after the right one."""

    def edit(model, stage):
        graph = model.graph
        nodes = list(graph.node)
        tables = {node.op_type: node.output[0] for node in nodes if node.op_type in ("Cos", "Sin")}
        angles = next(node for node in nodes if node.op_type == "Cos").input[0]
        product = next(node for node in nodes if angles in node.output)
        position = product.input[0]
        graph.initializer.append(numpy_helper.from_array(np.float32(1), "one_more"))
        made = [
            helper.make_node("Add", [position, "one_more"], ["moved"]),
            helper.make_node("Mul", ["moved", product.input[1]], ["moved_angles"]),
            helper.make_node("Cos", ["moved_angles"], ["moved_Cos"]),
            helper.make_node("Sin", ["moved_angles"], ["moved_Sin"]),
        ]
        users = [node for node in nodes if any(table in node.input for table in tables.values())]
        each = 8  # q and k, two halves, cos and sin
        for node in users[each * layer : each * (layer + 1)]:
            for kind, table in tables.items():
                node.input[:] = [f"moved_{kind}" if name == table else name for name in node.input]
        index = nodes.index(product) + 1
        del graph.node[:]
        graph.node.extend([*nodes[:index], *made, *nodes[index:]])

    return edit


def broken_operator(layer, name, change):
    """One layer uses its own copy of an operator's body, changed by ``change(function)``."""

    def edit(model, stage):
        nodes = [node for node in model.graph.node if node.op_type == name]
        if not nodes:
            return
        function = onnx.FunctionProto()
        function.CopyFrom(next(f for f in model.functions if f.name == name))
        function.domain = nodes[layer].domain = BROKEN
        change(function)
        model.functions.append(function)
        model.opset_import.append(helper.make_opsetid(BROKEN, 1))

    return edit


def low_precision_e(function):
    """Round every exponential of keys with keys to bfloat16."""
    _round_exponentials(function.node, {"tmp_1"})  # that one is the constant factor exp(−√d)


def _round_exponentials(nodes, skipped):
    kept = list(nodes)
    del nodes[:]
    for node in kept:
        for attribute in node.attribute:
            if attribute.g.node:
                _round_exponentials(attribute.g.node, skipped)
        if node.op_type != "Exp" or node.input[0] in skipped:
            nodes.append(node)
            continue
        result = node.output[0]
        node.output[0] = f"{result}_exact"
        nodes.append(node)
        nodes.append(helper.make_node("Cast", [f"{result}_exact"], [f"{result}_low"], to=TensorProto.BFLOAT16))
        nodes.append(helper.make_node("Cast", [f"{result}_low"], [result], to=TensorProto.FLOAT))


def diagonal(value):
    """L has ``value`` on its diagonal: merging starts from blocks ``1 / value``."""

    def change(function):
        start = next(node for node in function.node if node.op_type == "Sub" and node.output[0] == "inverse")
        identity, below = start.input
        scales = {"per_row": 1 / value, "per_pair": 1 / value**2}
        made = [
            helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.float32(number)))
            for name, number in scales.items()
        ]
        made.append(helper.make_node("Mul", [identity, "per_row"], ["start_identity"]))
        made.append(helper.make_node("Mul", [below, "per_pair"], ["start_below"]))
        start.input[:] = ["start_identity", "start_below"]
        nodes = list(function.node)
        index = nodes.index(start)
        del function.node[:]
        function.node.extend([*nodes[:index], *made, *nodes[index:]])

    return change
