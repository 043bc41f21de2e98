"""The custom operator: empty chunks, derivatives, shapes without data, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from lucid_deploy.plugins.precondition import precondition
from lucid_deploy.plugins.precondition.torch_operator import precondition_operator
from tests.plugins.problems import keys

PASTS = [0, 1, 100]


@pytest.mark.parametrize("implementation", ["reference", "blocked"])
@pytest.mark.parametrize("past", PASTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_no_new_tokens_have_no_rows(implementation: str, past: int, dtype: torch.dtype) -> None:
    """As an empty chunk: with and without a past, a mask and gradients."""
    k, old = torch.zeros(2, 3, 0, 20, dtype=dtype), torch.randn(2, 3, past, 20, dtype=dtype)
    mask = torch.ones(2, past, dtype=torch.bool)
    for cache in ({}, {"k_past": old, "y_past": old}, {"k_past": old, "y_past": old, "mask": mask}):
        y = precondition(k, k, implementation=implementation, **cache)
        assert (y.shape, y.dtype) == (k.shape, dtype)
    v = k.clone().requires_grad_()
    precondition(k, v, old, old, implementation=implementation).sum().backward()
    assert v.grad is not None and v.grad.shape == v.shape


def test_the_diagonal_is_exactly_one() -> None:
    v = torch.randn(1, 1, 1, 8)
    tiny = torch.full((1, 1, 1, 8), 1e-4)  # eps outweighs the key: the formula's diagonal would be far from 1
    assert torch.equal(precondition(tiny, v), v)


@pytest.mark.parametrize("implementation", ["reference", "blocked"])
def test_precondition_is_differentiable(implementation: str) -> None:
    k, v = keys(0.9, 1, 1, 9, 4).requires_grad_(), torch.randn(1, 1, 9, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda k, v: precondition(k, v, implementation=implementation), (k, v))


def test_it_tells_shapes_without_data() -> None:
    k, past = torch.empty(2, 3, 5, 8, device="meta"), torch.empty(2, 3, 7, 8, device="meta")
    assert precondition(k, k, past, past).shape == k.shape


@pytest.mark.parametrize("implementation", ["reference", "blocked"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize(("new", "past", "padded"), [(5, 7, True), (5, 0, False), (1, 3, True), (0, 4, False)])
def test_pytorch_finds_it_in_order(implementation: str, dtype: torch.dtype, new: int, past: int, padded: bool) -> None:
    k, v = keys(0.9, 2, 3, past + new, 8).to(dtype), torch.randn(2, 3, past + new, 8).to(dtype)
    mask = torch.rand(2, past + new) > 0.3 if padded else None
    tensors = (k[:, :, past:], v[:, :, past:], k[:, :, :past], v[:, :, :past], mask)
    torch.library.opcheck(precondition_operator, (*tensors, 1e-5, implementation))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"v": torch.zeros(1, 1, 3, 4)}, "k and v"),
        ({"k_past": torch.zeros(1, 1, 3, 4)}, "go together"),
        ({"k_past": torch.zeros(1, 1, 3, 5), "y_past": torch.zeros(1, 1, 3, 5)}, "must both be"),
        ({"mask": torch.ones(1, 3, dtype=torch.bool)}, "mask must be"),
        ({"implementation": "fast"}, "implementation must be one of"),
    ],
)
def test_precondition_refuses_what_does_not_fit(arguments: dict, message: str) -> None:
    fitting = {"k": torch.zeros(1, 1, 2, 4), "v": torch.zeros(1, 1, 2, 4)}
    with pytest.raises(ValueError, match=message):
        precondition(**{**fitting, **arguments})
