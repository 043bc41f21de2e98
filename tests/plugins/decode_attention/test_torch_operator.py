"""The custom operator: the unit diagonal, shapes without data, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from lucid_deploy.plugins.decode_attention import decode_attention
from lucid_deploy.plugins.decode_attention.torch_operator import decode_attention_operator
from tests.plugins.problems import keys


def test_the_diagonal_is_exactly_one() -> None:
    v = torch.randn(1, 1, 1, 8)
    tiny = torch.full((1, 1, 1, 8), 1e-4)  # eps outweighs the key: the formula's diagonal would be far from 1
    _, y_new = decode_attention(tiny, tiny, v, tiny[:, :, :0], v[:, :, :0])
    assert torch.equal(y_new, v)


def test_it_tells_shapes_without_data() -> None:
    q, new = torch.empty(2, 6, 1, 8, device="meta"), torch.empty(2, 3, 1, 8, device="meta")
    past = torch.empty(2, 3, 7, 8, device="meta")
    out, y_new = decode_attention(q, new, new, past, past)
    assert out.shape == q.shape and y_new.shape == new.shape


@pytest.mark.parametrize("implementation", ["reference", "fused"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize(("past", "padded"), [(7, True), (7, False), (0, False)])
def test_pytorch_finds_it_in_order(implementation: str, dtype: torch.dtype, past: int, padded: bool) -> None:
    k, y = keys(0.9, 2, 3, past + 1, 8).to(dtype), torch.randn(2, 3, past + 1, 8).to(dtype)
    q = torch.randn(2, 6, 1, 8).to(dtype)
    mask = torch.rand(2, past + 1) > 0.3 if padded else None
    tensors = (q, k[:, :, past:], y[:, :, past:], k[:, :, :past], y[:, :, :past], mask)
    torch.library.opcheck(decode_attention_operator, (*tensors, 1e-5, implementation))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"y": torch.zeros(1, 1, 3, 4)}, "k and y must have one shape"),
        ({"k_new": torch.zeros(1, 1, 2, 4)}, "as many new tokens"),
        ({"q": torch.zeros(1, 2, 1, 5)}, "q must be"),
        ({"mask": torch.ones(1, 2, dtype=torch.bool)}, "mask must be"),
        ({"implementation": "fast"}, "implementation must be one of"),
    ],
)
def test_it_refuses_what_does_not_fit(arguments: dict, message: str) -> None:
    one, cache = torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 2, 4)
    fitting = {"q": torch.zeros(1, 2, 1, 4), "k_new": one, "v_new": one, "k": cache, "y": cache}
    with pytest.raises(ValueError, match=message):
        decode_attention(**{**fitting, **arguments})
