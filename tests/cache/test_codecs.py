"""How PyTorch stores K and Y: as numpy does, number for number."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lucid_deploy.cache.codecs import CacheCodec, Float8Codec, Int8Codec, codec_for
from lucid_deploy.cache.storage import cache_tensors, decode_layer, encode_layer
from tests.cache.rows import rows_far_apart


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.view(torch.uint8) if tensor.dtype == torch.float8_e4m3fn else tensor).numpy()


@pytest.mark.parametrize("cache_dtype", ["int8", "fp8", "float16"])
def test_it_stores_and_reads_what_numpy_does(cache_dtype: str) -> None:
    rows = np.clip(rows_far_apart(), -6e4, 6e4) if cache_dtype == "float16" else rows_far_apart()
    codec, layout = codec_for(cache_dtype, torch.float32), cache_tensors(cache_dtype, *rows.shape[1::2])
    stored = codec.encode(torch.from_numpy(rows), torch.from_numpy(-rows))
    wanted = encode_layer((rows, -rows), layout)
    assert not codec.exact
    for ours, theirs in zip(stored, wanted, strict=True):
        np.testing.assert_array_equal(as_numpy(ours), theirs)
    for ours, theirs in zip(codec.decode(stored, torch.float32), decode_layer(wanted, layout), strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs)


def test_a_cache_in_the_models_type_is_left_alone() -> None:
    k, y = torch.randn(2, 3, 5, 8).half(), torch.randn(2, 3, 5, 8).half()
    codec = codec_for("float16", torch.float16)
    assert type(codec) is type(codec_for("float32", torch.float32)) is CacheCodec and codec.exact
    assert codec.encode(k, y) == (k, y) == codec.decode((k, y), torch.float16)


def test_a_half_precision_models_int8_rows_are_multiplied_out_in_float32() -> None:
    """Scales that float16 lacks must not become zero on the way."""
    rows = torch.full((1, 1, 1, 4), 6e-8).half()
    rows[..., 0] = 6e-6
    k, _ = Int8Codec().decode(Int8Codec().encode(rows, rows), torch.float16)
    assert k.dtype == torch.float16
    assert (k - rows).abs().max() <= 6e-6 / 127


def test_rows_that_fp8_cannot_hold_are_stored_as_numpy_does() -> None:
    rows = torch.tensor([[1, torch.nan, 2], [torch.inf, 1, 0], [1, -1, 0], [6e4, 1, -7e4], [3e38, 1e-45, -1]])
    rows = torch.cat([rows, torch.tensor([671.0, 1, -671])[None] * 2.0**-149])[None, None]
    layout, codec = cache_tensors("fp8", 1, 3), Float8Codec()
    wanted = decode_layer(encode_layer((rows.numpy(), rows.numpy()), layout), layout)
    for ours, theirs in zip(codec.decode(codec.encode(rows, rows), torch.float32), wanted, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs)
