"""Weights in E4M3 and NVFP4 before a product, and inputs that are rounded to E4M3, in standard operators.

The forms are those that NVIDIA's ModelOpt writes for TensorRT: ``DequantizeLinear`` of a weight, and for NVFP4 another
one before it, which turns the blocks' scales into float32. Scales are float32, whatever the model's type, so that they
are never rounded; the weight is then cast.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from lucid_deploy.artifact.float_formats import E4M3_MAX
from lucid_deploy.artifact.quantization import (
    GROUP_FP8,
    INPUT_SCALE,
    PACKED,
    SCALES,
    STATIC_FP8,
    WHOLE_SCALE,
    Quantization,
)
from lucid_deploy.export.passes.weight_initializers import WeightInitializers

_FP8 = ir.DataType.FLOAT8E4M3FN
_LEAST = 2.0**-126  # a scale of zeros, that 0 / scale be 0


def dequantized_floats(graph: ir.Graph, node: ir.Node, weight: ir.Value, parts: WeightInitializers) -> ir.Value:
    """Put nodes before a product that make its weight of the parts; return the weight.

    Args:
        graph: Where the product is.
        node: The product.
        weight: What it reads now, ``[in, out]``.
        parts: The weight's initializers.
    """
    nodes = _Chain(parts.name)
    scales = parts.get(SCALES)
    attributes: dict[str, Any] = {"axis": 0, "block_size": parts.tensor.block_size}
    if parts.quantization.scheme == "nvfp4":
        scales = nodes.add("DequantizeLinear", [scales, parts.get(WHOLE_SCALE)], "block_scales")
    elif parts.tensor.granularity != "block":
        attributes = {"axis": 1} if parts.tensor.granularity == "channel" else {}
    made = nodes.add("DequantizeLinear", [parts.get(PACKED), scales], "dequantized", attributes)
    made = nodes.cast(made, parts.dtype, "cast")
    made.shape = weight.shape
    graph.insert_before(node, nodes.nodes)
    return made


class RoundedInputs:
    """Rounds the inputs of products as a record says; those that several products read are rounded once.

    Args:
        graph: The graph, changed in place.
        quantization: The record.
    """

    def __init__(self, graph: ir.Graph, quantization: Quantization) -> None:
        self._graph, self._quantization = graph, quantization
        self._made: dict[ir.Value, ir.Value] = {}

    def round(self, node: ir.Node, parts: WeightInitializers) -> None:
        """Let a product read its input rounded, if the record says so."""
        if not self._quantization.rounds_inputs:
            return
        value = node.inputs[0]
        assert value is not None
        if self._quantization.activations == STATIC_FP8:
            node.replace_input_with(0, self._static(value, parts))
            return
        if value not in self._made:
            self._made[value] = self._dynamic(value, parts)
        node.replace_input_with(0, self._made[value])

    def _static(self, value: ir.Value, parts: WeightInitializers) -> ir.Value:
        """Rounded with the scale that is stored for this weight."""
        nodes = _Chain(f"{parts.name}.input")
        scale = parts.get(INPUT_SCALE)
        wide = nodes.cast(value, ir.DataType.FLOAT, "wide")
        numbers = nodes.add("QuantizeLinear", [wide, scale], "numbers", {"output_dtype": int(_FP8)}, _FP8)
        rounded = nodes.add("DequantizeLinear", [numbers, scale], "rounded")
        return self._put(nodes, value, nodes.cast(rounded, parts.dtype, "cast"))

    def _dynamic(self, value: ir.Value, parts: WeightInitializers) -> ir.Value:
        """Rounded with the largest magnitude / 448 of each token, or of each group of a token's inputs."""
        nodes, size = _Chain(f"{parts.name}.input"), self._quantization.input_block
        wide = nodes.cast(value, ir.DataType.FLOAT, "wide")
        grouped = self._quantization.activations == GROUP_FP8
        if grouped:
            assert value.shape is not None and size is not None
            wide = nodes.add("Reshape", [wide, self._constant([0] * (len(value.shape) - 1) + [-1, size])], "groups")
        magnitudes = nodes.add("Abs", [wide], "magnitudes")
        largest = nodes.add("ReduceMax", [magnitudes, self._constant([-1])], "largest", {"keepdims": 1})
        scale = nodes.add("Div", [largest, self._constant(E4M3_MAX)], "steps")
        scale = nodes.add("Max", [scale, self._constant(_LEAST)], "scale")
        scaled = nodes.add("Div", [wide, scale], "scaled")
        numbers = nodes.add("Cast", [scaled], "numbers", {"to": int(_FP8), "saturate": 1}, _FP8)
        numbers = nodes.cast(numbers, ir.DataType.FLOAT, "widened")
        rounded = nodes.add("Mul", [numbers, scale], "rounded")
        if grouped:
            width = parts.tensor.shape[1]
            assert value.shape is not None
            rounded = nodes.add("Reshape", [rounded, self._constant([0] * (len(value.shape) - 1) + [width])], "joined")
        return self._put(nodes, value, nodes.cast(rounded, parts.dtype, "cast"))

    def _put(self, nodes: _Chain, value: ir.Value, made: ir.Value) -> ir.Value:
        producer = value.producer()
        if producer is None:  # an input of the graph
            self._graph.insert_before(self._graph[0], nodes.nodes)
        else:
            self._graph.insert_after(producer, nodes.nodes)
        made.shape = value.shape
        return made

    def _constant(self, content: float | list[int]) -> ir.Value:
        """Return an initializer of small content, the same one for the same content."""
        array = np.array(content, np.int64 if isinstance(content, list) else np.float32)
        name = "fp8_" + "_".join(f"{number:g}" for number in array.reshape(-1).tolist())
        if name not in self._graph.initializers:
            tensor = ir.tensor(array, name=name)
            value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
            self._graph.register_initializer(value)
        return self._graph.initializers[name]


class _Chain:
    """Nodes that follow each other, named after a weight."""

    def __init__(self, name: str) -> None:
        self._name, self.nodes = name, list[ir.Node]()

    def add(
        self,
        operator: str,
        inputs: list[ir.Value],
        suffix: str,
        attributes: dict[str, Any] | None = None,
        dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> ir.Value:
        node = ir.node(operator, inputs, attributes=attributes or {}, name=f"{self._name}.{suffix}_node")
        node.outputs[0].name, node.outputs[0].type = f"{self._name}.{suffix}", ir.TensorType(dtype)
        self.nodes.append(node)
        return node.outputs[0]

    def cast(self, value: ir.Value, dtype: ir.DataType, suffix: str) -> ir.Value:
        """Return a value in another type; itself if it has it."""
        return value if value.dtype == dtype else self.add("Cast", [value], suffix, {"to": int(dtype)}, dtype)
