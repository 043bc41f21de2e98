"""Tensors of a layer's cache: sizes are those of real arrays, and rows come apart and together unchanged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lucid_deploy.cache.layout import (
    CacheTensor,
    check_truncation,
    first_tokens,
    held,
    join_rows,
    layout_bytes,
    new_buffer,
    row_content,
)
from lucid_deploy.errors import LucidError

ROWS = CacheTensor("key", "float32", (2, 3))
RING = CacheTensor("recent", "float16", (1, 4), "ring", 5)
STATE = CacheTensor("average", "float64", (7,), "state")
ALL = (ROWS, RING, STATE)
EACH = pytest.mark.parametrize("tensor", ALL, ids=lambda tensor: tensor.sort)


def content(tensor: CacheTensor, tokens: int, seed: int) -> np.ndarray:
    """Return what one batch row of so many tokens might hold: no number is zero, as padding would be."""
    shape = tensor.batch_shape(1, tokens)[1:]
    return np.random.default_rng(seed).uniform(1, 2, shape).astype(tensor.dtype)


@EACH
def test_rows_come_apart_as_they_were_put_together(tensor: CacheTensor) -> None:
    lengths = [1, 9, 4, 5]
    contents = [content(tensor, length, seed) for seed, length in enumerate(lengths)]
    whole = join_rows(tensor, contents, 9)
    assert whole.shape == tensor.batch_shape(4, 9) and whole.dtype == tensor.dtype
    mask = np.arange(9) >= 9 - np.array(lengths)[:, None]  # padding is on the left
    for row, wanted in enumerate(contents):
        np.testing.assert_array_equal(row_content(tensor, whole, mask, row), wanted)
    if tensor.has_tokens:
        assert np.count_nonzero(whole) == sum(map(np.size, contents)), "padding is zeros"


def test_padding_between_tokens_is_left_out_of_rows() -> None:
    whole = np.random.default_rng(0).standard_normal((2, 2, 6, 3))
    mask = np.array([[1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 1, 0]], bool)
    np.testing.assert_array_equal(row_content(ROWS, whole, mask, 1), whole[1][:, [1, 2, 4]])


@EACH
@pytest.mark.parametrize("tokens", [0, 1, 5, 6, 40])
def test_bytes_are_those_of_an_array(tensor: CacheTensor, tokens: int) -> None:
    array = np.zeros(tensor.batch_shape(1, tokens), tensor.dtype)
    assert tensor.size(tokens) == array.nbytes
    assert layout_bytes(((tensor,), (tensor, ROWS)), tokens) == 2 * array.nbytes + ROWS.size(tokens)


@EACH
def test_a_buffer_holds_rows_in_front_and_a_ring_at_the_end(tensor: CacheTensor) -> None:
    buffer = new_buffer(tensor, 3, 20, tensor.dtype)
    assert not buffer.any()
    for tokens in (0, 3, 5, 20):
        used = held(tensor, buffer, tokens)
        assert used.shape == tensor.batch_shape(3, tokens)
        assert np.shares_memory(used, buffer) == bool(used.size)
    held(tensor, buffer, 3)[:] = 1
    if tensor.has_tokens:
        marked = np.flatnonzero(buffer.any(axis=(0, 1, 3)))
        assert marked.tolist() == ([0, 1, 2] if tensor.sort == "rows" else [2, 3, 4])


def test_what_can_be_cut_back() -> None:
    array = content(ROWS, 8, 0)[None]
    np.testing.assert_array_equal(first_tokens(ROWS, array, 3, np.ones((1, 8), bool)), array[:, :, :3])
    check_truncation(((ROWS,), (RING, ROWS)), 2, 5)  # nothing was dropped from the ring yet
    check_truncation((ALL,), 9, 9)
    with pytest.raises(LucidError, match=r"truncated to 2: recent of layer 1 holds the last 5 tokens only"):
        check_truncation(((ROWS,), (RING,)), 2, 6)
    with pytest.raises(LucidError, match=r"average of layer 0 is a state, into which every token is mixed"):
        check_truncation((ALL,), 2, 3)


def test_a_ring_is_cut_back_by_the_tokens_of_the_columns_that_go() -> None:
    """It holds tokens and no padding, at its end; three rows with two, three and no tokens in front of the cut."""
    mask = np.array([[1, 1, 0, 1, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 1]], dtype=bool)
    for room in (5, 4):  # columns held, or a buffer of another size: only its end counts
        ring = np.full((3, 2, room, 3), -1.0)
        for row, columns in enumerate(mask):
            for place, token in enumerate(np.flatnonzero(columns)[::-1]):
                ring[row, :, room - 1 - place] = token
        cut = first_tokens(RING, ring, 3, mask)
        assert cut.shape == (3, 2, 3, 3)
        assert cut[0, 0, 1:, 0].tolist() == [0, 1] and cut[1, 0, :, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "fields",
    [
        {"sort": "heap"},
        {"dtype": "float8"},
        {"name": "a.b"},
        {"shape": (2,)},
        {"shape": (2, 0)},
        {"shape": (2, True)},
        {"shape": (2, 1 << 25)},
        {"window": 5},
        {"sort": "ring"},
        {"sort": "ring", "window": 0},
        {"sort": "state", "window": 5},
    ],
    ids=str,
)
def test_values_that_fit_no_tensor(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="cache tensor"):
        CacheTensor(**{"name": "key", "dtype": "float32", "shape": (2, 3), **fields})
