"""Standard attention against PyTorch's own, whole, one by one and in buffers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lucid_deploy.model.mixer import Step
from tests.model.attention.dense import attend, make, tokens


def test_it_is_softmax_attention() -> None:
    mixer, x = make("standard"), tokens()
    got, present = mixer(x, Step(), mixer.empty_cache(1, x))
    np.testing.assert_allclose(got[0].numpy(), attend(mixer, x), rtol=1e-8, atol=1e-10)
    assert torch.equal(present[1], mixer.v_proj(x).view(1, -1, 2, 12).transpose(1, 2)), "values are cached as they are"


@pytest.mark.parametrize("cache_dtype", ["auto", "int8"])
def test_a_token_alone_and_into_a_buffer_gives_the_same(cache_dtype: str) -> None:
    """Rows that are stored coarsely are coarse for later tokens only: the token sees its own as it is."""
    mixer, x = make("standard"), tokens()
    mixer.store_cache_as(cache_dtype, torch.float64)
    place = x.shape[1] - 1
    _, past = mixer(x[:, :place], Step(), mixer.empty_cache(1, x))
    grown, present = mixer(x[:, place:], Step(decode=True), past)
    buffers = tuple(torch.cat([rows, torch.ones_like(rows[:, :, :7])], dim=2) for rows in past)
    mask = torch.cat([torch.arange(place + 7) < place, torch.tensor([True])])[None]
    written, buffers = mixer(x[:, place:], Step(mask, True, None, torch.tensor([place])), buffers)
    torch.testing.assert_close(written, grown, rtol=1e-8, atol=1e-10)
    for rows, buffer in zip(present, buffers, strict=True):
        assert torch.equal(buffer[:, :, : place + 1], rows) and (buffer[:, :, place + 1 :] == 1).all()
    wanted = attend(mixer, x)[place]
    away = np.linalg.norm(grown[0, 0].numpy() - wanted) / np.linalg.norm(wanted)
    assert away < 1e-9 if cache_dtype == "auto" else 1e-9 < away < 0.02
