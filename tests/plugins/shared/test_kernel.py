"""The Triton device functions that kernels share, in the interpreter, alone."""

from __future__ import annotations

import pytest

from tests.plugins.shared.kernel_runs import BLOCK, ROWS, run_norms, run_product

DTYPES = ["float32", "float16", "bfloat16"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("epsilon", [0.0, 1e-5])
def test_rows_tokens_and_norms_are_zero_beyond_what_is_there(dtype, epsilon, interpret):
    """NaN lies behind the rows, and with ε = 0 the norm of nothing would be infinite."""
    result = interpret(run_norms, dtype, epsilon)
    assert result["rows"] and result["beyond"]
    assert result["tokens"] == [int(row < ROWS and row not in (2, 5)) for row in range(BLOCK)]
    assert result["error"] < 1e-6  # a few units in the last place of float32


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_are_as_exact_as_their_type_allows(dtype, interpret):
    result = interpret(run_product, dtype)
    if dtype == "bfloat16":  # two parts hold 16 bits where one holds 8
        assert result["error"] < result["one part"] / 50
    elif dtype == "float16":
        assert result["error"] <= 1.5 * result["one part"]
    else:
        assert result["error"] <= 4 * result["float32"]
