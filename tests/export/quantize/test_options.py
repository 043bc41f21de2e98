"""Options of quantization that mean nothing beside others are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.export.quantize.options import QuantizeOptions, check_options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (QuantizeOptions("fp8", "matmulnbits"), "leave out --quantize-format matmulnbits"),
        (QuantizeOptions("fp8", block_size=32), "leave out --block-size"),
        (QuantizeOptions("nvfp4", embeddings=True), "In the format qdq an embedding"),
        (QuantizeOptions("nvfp4", activations="int8"), "leave out --activations int8"),
        (QuantizeOptions("fp8", method="gptq"), "leave out --method"),
        (QuantizeOptions("fp8", gptq_damping=0.5), "leave out --gptq-damping"),
        (QuantizeOptions("fp8", bits={"lm_head.weight": 8}), "leave out bits"),
    ],
)
def test_options_of_whole_numbers_beside_floats(options: QuantizeOptions, message: str) -> None:
    with pytest.raises(LucidError, match=message):
        check_options(options, "float16")


@pytest.mark.parametrize("scheme", ["int4", "stored"])
@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"gptq_damping": 0.1}, "--gptq-damping"),
        ({"gptq_order": "stored"}, "--gptq-order"),
        ({"calibration_tokens": 100}, "--calibration-tokens"),
    ],
)
def test_options_of_learning_where_nothing_learns(scheme: str, changes: dict[str, Any], option: str) -> None:
    with pytest.raises(LucidError, match=option) as caught:
        check_options(QuantizeOptions(scheme, **changes), "float32")
    assert "eave" in str(caught.value) and "\n" not in str(caught.value)
    if scheme != "stored":
        check_options(QuantizeOptions(scheme, method="gptq", **changes), "float32")
