"""The record of one quantized weight comes back as it was, or is refused."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from lucid_deploy.artifact.quantized_tensor import QuantizedTensor


@pytest.mark.parametrize("width", [1, 31, 32, 33, 256])
def test_the_last_block_of_a_row_may_be_shorter(width: int) -> None:
    blocks = QuantizedTensor((3, width), 32).blocks
    assert 32 * (blocks - 1) < width <= 32 * blocks


@pytest.mark.parametrize(
    ("tensor", "scheme", "form"),
    [
        (QuantizedTensor((5, 64), 32, zero_points=True, bits=8), "int4", "matmulnbits"),
        (QuantizedTensor((5, 64), 64, granularity="channel"), "fp8", "qdq"),
        (QuantizedTensor((5, 64), 16), "nvfp4", "qdq"),
    ],
)
def test_it_comes_back(tensor: QuantizedTensor, scheme: str, form: str) -> None:
    assert QuantizedTensor.from_dict("w", asdict(tensor), scheme, form) == tensor


@pytest.mark.parametrize(
    ("change", "scheme", "form"),
    [
        ({"block_size": 24}, "int4", "matmulnbits"),
        ({"block_size": 32}, "nvfp4", "qdq"),
        ({"shape": [0, 64]}, "int4", "matmulnbits"),
        ({"granularity": "channel"}, "int4", "qdq"),
        ({"granularity": "row"}, "fp8", "qdq"),
        ({"zero_points": True}, "int4", "qdq"),
        ({"zero_points": 1}, "int4", "matmulnbits"),
        ({"bits": 3}, "int4", "matmulnbits"),
        ({"bits": 8.0}, "int4", "matmulnbits"),
        ({"bits": 8}, "nvfp4", "qdq"),
    ],
    ids=str,
)
def test_a_damaged_record_is_refused(change: dict[str, Any], scheme: str, form: str) -> None:
    plain = {"shape": [5, 64], "block_size": 16}
    QuantizedTensor.from_dict("w", plain, scheme, form)
    with pytest.raises(ValueError, match="quantization of w"):
        QuantizedTensor.from_dict("w", {**plain, **change}, scheme, form)
