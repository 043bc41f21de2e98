"""Ablations are configurations of other layers with the same weights; the solve with raw keys."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lucid_deploy.errors import LucidError
from lucid_deploy.model.checkpoint import Checkpoint
from lucid_deploy.model.description import describe
from lucid_deploy.plugins.precondition.reference import precondition_reference
from lucid_deploy.runtimes import options
from lucid_deploy.runtimes.torch.ablation import ABLATIONS, RawKeyAttention, ablated, solve_with_raw_keys


def test_only_lucid_layers_change(demo_directory: Path) -> None:
    config = Checkpoint(demo_directory).config
    assert config.kinds == ("lucid",) * 3
    assert ablated(config, "preconditioner").kinds == ("standard",) * 3
    assert ablated(config, "keys").kinds == ("lucid_raw_keys",) * 3
    for part in ABLATIONS:
        whole, other = (describe(item, "float32") for item in (config, ablated(config, part)))
        for mine, theirs in zip(whole, other, strict=True):
            assert mine.weights == theirs.weights and mine.cache == theirs.cache and not theirs.solves


def test_other_layers_stay(demo_directory: Path) -> None:
    mixed = replace(Checkpoint(demo_directory).config, layer_kinds=("delta", "lucid", "standard"))
    assert ablated(mixed, "preconditioner").kinds == ("delta", "standard", "standard")
    assert ablated(mixed, "keys").kinds == ("delta", "lucid_raw_keys", "standard")


def test_what_cannot_be_ablated(demo_directory: Path) -> None:
    config = Checkpoint(demo_directory).config
    with pytest.raises(LucidError, match="no ablation of 'heads'; there are preconditioner, keys"):
        ablated(config, "heads")
    with pytest.raises(LucidError, match="has no LUCID layers, so it can't be run without their keys"):
        ablated(ablated(config, "preconditioner"), "keys")


def test_options_know_the_same_parts() -> None:
    assert tuple(ABLATIONS) == options.ABLATIONS
    with pytest.raises(LucidError, match="Ablate 'heads' is not known"):
        options.RuntimeOptions(ablate="heads")


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
