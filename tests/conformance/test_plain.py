"""The plain implementation rounds what it says it rounds, so that tolerances grow with the type and not beyond."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_deploy.conformance.plain import NUMPY, PlainKernels

WEIGHTS = np.exp(-np.linspace(0, 6, 50, dtype=np.float32))


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 24), ("float16", 11), ("bfloat16", 11)])
def test_weights_keep_so_many_bits(dtype: str, bits: int) -> None:
    error = np.abs(PlainKernels(dtype).rounded(WEIGHTS) / WEIGHTS - 1).max()
    assert error <= 2.0**-bits
    assert error > 2.0 ** -(bits + 2) or bits == 24


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_outputs_have_the_type(dtype: str) -> None:
    one = np.ones((1, 1, 1, 2), np.float32).astype(NUMPY[dtype])
    (y,) = PlainKernels(dtype).precondition(one, one, one[:, :, :0], one[:, :, :0], np.ones((1, 1), bool), 1e-5)
    assert y.dtype == NUMPY[dtype] and (y == one).all()
