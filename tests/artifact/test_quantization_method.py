"""The record of a method comes back from the manifest as it was, or is refused."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from lucid_deploy.artifact.quantization import Quantization
from lucid_deploy.artifact.quantization_method import GPTQ, LearnedTensor, Method
from lucid_deploy.artifact.quantized_tensor import QuantizedTensor

RECORD = Quantization(
    "int4",
    4,
    "matmulnbits",
    "int8",
    {"w": QuantizedTensor((4, 64), 32)},
    (),
    "a tool",
    Method(GPTQ, {"damping": 0.01}, {"file": "text", "tokens": 5}, {"w": LearnedTensor(0.1, 0.02, 0.05)}),
)


def test_it_comes_back() -> None:
    assert Quantization.from_dict(RECORD.to_dict()) == RECORD
    before = {key: value for key, value in RECORD.to_dict().items() if key != "method"}
    assert Quantization.from_dict(before) == replace(RECORD, method=Method()), "older manifests: rounded to nearest"


@pytest.mark.parametrize(
    "change",
    [{"name": "guess"}, {"tensors": {"v": {"distance": 1, "output_error": 1, "nearest_error": 1}}}, {"tensors": 3}],
    ids=str,
)
def test_a_damaged_record_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError, AttributeError)):
        Quantization.from_dict({**RECORD.to_dict(), "method": {**asdict(RECORD.method), **change}})
