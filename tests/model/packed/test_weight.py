"""What a packed weight means, and that nothing of it is rounded."""

from __future__ import annotations

import pytest
import torch

from lucid_deploy.model.packed.weight import PackedWeight, check_shape, count_groups, unpack_words
from tests.model.packed.packing import numbers, words


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bits", [4, 8])
def test_dequantized_exactly(bits: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 1 << bits, (3, 40), generator=generator, dtype=torch.uint8)
    zeros = torch.randint(0, 1 << bits, (3, 3), generator=generator, dtype=torch.uint8)
    scales = torch.randn(3, 3, generator=generator).to(dtype)
    found = PackedWeight(codes, zeros, scales, bits, 16).dequantize()
    spread = torch.arange(40) // 16
    wanted = (codes.double() - zeros.double()[:, spread]) * scales.double()[:, spread]
    assert found.double().equal(wanted) and found.dtype == (torch.float64 if dtype == torch.float32 else torch.float32)


def test_symmetric_is_the_middle_of_the_range() -> None:
    codes, zeros, scales = numbers(torch.randn(4, 32, generator=torch.Generator().manual_seed(0)), 4, 16, True)
    weight = PackedWeight(codes, zeros, scales, 4, 16)
    assert weight.is_symmetric
    zeros[2, 1] = 7
    assert not weight.is_symmetric


@pytest.mark.parametrize("bits", [4, 8])
def test_words(bits: int) -> None:
    rows = torch.randint(0, 1 << bits, (3, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert unpack_words(words(rows, bits), bits).equal(rows)


def test_shapes() -> None:
    assert [count_groups(width, 16) for width in (16, 17, 32)] == [1, 2, 2]
    check_shape("scales", None, (1, 2), 16)
    check_shape("scales", (1, 2), (1, 2), 16)
    with pytest.raises(ValueError, match=r"scales has the shape \[2, 1\], and groups of 16 inputs ask for \[1, 2\]"):
        check_shape("scales", (2, 1), (1, 2), 16)
