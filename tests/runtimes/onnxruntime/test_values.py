"""Arrays become onnxruntime's tensors in their own type, and codes of E4M3 tensors of that type."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from lucid_deploy.runtimes.onnxruntime.values import ort_value


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, np.int64, bool])
def test_arrays_keep_their_type(dtype: type) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)[:, ::2]
    value = ort_value(array)
    np.testing.assert_array_equal(value.numpy(), array)
    assert value.element_type() == onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def test_codes_of_e4m3_come_with_their_type_or_are_said_to_be_some() -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(1, 2, 2, 64)
    numbers = codes.view(onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.FLOAT8E4M3FN))
    for value in (ort_value(codes, "float8_e4m3fn"), ort_value(numbers), ort_value(codes[:, :, :0], "float8_e4m3fn")):
        assert value.element_type() == onnx.TensorProto.FLOAT8E4M3FN
    value = ort_value(numbers)
    np.testing.assert_array_equal(value.numpy(), codes)
