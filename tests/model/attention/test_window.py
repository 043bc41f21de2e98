"""Attention over the last W tokens: rings against plain lists of tokens, results against the formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lucid_deploy.errors import LucidError
from lucid_deploy.model.attention.window import newest_columns, number_columns, push_row, select_columns, visible
from lucid_deploy.model.layers.attention import ring_layout
from lucid_deploy.model.mixer import Step
from tests.model.attention.dense import attend, make, tokens

WINDOW = 5
CPU = torch.device("cpu")


@pytest.mark.parametrize("seed", range(5))
def test_a_ring_holds_the_last_tokens_and_each_sees_those_of_its_window(seed: int) -> None:
    """Batches with padding anywhere, in calls of any size, against one list a row."""
    rng = np.random.default_rng(seed)
    columns = rng.random((3, 40)) > 0.4
    columns[0] = True
    lists: list[list[float]] = [[], [], []]
    ring, done = torch.zeros(3, 1, 0, 1), 0
    while done < 40:
        n = min(int(rng.integers(1, 9)), 40 - done)
        mask = torch.from_numpy(columns[:, : done + n])
        at = number_columns(mask, 3, ring.shape[2], n, WINDOW, CPU)
        new = torch.arange(done + 1.0, done + n + 1).expand(3, n)[:, None, :, None]  # a token is its column's number
        rows, seen = torch.cat([ring, new], dim=2), visible(at, n, WINDOW)
        for row, held in enumerate(lists):
            for column in range(n):
                number = float(done + column + 1)
                if not columns[row, done + column]:
                    continue
                held.append(number)
                assert rows[row, 0, seen[row, column], 0].tolist() == held[-WINDOW:]
        ring = (
            push_row(ring, new, mask[:, -1:], WINDOW)
            if n == 1
            else select_columns(rows, newest_columns(at.valid, WINDOW))
        )
        done += n
        assert ring.shape[2] == min(done, WINDOW)
        for row, held in enumerate(lists):
            count = min(len(held), ring.shape[2])
            assert ring[row, 0, ring.shape[2] - count :, 0].tolist() == held[len(held) - count :]


@pytest.mark.parametrize("window", [1, 5, 23, 100])
@pytest.mark.parametrize("sizes", [(23,), (4, 1, 1, 17), (1,) * 23], ids=["whole", "pieces", "one by one"])
def test_it_is_softmax_attention_over_the_window(window: int, sizes: tuple[int, ...]) -> None:
    mixer, x = make("window", sliding_window=window), tokens()
    wanted, past, start = attend(mixer, x, window=window), mixer.empty_cache(1, x), 0
    for size in sizes:
        got, past = mixer(x[:, start : start + size], Step(decode=size == 1), past)
        np.testing.assert_allclose(got[0].numpy(), wanted[start : start + size], rtol=1e-8, atol=1e-10)
        start += size
    for tensor, held in zip(ring_layout(mixer.config, 0, "float64"), past, strict=True):
        assert tuple(held.shape) == tensor.batch_shape(1, 23) and tensor.window == window


def test_a_ring_in_fp8_is_refused() -> None:
    with pytest.raises(LucidError, match=r"do not support a cache in fp8\. Choose --cache-dtype int8"):
        ring_layout(make("window", sliding_window=5).config, 0, "fp8")
