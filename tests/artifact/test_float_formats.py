"""The numbers of E4M3 and E2M1, against ml_dtypes' types."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from lucid_deploy.artifact.float_formats import E2M1, E2M1_MAX, E4M3, E4M3_LEAST, E4M3_MAX, decode, spacing


def test_every_code() -> None:
    codes = np.arange(256, dtype=np.uint8)
    wanted = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(E4M3, wanted, equal_nan=True) and np.array_equal(np.signbit(E4M3), np.signbit(wanted))
    assert np.nanmax(E4M3) == E4M3_MAX and E4M3[1] == E4M3_LEAST
    halves = codes[:16].view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert np.array_equal(E2M1, halves) and E2M1.max() == E2M1_MAX
    assert np.array_equal(decode(codes[:16].reshape(2, 8), 4), halves.reshape(2, 8))


@pytest.mark.parametrize(("bits", "table"), [(8, E4M3), (4, E2M1)])
def test_neighbours_are_a_spacing_apart(bits: int, table: np.ndarray) -> None:
    values = np.unique(table[np.isfinite(table) & (table >= 0)]).astype(np.float64)
    assert np.array_equal(spacing((values[:-1] + values[1:]) / 2, bits), np.diff(values))
