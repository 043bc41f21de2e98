"""Attention over the last W tokens: rings against plain lists of tokens, results against the formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lucid_deploy.cache.layout import bytes_per_token, layout_bytes
from lucid_deploy.errors import LucidError
from lucid_deploy.model.attention.window import newest_columns, number_columns, push_row, select_columns, visible
from lucid_deploy.model.description import layout_of
from lucid_deploy.model.layers.attention import ring_layout
from lucid_deploy.model.lucid import LucidForCausalLM
from lucid_deploy.model.mixer import Step
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.model.attention.dense import attend, make, tokens
from tests.model.config_samples import LUCID, parse

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


def test_without_padding_no_mask_is_needed() -> None:
    without, given = (number_columns(mask, 2, 3, 4, WINDOW, CPU) for mask in (None, torch.ones(2, 7, dtype=torch.bool)))
    assert torch.equal(without.counts, given.counts) and torch.equal(without.valid, given.valid)
    ring, row = torch.randn(2, 1, 5, 3), torch.randn(2, 1, 1, 3)
    assert torch.equal(
        push_row(ring, row, None, WINDOW), push_row(ring, row, torch.ones(2, 1, dtype=torch.bool), WINDOW)
    )


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


def test_a_window_does_not_grow() -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    given = {"num_hidden_layers": 3, "layer_types": kinds, "sliding_window": 6, "head_dim": 16}
    session = TorchSession(LucidForCausalLM(parse(LUCID, **given)).eval())
    cache = session.empty_cache(1)
    session.prefill(np.arange(60)[None], cache)
    layout = layout_of(session.layers)
    assert [[(t.sort, t.window) for t in layer] for layer in layout][1] == [("ring", 6)] * 2
    row = 2 * 16 * 4  # of two heads, float32
    assert bytes_per_token(layout) == 2 * 2 * row
    assert layout_bytes(layout, 32768) == 2 * 2 * row * 32768 + 2 * row * 6
    assert [array.shape[2] for layer in session.layer_arrays(cache) for array in layer] == [60, 60, 6, 6, 60, 60]


def test_a_ring_in_fp8_is_refused() -> None:
    with pytest.raises(LucidError, match=r"do not support a cache in fp8\. Choose --cache-dtype int8"):
        ring_layout(make("window", sliding_window=5).config, 0, "fp8")
