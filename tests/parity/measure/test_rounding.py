"""Rounding to the types that models are stored in."""

import numpy as np
import pytest
import torch

from lucid_deploy.parity.measure.rounding import round_to


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_rounding_is_torchs(dtype):
    values = np.concatenate(
        [np.random.default_rng(0).normal(size=1000) * 10.0 ** np.arange(-4, 4).repeat(125), [0, -0.0]]
    )
    wanted = torch.from_numpy(values.astype(np.float32)).to(getattr(torch, dtype)).double().numpy()
    np.testing.assert_array_equal(round_to(values.astype(np.float32), dtype), wanted)
    assert np.isnan(round_to(np.array([np.nan]), dtype)).all()
    assert np.isposinf(round_to(np.array([np.inf]), dtype)).all()
