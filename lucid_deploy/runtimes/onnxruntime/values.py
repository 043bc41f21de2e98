"""Arrays as onnxruntime's tensors, among them those of E4M3, which numpy does not know."""

from __future__ import annotations

from typing import Any

import numpy as np

from lucid_deploy.ort import import_onnxruntime

Array = np.ndarray[Any, np.dtype[Any]]


def ort_value(array: Array, dtype: str | None = None) -> Any:
    """Return a tensor on the CPU that keeps an array, or a contiguous copy of it, and shares its memory.

    What ``numpy()`` of the tensor gives is that memory too: it must not outlive the tensor.

    Args:
        array: Its numbers; of ``float8_e4m3fn`` the codes, a byte each.
        dtype: The tensor's type; None: that of the array.
    """
    import onnx

    ort = import_onnxruntime()
    array = np.ascontiguousarray(array)
    if (dtype or array.dtype.name) == "float8_e4m3fn":
        kind = onnx.TensorProto.FLOAT8E4M3FN
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint8), kind)
    return ort.OrtValue.ortvalue_from_numpy(array)
