"""Writing rows into a buffer."""

from __future__ import annotations

import pytest
import torch

from lucid_deploy.plugins.scatter_row import scatter_row
from lucid_deploy.plugins.scatter_row.torch_operator import scatter_row_operator


def test_scatter_row_writes_one_row_and_leaves_its_input() -> None:
    cache, row = torch.zeros(2, 3, 5, 4), torch.ones(2, 3, 1, 4)
    out = scatter_row(cache, row, torch.tensor([1, 4]))
    assert not cache.any()
    assert out.sum(dim=(1, 3)).tolist() == [[0, 12, 0, 0, 0], [0, 0, 0, 0, 12]]
    with pytest.raises(ValueError, match="do not fit"):
        scatter_row(cache, row[:1], torch.tensor([1, 4]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8])
def test_pytorch_finds_it_in_order(dtype: torch.dtype) -> None:
    cache, row = torch.zeros(2, 3, 5, 4, dtype=dtype), torch.ones(2, 3, 1, 4, dtype=dtype)
    torch.library.opcheck(scatter_row_operator, (cache, row, torch.tensor([1, 4])))
