"""Rows in the types of the cache, in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_deploy.artifact.quantized_bytes import E4M3
from lucid_deploy.cache.layout import CacheTensor
from lucid_deploy.cache.storage import (
    E4M3_MAX,
    cache_tensors,
    check_arrays,
    decode_layer,
    encode_layer,
    resolve_cache_dtype,
)
from lucid_deploy.errors import LucidError
from tests.cache.rows import rows_far_apart

HALF_STEP = 0.5 / 127  # largest rounding error of a value in int8, relative to its row's largest


def test_rows_are_rounded_by_their_own_scale() -> None:
    rows = rows_far_apart()
    layout = cache_tensors("int8", *rows.shape[1::2])
    stored = encode_layer((rows, -rows), layout)
    assert [str(array.dtype) for array in stored] == ["int8", "int8", "float32", "float32"]
    k, y = decode_layer(stored, layout)
    largest = np.abs(rows).max(-1, keepdims=True)
    assert (np.abs(k - rows) <= HALF_STEP * 1.001 * largest + 1e-40).all()
    assert np.array_equal(y, -k) and (k[0, 0, 0] == 0).all()
    assert stored[0].min() == -127 and stored[0].max() == 127


def test_rows_of_fp8_are_the_nearest_numbers_of_e4m3_by_their_own_scale() -> None:
    rows = rows_far_apart()
    layout = cache_tensors("fp8", *rows.shape[1::2])
    assert [tensor.dtype for tensor in layout] == ["float8_e4m3fn", "float8_e4m3fn", "float32", "float32"]
    stored = encode_layer((rows, -rows), layout)
    assert [str(array.dtype) for array in stored] == ["uint8", "uint8", "float32", "float32"]
    k, y = decode_layer(stored, layout)
    shares = np.divide(rows, stored[2], out=np.zeros_like(rows), where=stored[2] > 0).astype(np.float64)
    finite = E4M3[np.isfinite(E4M3)].astype(np.float64)
    nearest = np.abs(shares[..., None] - finite).min(-1)  # to any of the 253 numbers
    assert (np.abs(E4M3[stored[0]] - shares) <= nearest * (1 + 1e-6)).all()
    assert np.array_equal(y, -k) and (k[0, 0, 0] == 0).all()
    assert (np.abs(E4M3[stored[0]]).max(-1) == E4M3_MAX)[np.abs(rows).max(-1) > 1e-30].all()


def test_rows_of_fp8_that_are_not_finite_stay_so_and_tiny_ones_are_held_at_the_largest_number() -> None:
    least = float(np.finfo(np.float32).smallest_subnormal)
    rows = np.array([[1, np.nan, 2], [np.inf, 1, 0], [-np.inf, np.inf, 3], [671, 1, -671], [1, -1, 0], [6e4, 1, -7e4]])
    rows[3:5] *= least  # scales of 1.5 and of 0.002 steps: one rounds down and one to nothing
    layout = cache_tensors("fp8", 1, 3)
    stored = encode_layer((rows[None, None], rows[None, None]), layout)
    for decoded in decode_layer(stored, layout):
        assert not np.isfinite(decoded[0, 0, :3]).any() and np.isfinite(decoded[0, 0, 3:]).all()
        np.testing.assert_array_equal(decoded[0, 0, 3], np.float32([448 * least, least, -448 * least]))
        np.testing.assert_array_equal(decoded[0, 0, 4], 0)
        np.testing.assert_allclose(decoded[0, 0, 5], rows[5], rtol=1 / 16, atol=7e4 / 448 * 2**-10)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_float_types_round_as_numpy_does(dtype: str) -> None:
    rows = np.random.default_rng(0).standard_normal((2, 3, 5, 16))
    layout = cache_tensors(dtype, 3, 16)
    stored = encode_layer((rows, 2 * rows), layout)
    kind = "float32" if dtype == "bfloat16" else dtype  # numpy has none: the values are those of bfloat16 already
    decoded = decode_layer(stored, layout)
    for array, given, meant in zip(stored, (rows, 2 * rows), decoded, strict=True):
        np.testing.assert_array_equal(array, given.astype(kind))
        assert array.flags.c_contiguous and meant.dtype == (np.float64 if dtype == "float64" else np.float32)
        np.testing.assert_array_equal(meant, array)


def test_what_is_stored_is_stored_again_as_it_is() -> None:
    """Saving and loading a cache over and over loses nothing."""
    rows = rows_far_apart()
    for dtype in ("int8", "fp8", "float16", "float32"):
        layout = cache_tensors(dtype, *rows.shape[1::2])
        values = np.clip(rows, -6e4, 6e4)
        once = decode_layer(encode_layer((values, -values), layout), layout)
        again = decode_layer(encode_layer(once, layout), layout)
        for first, second in zip(once, again, strict=True):
            np.testing.assert_allclose(second, first, rtol=1e-6, atol=1e-44)


def test_types_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(LucidError, match="bfloat16 model keeps"):
        resolve_cache_dtype("int8", "bfloat16")
    with pytest.raises(LucidError, match="cache dtype must be auto, float16, int8, fp8"):
        resolve_cache_dtype("int4", "float32")
    assert [item.name for item in cache_tensors("int8", 2, 8)] == ["key", "value", "key_scale", "value_scale"]
    assert [resolve_cache_dtype(*pair) for pair in (("auto", "bfloat16"), ("int8", "float16"))] == ["bfloat16", "int8"]
    assert resolve_cache_dtype("fp8", "bfloat16") == "fp8"


def test_arrays_of_another_model_are_named() -> None:
    layout = (cache_tensors("int8", 2, 4), (CacheTensor("recurrent_state", "float32", (2, 3, 5), "state"),))
    rows, state = np.zeros((1, 2, 6, 4)), np.zeros((1, 2, 3, 5))
    check_arrays([(rows, rows), (state,)], layout, 1, 6)  # without the scales
    for given, said in (
        ([(rows, rows)], "has 1 layers, this model 2"),
        ([(rows, rows), (state, state)], "Layer 1 of the given cache has 2 tensors, this model caches recurrent_state"),
        ([(rows, rows[:, :1]), (state,)], r"value of layer 0 in the given cache has shape \(1, 1, 6, 4\)"),
        ([(rows, rows), (state[..., :4],)], r"recurrent_state of layer 1 .* shape \(1, 2, 3, 4\), .* \(1, 2, 3, 5\)"),
    ):
        with pytest.raises(LucidError, match=said):
            check_arrays(given, layout, 1, 6)
