"""Numbers of Y in pairs of E4M3, and the power of two of their weights, where each warp has a part of a tile."""

import torch

from tests.plugins.decode_attention.tile_runs import run_power, run_unpack


def test_both_numbers_of_a_pair_are_unpacked_exactly(interpret):
    """All of E4M3 in either byte, beside other numbers; its NaN stay so."""
    numbers = torch.arange(256, dtype=torch.uint8)
    others = numbers.flip(0)
    pairs = torch.stack([numbers, others], dim=1).view(torch.int16)[:, 0]
    wanted = [each.view(torch.float8_e4m3fn).half() for each in (numbers, others)]
    for found, exact in zip(interpret(run_unpack, pairs), wanted, strict=True):
        assert exact.isnan().sum() == 2
        torch.testing.assert_close(found, exact, rtol=0, atol=0, equal_nan=True)


def test_weights_times_the_largest_scale_stay_in_the_range_of_float16(interpret):
    """With training's diagonal weights are exp(√d/4) at most. A new power leaves room for it, and for small scales."""
    scales = torch.logspace(-27, 37, 64)
    powers = interpret(run_power, scales)
    assert (powers.log2() % 1 == 0).all()
    largest = scales.double() * powers.double()
    assert (largest >= 2**8).all() and (largest * torch.tensor(256.0).double().sqrt().div(4).exp() < 65504).all()
    assert interpret(run_power, torch.zeros(1)).isfinite().all()
