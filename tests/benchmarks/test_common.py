"""What benchmark scripts share: figures of errors."""

from __future__ import annotations

import numpy as np
import pytest
from common import logit_errors


def test_errors_of_logits() -> None:
    """By hand: the second row is off by a tenth and prefers another token at one of its three positions."""
    exact = np.random.default_rng(0).normal(size=(2, 3, 5))
    same = logit_errors(exact, exact)
    assert same == {"relative_error": 0.0, "worst_row": 0.0, "kl_mean": 0.0, "top1": 1.0}
    found = exact * np.array([1.0, 1.1])[:, None, None]
    errors = logit_errors(found, exact)
    assert errors["relative_error"] == pytest.approx(0.05) and errors["worst_row"] == pytest.approx(0.1)
    assert errors["top1"] == 1 and 0 < errors["kl_mean"] < 0.01
    found[1, 2] = -exact[1, 2]
    assert logit_errors(found, exact)["top1"] == pytest.approx(5 / 6)
