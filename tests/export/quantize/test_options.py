"""Options of quantization that do not apply with others are refused by name."""

from __future__ import annotations

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.export.quantize.options import QuantizeOptions, check_options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (QuantizeOptions("fp8", "matmulnbits"), "leave out --quantize-format matmulnbits"),
        (QuantizeOptions("fp8", block_size=32), "leave out --block-size"),
        (QuantizeOptions("nvfp4", embeddings=True), "the whole embedding would be dequantized"),
        (QuantizeOptions("nvfp4", activations="int8"), "leave out --activations int8"),
        (QuantizeOptions("fp8", method="distill"), "leave out --method"),
        (QuantizeOptions("fp8", head_bits=8), "leave out --head-bits"),
    ],
)
def test_options_for_integers_are_refused_for_floats(options: QuantizeOptions, message: str) -> None:
    with pytest.raises(LucidError, match=message):
        check_options(options, "float16")


@pytest.mark.parametrize("scheme", ["int4", "stored"])
def test_calibration_tokens_are_refused_where_nothing_learns(scheme: str) -> None:
    with pytest.raises(LucidError, match=r"eave out --calibration-tokens") as caught:
        check_options(QuantizeOptions(scheme, calibration_tokens=100), "float32")
    assert "\n" not in str(caught.value)
    if scheme != "stored":
        check_options(QuantizeOptions(scheme, method="distill", calibration_tokens=100), "float32")
        check_options(QuantizeOptions(scheme, has_text=True, calibration_tokens=100), "float32")


@pytest.mark.parametrize(
    ("options", "method", "equalized"),
    [
        (QuantizeOptions("int4"), "hqq", True),
        (QuantizeOptions("int4", has_text=True), "distill", True),
        (QuantizeOptions("int4", equalize=False), "hqq", False),
        (QuantizeOptions("int4", "qdq"), "rtn", False),
        (QuantizeOptions("int8"), "rtn", True),
        (QuantizeOptions("int8", "qdq"), "rtn", False),
        (QuantizeOptions("int4", method="rtn"), "rtn", False),
    ],
)
def test_the_default_method_and_whether_it_equalizes(options: QuantizeOptions, method: str, equalized: bool) -> None:
    assert (options.chosen_method.name, options.equalizes) == (method, equalized)
