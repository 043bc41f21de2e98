"""A LUCID layer's attention against the formula on paper, solved a row at a time."""

from __future__ import annotations

import numpy as np
import torch

from lucid_deploy.model.mixer import Step
from tests.model.attention.dense import attend, make, tokens


def test_it_is_the_formula_on_paper() -> None:
    mixer, x = make("lucid"), tokens()
    wanted = attend(mixer, x, solve=True)
    got, _ = mixer(x, Step(), mixer.empty_cache(1, x))
    np.testing.assert_allclose(got[0].numpy(), wanted, rtol=1e-8, atol=1e-10)
    plain = attend(mixer, x)
    assert np.linalg.norm(plain - wanted) > 0.05 * np.linalg.norm(wanted), "without a solve it is something else"


def test_tokens_one_by_one_and_into_buffers_give_the_same() -> None:
    mixer, x = make("lucid"), tokens()
    wanted = attend(mixer, x, solve=True)
    past = mixer.empty_cache(1, x)
    buffers = tuple(torch.full((1, 2, 30, 12), 9.0).double() for _ in past)
    for place in range(x.shape[1]):
        new = x[:, place : place + 1]
        grown, past = mixer(new, Step(decode=True), past)
        mask = torch.cat([torch.arange(30) < place, torch.tensor([True])])[None]
        written, buffers = mixer(new, Step(mask, True, None, torch.tensor([place])), buffers)
        np.testing.assert_allclose(grown[0, 0].numpy(), wanted[place], rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(written[0, 0].numpy(), wanted[place], rtol=1e-8, atol=1e-10)
    for rows, buffer in zip(past, buffers, strict=True):
        torch.testing.assert_close(buffer[:, :, : x.shape[1]], rows, rtol=1e-8, atol=1e-10)


def test_a_row_of_y_never_changes_once_it_is_written() -> None:
    mixer, x = make("lucid"), tokens()
    _, past = mixer(x[:, :10], Step(), mixer.empty_cache(1, x))
    _, present = mixer(x[:, 10:], Step(), past)
    for before, after in zip(past, present, strict=True):
        assert torch.equal(after[:, :, :10], before)
