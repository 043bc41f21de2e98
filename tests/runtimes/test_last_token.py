"""Picking each row's last token: numpy's home and PyTorch's agree, whatever the padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lucid_deploy.model.lucid import last_token
from lucid_deploy.runtimes.last_token import last_token_logits

MASKS = {
    "none": [[1, 1, 1, 1], [1, 1, 1, 1]],
    "left": [[0, 0, 1, 1], [1, 1, 1, 1]],
    "right": [[1, 1, 0, 0], [1, 1, 1, 0]],
    "both": [[0, 1, 1, 0], [0, 0, 1, 0]],
    "a row of nothing else": [[0, 0, 0, 0], [1, 1, 1, 1]],
}


@pytest.mark.parametrize("past", [0, 3])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_numpy_and_torch_agree(mask: list[list[int]], past: int) -> None:
    full = np.concatenate([np.ones((2, past), bool), np.array(mask, bool)], axis=1)
    logits = np.random.default_rng(0).standard_normal((2, 4, 5))
    found = last_token_logits(logits, full)
    np.testing.assert_array_equal(found, last_token(torch.from_numpy(logits), torch.from_numpy(full)))
    for row in range(2):
        if any(mask[row]):
            np.testing.assert_array_equal(found[row, 0], logits[row, np.flatnonzero(mask[row])[-1]])


def test_what_has_been_picked_stays() -> None:
    logits = np.ones((2, 1, 5))
    assert last_token_logits(logits, np.ones((2, 9), bool)) is logits
