"""The operators against an independent solve, on keys a wrong solve would not survive."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lucid_deploy.plugins.causal_attention import causal_attention
from lucid_deploy.plugins.decode_attention import decode_attention
from lucid_deploy.plugins.precondition import precondition
from lucid_deploy.plugins.scatter_row import scatter_row

SIZES = [1, 2, 63, 64, 65, 127, 128, 129, 257]
PASTS = [0, 1, 100]


def keys(correlation: float, *shape: int, seed: int = 0) -> torch.Tensor:
    """Keys that share a common vector, float64; correlation 1 is one token repeated."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(shape[-1], generator=generator, dtype=torch.float64)
    own = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own


def solve_row_by_row(k: np.ndarray, v: np.ndarray, mask: np.ndarray, eps: float) -> np.ndarray:
    """One head, (T, D): y_i = v_i − Σ_{j<i} exp(k̂_i·k̂_j/√d − √d) y_j, a row at a time."""
    d = k.shape[1]
    k_hat = k / np.sqrt((k * k).mean(1, keepdims=True) + eps)
    y = v.copy()
    for i in range(len(k)):
        for j in range(i):
            if mask[i] and mask[j]:
                y[i] -= np.exp(k_hat[i] @ k_hat[j] / math.sqrt(d) - math.sqrt(d)) * y[j]
    return y


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("implementation", ["reference", "blocked"])
@pytest.mark.parametrize("correlation", [0.0, 0.9, 0.99, 1.0])
def test_precondition_solves_row_by_row(implementation: str, correlation: float) -> None:
    k, v = keys(correlation, 2, 2, 40, 12), torch.randn(2, 2, 40, 12, dtype=torch.float64)
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[0, :5] = False
    mask[1, 17] = mask[1, 33:] = False
    y = precondition(k, v, mask=mask, eps=1e-5, implementation=implementation)
    for row in range(2):
        for head in range(2):
            wanted = solve_row_by_row(k[row, head].numpy(), v[row, head].numpy(), mask[row].numpy(), 1e-5)
            np.testing.assert_allclose(y[row, head].numpy(), wanted, rtol=1e-9, atol=1e-11)


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


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("past", PASTS)
@pytest.mark.parametrize("correlation", [0.0, 0.9, 0.99, 1.0])
def test_blocked_is_the_reference(n: int, past: int, correlation: float) -> None:
    k, v = keys(correlation, 1, 2, past + n, 20), torch.randn(1, 2, past + n, 20, dtype=torch.float64)
    mask = torch.rand(1, past + n) > 0.1
    full = precondition(k, v, mask=mask, implementation="reference")
    y = precondition(k[:, :, past:], v[:, :, past:], k[:, :, :past], full[:, :, :past], mask)
    assert y.shape == (1, 2, n, 20)
    torch.testing.assert_close(y, full[:, :, past:], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("correlation", [0.9, 0.99])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_blocked_is_as_exact_as_the_reference_in_its_type(correlation: float, dtype: torch.dtype) -> None:
    k = keys(correlation, 1, 2, 600, 68).to(dtype)
    v = torch.randn(1, 2, 600, 68).to(dtype)
    exact = precondition(k.double(), v.double(), implementation="reference")
    baseline = relative(precondition(k, v, implementation="reference"), exact)
    assert relative(precondition(k, v, implementation="blocked"), exact) <= 2 * baseline


def test_the_diagonal_is_exactly_one() -> None:
    v = torch.randn(1, 1, 1, 8)
    tiny = torch.full((1, 1, 1, 8), 1e-4)  # eps outweighs the key: the formula's diagonal would be far from 1
    assert torch.equal(precondition(tiny, v), v)
    _, y_new = decode_attention(tiny, tiny, v, tiny[:, :, :0], v[:, :, :0])
    assert torch.equal(y_new, v)


@pytest.mark.parametrize("implementation", ["reference", "fused"])
@pytest.mark.parametrize("past", [0, 1, 64, 300])
@pytest.mark.parametrize("groups", [1, 4])
def test_decode_is_prefill_of_one_token(implementation: str, past: int, groups: int) -> None:
    k, v = keys(0.95, 2, 2, past + 1, 20), torch.randn(2, 2, past + 1, 20, dtype=torch.float64)
    q = torch.randn(2, 2 * groups, 1, 20, dtype=torch.float64)
    mask = torch.ones(2, past + 1, dtype=torch.bool)
    mask[1, : past // 3] = False
    y = precondition(k, v, mask=mask, implementation="reference")
    wanted = causal_attention(q, k, y, mask)
    out, y_new = decode_attention(
        q, k[:, :, -1:], v[:, :, -1:], k[:, :, :-1], y[:, :, :-1], mask, implementation=implementation
    )
    torch.testing.assert_close(y_new, y[:, :, -1:], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(out, wanted, rtol=1e-9, atol=1e-11)


def test_decode_with_large_scores_does_not_overflow() -> None:
    q = torch.full((1, 1, 1, 16), 60.0)
    k = torch.full((1, 1, 3, 16), 60.0)
    out, _ = decode_attention(q, k[:, :, :1], k[:, :, :1], k, torch.ones_like(k))
    assert out.isfinite().all()


def test_causal_attention_is_softmax_over_earlier_tokens() -> None:
    q, k, y = (torch.randn(1, heads, 6, 8, dtype=torch.float64) for heads in (4, 2, 2))
    mask = torch.tensor([[False, True, True, True, False, True]])
    out = causal_attention(q[:, :, 2:], k, y, mask)
    for head in range(4):
        for row in range(2, 6):
            seen = [j for j in range(row + 1) if mask[0, j] or j == row]
            scores = q[0, head, row] @ k[0, head // 2, seen].mT / math.sqrt(8)
            wanted = scores.softmax(0) @ y[0, head // 2, seen]
            torch.testing.assert_close(out[0, head, row - 2], wanted)


def test_scatter_row_writes_one_row_and_leaves_its_input() -> None:
    cache, row = torch.zeros(2, 3, 5, 4), torch.ones(2, 3, 1, 4)
    out = scatter_row(cache, row, torch.tensor([1, 4]))
    assert not cache.any()
    assert out.sum(dim=(1, 3)).tolist() == [[0, 12, 0, 0, 0], [0, 0, 0, 0, 12]]
    with pytest.raises(ValueError, match="do not fit"):
        scatter_row(cache, row[:1], torch.tensor([1, 4]))


@pytest.mark.parametrize("implementation", ["reference", "blocked"])
def test_precondition_is_differentiable(implementation: str) -> None:
    k, v = keys(0.9, 1, 1, 9, 4).requires_grad_(), torch.randn(1, 1, 9, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda k, v: precondition(k, v, implementation=implementation), (k, v))


def test_operators_tell_shapes_without_data() -> None:
    k = torch.empty(2, 3, 5, 8, device="meta")
    past = torch.empty(2, 3, 7, 8, device="meta")
    q = torch.empty(2, 6, 1, 8, device="meta")
    assert precondition(k, k, past, past).shape == k.shape
    out, y_new = decode_attention(q, k[:, :, :1], k[:, :, :1], past, past)
    assert out.shape == q.shape and y_new.shape == (2, 3, 1, 8)


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
