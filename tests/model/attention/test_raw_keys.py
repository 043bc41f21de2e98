"""The solve with raw keys: LUCID's own where keys have mean square 1, and the same however the text is cut."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lucid_deploy.model.attention.raw_keys import RawKeyAttention, solve_with_raw_keys
from lucid_deploy.plugins.precondition.reference import precondition_reference


def tensors(n: int, d: int = 8, unit: bool = False) -> tuple[Tensor, Tensor]:
    """Correlated keys, two of them equal, and values."""
    random = torch.Generator().manual_seed(0)
    common = torch.randn(2, 2, 1, d, generator=random, dtype=torch.float64)
    k = common + 0.3 * torch.randn(2, 2, n, d, generator=random, dtype=torch.float64)
    k[:, :, n // 2] = k[:, :, 1]
    if unit:
        k = k / k.square().mean(-1, keepdim=True).sqrt()
    return k, torch.randn(2, 2, n, d, generator=random, dtype=torch.float64)


def empty(k: Tensor) -> Tensor:
    return k[:, :, :0]


def test_with_keys_of_mean_square_one_it_is_lucids() -> None:
    k, v = tensors(33, unit=True)
    expected = precondition_reference(k, v, empty(k), empty(k), None, eps=0.0)
    assert torch.allclose(solve_with_raw_keys(k, v, empty(k), empty(k), None), expected, rtol=1e-11, atol=1e-11)


def test_keys_of_other_lengths_change_it() -> None:
    k, v = tensors(17)
    normed = precondition_reference(k, v, empty(k), empty(k), None, eps=1e-6)
    assert (solve_with_raw_keys(k, v, empty(k), empty(k), None) - normed).abs().max() > 0.1


def test_entry_by_entry() -> None:
    k, v = tensors(5)
    y = solve_with_raw_keys(k, v, empty(k), empty(k), None)
    for i in range(5):
        row = v[0, 1, i].clone()
        for j in range(i):
            row -= math.exp(float(k[0, 1, i] @ k[0, 1, j] - k[0, 1, i] @ k[0, 1, i]) / math.sqrt(8)) * y[0, 1, j]
        assert torch.allclose(y[0, 1, i], row, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("cut", [1, 8, 20])
def test_chunks_and_padding(cut: int) -> None:
    k, v = tensors(21)
    mask = torch.ones(2, 21, dtype=torch.bool)
    mask[1, :3] = False
    whole = solve_with_raw_keys(k, v, empty(k), empty(k), mask)
    first = solve_with_raw_keys(k[:, :, :cut], v[:, :, :cut], empty(k), empty(k), mask[:, :cut])
    rest = solve_with_raw_keys(k[:, :, cut:], v[:, :, cut:], k[:, :, :cut], first, mask)
    assert torch.allclose(torch.cat([first, rest], dim=2), whole, rtol=1e-9, atol=1e-9)
    alone = solve_with_raw_keys(k[1:, :, 3:], v[1:, :, 3:], empty(k[1:]), empty(k[1:]), None)
    assert torch.allclose(whole[1:, :, 3:], alone, rtol=1e-9, atol=1e-9)


def test_there_are_no_static_caches() -> None:
    with pytest.raises(NotImplementedError):
        RawKeyAttention.attend_static(None, None, None, None, None, None, None)  # type: ignore[arg-type]
