"""The solve in plain numpy is the operator's."""

import numpy as np
import pytest
import torch

from lucid_deploy.parity.causes.solve_analysis import kernel, substitute
from lucid_deploy.plugins.precondition.reference import precondition_reference
from tests.parity.correlated_keys import EPS, keys


@pytest.mark.parametrize("past", [0, 1, 40])
def test_substitution_is_the_operators_solve(past):
    k, v = keys(), np.random.default_rng(1).normal(size=(2, 70, 16))
    y = substitute(kernel(k, k, EPS), v)
    got = substitute(kernel(k[:, past:], k, EPS), v[:, past:], y[:, :past])
    tensors = (torch.from_numpy(x[None]) for x in (k[:, past:], v[:, past:], k[:, :past], y[:, :past]))
    wanted = precondition_reference(*tensors, None, EPS)[0].numpy()
    np.testing.assert_allclose(got, wanted, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(got, y[:, past:], rtol=1e-9, atol=1e-10)
