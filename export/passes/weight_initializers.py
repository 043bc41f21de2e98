"""The initializers of a quantized weight's parts."""

from __future__ import annotations

import onnx_ir as ir

from lucid_deploy.artifact.quantization import Quantization


class WeightInitializers:
    """The initializers of one weight, made without data when they are first asked for.

    Attributes:
        name: The weight's name in the checkpoint.
        quantization: The record.
        tensor: The weight's part of it.
        dtype: The type that the weight had in the graph.
    """

    def __init__(self, graph: ir.Graph, name: str, quantization: Quantization, dtype: ir.DataType) -> None:
        self.name, self.quantization, self.tensor = name, quantization, quantization.tensors[name]
        self._graph, self.dtype = graph, dtype

    def get(self, part: str) -> ir.Value:
        """Return the initializer of a part."""
        name = self.name + part
        if name not in self._graph.initializers:
            kind = self.quantization.part_dtype(self.name, part, self.dtype.name.lower()).upper()
            shape = ir.Shape(self.quantization.part_shape(self.name, part))
            dtype = ir.DataType.FLOAT if kind == "FLOAT32" else ir.DataType[kind]
            self._graph.initializers[name] = ir.Value(name=name, shape=shape, type=ir.TensorType(dtype))
        return self._graph.initializers[name]
