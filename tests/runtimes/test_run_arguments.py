"""Masks and chunks that a run is given."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.run_arguments import checked_chunk, checked_mask


def test_masks_are_bool_and_of_the_tokens_shape() -> None:
    ids = np.array([[5, 9, 40]])
    assert checked_mask(None, ids).tolist() == [[True] * 3]
    found = checked_mask(np.array([[1, 0, 1]]), ids)
    assert found.dtype == bool and found.tolist() == [[True, False, True]]
    with pytest.raises(LucidError, match=r"The mask is \(1, 2\), the token ids are \(1, 3\)"):
        checked_mask(np.array([[1, 0]]), ids)


def test_chunks_are_whole_numbers_above_zero() -> None:
    assert [checked_chunk(None), checked_chunk(1), checked_chunk(np.int32(7))] == [None, 1, 7]
    for chunk in (0, -3):
        with pytest.raises(LucidError, match=f"A prefill chunk must hold at least one token, not {chunk}"):
            checked_chunk(chunk)
    for wrong in (1.5, "3", True):
        with pytest.raises(LucidError, match="chunk must be a whole number or None"):
            checked_chunk(wrong)
