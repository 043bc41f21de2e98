"""Writing rows into a buffer, against NumPy's indexing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lucid_deploy.plugins.scatter_row.reference import scatter_row_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("index", [[0, 4, 2], [3, 3, 3]])
def test_each_batch_row_is_written_at_its_index(dtype: torch.dtype, index: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    cache, row = (torch.randint(-9, 9, (3, 2, size, 4), generator=generator).to(dtype) for size in (5, 1))
    before = cache.clone()
    wanted = cache.float().numpy().copy()
    for batch, place in enumerate(index):
        wanted[batch, :, place] = row[batch, :, 0].float().numpy()
    got = scatter_row_reference(cache, row, torch.tensor(index))
    assert got.dtype == dtype
    np.testing.assert_array_equal(got.float().numpy(), wanted)
    assert torch.equal(cache, before), "the buffer that was given is not written to"


def test_an_index_beyond_the_buffer_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="out of bounds"):
        scatter_row_reference(torch.zeros(1, 1, 5, 4), torch.ones(1, 1, 1, 4), torch.tensor([5]))
