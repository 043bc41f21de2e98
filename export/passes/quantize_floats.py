"""Dequantize weights in E4M3 and NVFP4, and round the inputs of ``MatMul`` to E4M3, with standard operators.

The nodes are those that NVIDIA's ModelOpt writes for TensorRT: ``DequantizeLinear`` of a weight, and for NVFP4 another
one before it that converts the blocks' scales to float32. They dequantize in float32 whatever the model's dtype, so
that no scale is rounded to that dtype; the dequantized weight is cast to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from lucid_deploy.artifact.quantization import (
    GROUP_FP8,
    INPUT_SCALE,
    PACKED,
    SCALES,
    STATIC_FP8,
    WHOLE_SCALE,
    Quantization,
)
from lucid_deploy.cache.storage import E4M3_MAX
from lucid_deploy.export.passes.editing import NodeChain, constant, integers

if TYPE_CHECKING:
    from lucid_deploy.export.passes.quantize_weights import WeightInitializers

_FP8 = ir.DataType.FLOAT8E4M3FN
_MIN_SCALE = 2.0**-126  # scale of an all-zero input, so that 0 / scale is 0


def dequantize_float_weight(graph: ir.Graph, node: ir.Node, weight: ir.Value, parts: WeightInitializers) -> ir.Value:
    """Insert nodes before a ``MatMul`` that dequantize its weight ``[in, out]``; return the dequantized weight."""
    chain = NodeChain(parts.name)
    scales = parts.get(SCALES)
    attributes: dict[str, Any] = {"axis": 0, "block_size": parts.tensor.block_size}
    if parts.quantization.scheme == "nvfp4":
        scales = chain.add("DequantizeLinear", [scales, parts.get(WHOLE_SCALE)], "block_scales")
    elif parts.tensor.granularity != "block":
        attributes = {"axis": 1} if parts.tensor.granularity == "channel" else {}
    dequantized = chain.add("DequantizeLinear", [parts.get(PACKED), scales], "dequantized", attributes)
    dequantized = chain.cast(dequantized, parts.dtype, "cast")
    dequantized.shape = weight.shape
    graph.insert_before(node, chain.nodes)
    return dequantized


class InputRounding:
    """Round the inputs of a graph's ``MatMul`` nodes to E4M3, as the quantization record specifies.

    An input that several nodes read is rounded once; with static scales, once per weight, since each has its own scale.
    """

    def __init__(self, graph: ir.Graph, quantization: Quantization) -> None:
        self._graph, self._quantization = graph, quantization
        self._rounded: dict[ir.Value, ir.Value] = {}

    def apply(self, node: ir.Node, parts: WeightInitializers) -> None:
        """Make a ``MatMul`` read its rounded input, if the record specifies rounding."""
        if not self._quantization.rounds_inputs:
            return
        value = node.inputs[0]
        assert value is not None
        if self._quantization.activations == STATIC_FP8:
            rounded = self._round_static(value, parts)
        else:
            if value not in self._rounded:
                self._rounded[value] = self._round_dynamic(value, parts)
            rounded = self._rounded[value]
        node.replace_input_with(0, rounded)

    def _round_static(self, value: ir.Value, parts: WeightInitializers) -> ir.Value:
        """Round with the static scale that is stored for this weight."""
        chain, scale = NodeChain(f"{parts.name}.input"), parts.get(INPUT_SCALE)
        wide = chain.cast(value, ir.DataType.FLOAT, "wide")
        codes = chain.add("QuantizeLinear", [wide, scale], "codes", {"output_dtype": int(_FP8)}, _FP8)
        rounded = chain.add("DequantizeLinear", [codes, scale], "rounded")
        return self._insert(chain, value, chain.cast(rounded, parts.dtype, "cast"))

    def _round_dynamic(self, value: ir.Value, parts: WeightInitializers) -> ir.Value:
        """Round with the scale (largest magnitude / 448) of each token, or of each group of a token's inputs."""
        chain, size = NodeChain(f"{parts.name}.input"), self._quantization.input_block
        grouped = self._quantization.activations == GROUP_FP8
        wide = chain.cast(value, ir.DataType.FLOAT, "wide")
        if grouped:
            assert size is not None
            wide = chain.add("Reshape", [wide, self._last_axes(value, -1, size)], "groups")  # (…, groups, size)
        magnitudes = chain.add("Abs", [wide], "magnitudes")
        last_axis = integers(self._graph, "fp8_last_axis", -1)
        largest = chain.add("ReduceMax", [magnitudes, last_axis], "largest", {"keepdims": 1})
        scale = chain.add("Div", [largest, self._number(E4M3_MAX)], "steps")
        scale = chain.add("Max", [scale, self._number(_MIN_SCALE)], "scale")
        scaled = chain.add("Div", [wide, scale], "scaled")
        codes = chain.add("Cast", [scaled], "codes", {"to": int(_FP8), "saturate": 1}, _FP8)
        codes = chain.cast(codes, ir.DataType.FLOAT, "widened")
        rounded = chain.add("Mul", [codes, scale], "rounded")
        if grouped:
            rounded = chain.add("Reshape", [rounded, self._last_axes(value, parts.tensor.shape[1])], "joined")
        return self._insert(chain, value, chain.cast(rounded, parts.dtype, "cast"))

    def _insert(self, chain: NodeChain, value: ir.Value, rounded: ir.Value) -> ir.Value:
        chain.insert_behind(self._graph, value)
        rounded.shape = value.shape
        return rounded

    def _last_axes(self, value: ir.Value, *sizes: int) -> ir.Value:
        """Return the shape initializer for a ``Reshape`` that splits a value's last axis into axes of these sizes."""
        assert value.shape is not None
        shape = [0] * (len(value.shape) - 1) + [*sizes]  # 0: the value's own size
        return integers(self._graph, "fp8_shape_" + "_".join(map(str, shape)), *shape)

    def _number(self, value: float) -> ir.Value:
        return constant(self._graph, f"fp8_{value:g}", np.array(value, np.float32))
