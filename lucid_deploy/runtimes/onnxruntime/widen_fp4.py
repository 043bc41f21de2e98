"""Let onnxruntime read weights of NVFP4: its CPU has no kernel for E2M1, and every number of E2M1 is one of E4M3.

Nothing is rounded: the graph's ``DequantizeLinear`` gives the same weights, from numbers of twice the bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lucid_deploy.artifact.external_data import stored_weights
from lucid_deploy.artifact.quantized_bytes import E2M1, E4M3

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

_CODES = np.array([np.flatnonzero((value == E4M3) & (np.signbit(value) == np.signbit(E4M3)))[0] for value in E2M1])
_CODES = _CODES.astype(np.uint8)  # of E4M3, by the code of E2M1


def has_fp4(model: onnx.ModelProto) -> bool:
    """Whether a graph has weights in E2M1."""
    import onnx

    return any(tensor.data_type == onnx.TensorProto.FLOAT4E2M1 for tensor in model.graph.initializer)


def retype_fp4(model: onnx.ModelProto, weights: Path | None = None) -> None:
    """Declare weights in E2M1 as E4M3, changing a graph in place."""
    import onnx

    places = {weight.name: weight for weight in stored_weights(model)}
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT4E2M1:
            continue
        tensor.data_type = onnx.TensorProto.FLOAT8E4M3FN
        if weights is not None:
            place = places[tensor.name]
            packed = np.fromfile(weights, np.uint8, place.size, offset=place.offset)
            tensor.ClearField("external_data")
            tensor.data_location = onnx.TensorProto.DEFAULT
            tensor.raw_data = widened(packed, int(np.prod(place.shape))).tobytes()


def widened(packed: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Return codes of E4M3 for ``count`` codes of E2M1, which lie two in a byte, the lower half first."""
    halves = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1)[:count]
    found: NDArray[np.uint8] = _CODES[halves]
    return found
