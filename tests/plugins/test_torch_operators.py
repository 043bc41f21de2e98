"""PyTorch's custom operators: zero tokens, gradients, meta tensors, opcheck, and errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lucid_deploy.plugins.causal_attention.torch_operator import causal_attention, causal_attention_operator
from lucid_deploy.plugins.decode_attention.torch_operator import decode_attention, decode_attention_operator
from lucid_deploy.plugins.delta_rule.torch_operator import delta_rule, delta_rule_operator
from lucid_deploy.plugins.precondition.torch_operator import precondition, precondition_operator
from lucid_deploy.plugins.scatter_row.torch_operator import scatter_row, scatter_row_operator
from tests.plugins.delta_rule.problems import in_type, inputs
from tests.plugins.problems import keys

HALF, DOUBLE = torch.float16, torch.float64


def test_the_diagonal_is_exactly_one() -> None:
    v, tiny = torch.randn(1, 1, 1, 8), torch.full((1, 1, 1, 8), 1e-4)  # epsilon outweighs the key
    assert torch.equal(precondition(tiny, v), v)
    assert torch.equal(decode_attention(tiny, tiny, v, tiny[:, :, :0], v[:, :, :0])[1], v)


@pytest.mark.parametrize("implementation", ["reference", "blocked"])
def test_zero_new_tokens_give_empty_outputs(implementation: str) -> None:
    k, old = torch.zeros(2, 3, 0, 20, dtype=HALF), torch.randn(2, 3, 7, 20, dtype=HALF)
    mask = torch.ones(2, 7, dtype=torch.bool)
    for cache in ({}, {"k_past": old, "y_past": old}, {"k_past": old, "y_past": old, "mask": mask}):
        y = precondition(k, k, implementation=implementation, **cache)
        assert (y.shape, y.dtype) == (k.shape, HALF)
    given = in_type(inputs(0), HALF)
    output, state = delta_rule(*given, 1.0, implementation)
    assert output.shape == given[2].shape and torch.equal(state, given[5]) and state is not given[5]


@pytest.mark.parametrize("implementation", ["reference", "blocked"])
def test_gradients(implementation: str) -> None:
    k, v = keys(0.9, 1, 1, 9, 4).requires_grad_(), torch.randn(1, 1, 9, 4, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(lambda k, v: precondition(k, v, implementation=implementation), (k, v))
    given = tuple(each.requires_grad_() for each in inputs(5, decay="fast", shape=(1, 1), widths=(3, 2)))
    assert torch.autograd.gradcheck(lambda *tensors: delta_rule(*tensors, 0.5, implementation), given)


def test_shapes_on_the_meta_device() -> None:
    k, past = torch.empty(2, 3, 5, 8, device="meta"), torch.empty(2, 3, 7, 8, device="meta")
    q = torch.empty(2, 6, 5, 8, device="meta")
    assert precondition(k, k, past, past).shape == k.shape
    assert causal_attention(q, past, past).shape == q.shape
    out, y_new = decode_attention(q, k, k, past, past)
    assert out.shape == q.shape and y_new.shape == k.shape
    given = [each.to("meta") for each in in_type(inputs(5), HALF)]
    output, state = delta_rule(*given, 1.0)
    assert (output.shape, output.dtype) == (given[2].shape, HALF)
    assert (state.shape, state.dtype) == (given[5].shape, torch.float32)


@pytest.mark.parametrize(("dtype", "new", "past", "padded"), [(DOUBLE, 5, 7, True), (HALF, 1, 0, False)])
def test_opcheck_passes(dtype: torch.dtype, new: int, past: int, padded: bool) -> None:
    k, v = keys(0.9, 2, 3, past + new, 8).to(dtype), torch.randn(2, 3, past + new, 8).to(dtype)
    q, mask = torch.randn(2, 6, new, 8).to(dtype), torch.rand(2, past + new) > 0.3 if padded else None
    pairs = (k[:, :, past:], v[:, :, past:], k[:, :, :past], v[:, :, :past], mask)
    torch.library.opcheck(causal_attention_operator, (q, k, v, mask))
    for implementation in ("reference", "blocked"):
        torch.library.opcheck(precondition_operator, (*pairs, 1e-5, implementation))
        torch.library.opcheck(delta_rule_operator, (*in_type(inputs(new), dtype), 0.5, implementation))
    for implementation in ("reference", "fused"):
        torch.library.opcheck(decode_attention_operator, (q, *pairs, 1e-5, implementation))
    torch.library.opcheck(scatter_row_operator, (v.clone(), v[:, :, :1].clone(), torch.tensor([0, new - 1])))


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(1, 1, *shape)


ONE, TWO, THREE = zeros(1, 4), zeros(2, 4), zeros(3, 4)
BAD_MASK = torch.ones(1, 5, dtype=torch.bool)
SOLVE = {"k": TWO, "v": TWO}
DECODE = {"q": torch.zeros(1, 2, 1, 4), "k_new": ONE, "v_new": ONE, "k": TWO, "y": TWO}
ATTEND = {"q": torch.zeros(1, 2, 1, 4), "k": TWO, "y": TWO}
RULE = {"query": TWO, "key": TWO, "value": TWO, "log_decay": zeros(2), "beta": zeros(2), "state": zeros(4, 4)}
RULE |= {"scale": 1.0}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("operator", "fitting", "changes", "message"),
    [
        (precondition, SOLVE, {"v": THREE}, "k and v"),
        (precondition, SOLVE, {"k_past": THREE}, "go together"),
        (precondition, SOLVE, {"k_past": zeros(3, 5), "y_past": zeros(3, 5)}, "must both be"),
        (precondition, SOLVE, {"mask": BAD_MASK}, "mask must be"),
        (precondition, SOLVE, {"implementation": "fast"}, "implementation must be one of"),
        (decode_attention, DECODE, {"y": THREE}, "k and y must have the same shape"),
        (decode_attention, DECODE, {"k_new": TWO}, "as many new tokens"),
        (decode_attention, DECODE, {"q": torch.zeros(1, 2, 1, 5)}, "q must be"),
        (decode_attention, DECODE, {"mask": BAD_MASK}, "mask must be"),
        (causal_attention, ATTEND, {"y": THREE}, "do not fit together"),
        (causal_attention, ATTEND, {"mask": BAD_MASK}, "mask must be"),
        (delta_rule, RULE, {"query": THREE}, "query and key must both be"),
        (delta_rule, RULE, {"beta": zeros(3)}, "beta must be"),
        (delta_rule, RULE, {"state": zeros(4, 5)}, "state must be"),
        (delta_rule, RULE, {"implementation": "fast"}, "implementation must be one of"),
        (scatter_row, {"cache": TWO, "row": ONE}, {"index": torch.tensor([0, 1])}, "do not fit"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    operator: Callable[..., Any], fitting: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        operator(**{**fitting, **changes})
