"""The custom operator: shapes without data, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from lucid_deploy.plugins.causal_attention import causal_attention
from lucid_deploy.plugins.causal_attention.torch_operator import causal_attention_operator
from tests.plugins.problems import keys


def test_it_tells_shapes_without_data() -> None:
    q, k = torch.empty(2, 6, 3, 8, device="meta"), torch.empty(2, 3, 7, 8, device="meta")
    assert causal_attention(q, k, k).shape == q.shape


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize(("new", "past", "padded"), [(5, 7, True), (5, 0, False), (1, 3, True)])
def test_pytorch_finds_it_in_order(dtype: torch.dtype, new: int, past: int, padded: bool) -> None:
    k, y = keys(0.9, 2, 3, past + new, 8).to(dtype), torch.randn(2, 3, past + new, 8).to(dtype)
    q = torch.randn(2, 6, new, 8).to(dtype)
    mask = torch.rand(2, past + new) > 0.3 if padded else None
    torch.library.opcheck(causal_attention_operator, (q, k, y, mask))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"y": torch.zeros(1, 1, 3, 4)}, "do not fit together"),
        ({"q": torch.zeros(1, 1, 3, 4)}, "do not fit together"),
        ({"mask": torch.ones(1, 3, dtype=torch.bool)}, "mask must be"),
    ],
)
def test_it_refuses_what_does_not_fit(arguments: dict, message: str) -> None:
    fitting = {"q": torch.zeros(1, 2, 1, 4), "k": torch.zeros(1, 1, 2, 4), "y": torch.zeros(1, 1, 2, 4)}
    with pytest.raises(ValueError, match=message):
        causal_attention(**{**fitting, **arguments})
