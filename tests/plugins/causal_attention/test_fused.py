"""PyTorch's fused attention against the dense formula."""

from __future__ import annotations

import pytest
import torch

from lucid_deploy.plugins.causal_attention.reference import causal_attention_reference
from lucid_deploy.plugins.causal_attention.torch_operator import causal_attention_fused
from tests.plugins.problems import keys


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("new", "past"), [(1, 0), (63, 0), (1, 100), (129, 40)])
def test_fused_matches_the_reference(new: int, past: int, padded: bool, groups: int) -> None:
    k, y = keys(0.9, 2, 2, past + new, 20), torch.randn(2, 2, past + new, 20, dtype=torch.float64)
    q = torch.randn(2, 2 * groups, new, 20, dtype=torch.float64)
    mask = None
    if padded:
        mask = torch.rand(2, past + new, generator=torch.Generator().manual_seed(0)) > 0.3
    wanted = causal_attention_reference(q, k, y, mask)
    torch.testing.assert_close(causal_attention_fused(q, k, y, mask), wanted, rtol=1e-10, atol=1e-12)
