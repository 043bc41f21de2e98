"""The initializers of a quantized weight's parts have the record's shapes and types, and are made once."""

from __future__ import annotations

import onnx_ir as ir

from lucid_deploy.artifact.quantization import PACKED, SCALES, WHOLE_SCALE, Quantization, QuantizedTensor
from lucid_deploy.export.passes.weight_initializers import WeightInitializers


def test_shapes_and_types() -> None:
    tensors = {"w": QuantizedTensor((6, 64), 16)}
    quantization = Quantization("nvfp4", 4, "qdq", "float", tensors, (), "a tool")
    graph = ir.Graph([], [], nodes=[])
    parts = WeightInitializers(graph, "w", quantization, ir.DataType.FLOAT16)
    made = [parts.get(part) for part in (PACKED, SCALES, WHOLE_SCALE)]
    assert [value.dtype.name for value in made if value.dtype] == ["FLOAT4E2M1", "FLOAT8E4M3FN", "FLOAT"]
    assert [value.shape for value in made] == [(64, 6), (4, 6), ()]
    assert parts.get(PACKED) is made[0] and list(graph.initializers) == ["w.packed", "w.scales", "w.whole_scale"]
    whole = Quantization("int8", 8, "qdq", "float", tensors, (), "a tool")
    assert WeightInitializers(ir.Graph([], [], nodes=[]), "w", whole, ir.DataType.FLOAT16).get(SCALES).dtype.name == (
        "FLOAT16"
    )
