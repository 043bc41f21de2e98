"""The custom operator: empty chunks, derivatives, shapes without data, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from lucid_deploy.plugins.delta_rule import delta_rule
from lucid_deploy.plugins.delta_rule.torch_operator import delta_rule_operator
from tests.plugins.delta_rule.problems import in_type, inputs

IMPLEMENTATIONS = ["reference", "blocked"]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_no_new_tokens_have_no_rows_and_leave_the_state(implementation: str, dtype: torch.dtype) -> None:
    given = in_type(inputs(0), dtype)
    output, state = delta_rule(*given, 1.0, implementation)
    assert (output.shape, output.dtype) == (given[2].shape, dtype)
    assert torch.equal(state, given[5]) and state is not given[5]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_padding_leaves_the_state_as_it_is(implementation: str) -> None:
    query, key, value, log_decay, beta, state = inputs(70)
    log_decay[:, :, 30:], beta[:, :, 30:] = 0, 0
    _, found = delta_rule(query, key, value, log_decay, beta, state, 1.0, implementation)
    cut = (each[:, :, :30] for each in (query, key, value, log_decay, beta))
    torch.testing.assert_close(found, delta_rule(*cut, state, 1.0, implementation)[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_it_is_differentiable(implementation: str) -> None:
    given = tuple(each.requires_grad_() for each in inputs(5, decay="fast", shape=(1, 1), widths=(3, 2)))
    assert torch.autograd.gradcheck(lambda *tensors: delta_rule(*tensors, 0.5, implementation), given)


def test_it_tells_shapes_without_data() -> None:
    given = [each.to("meta") for each in in_type(inputs(5), torch.float16)]
    output, state = delta_rule(*given, 1.0)
    assert (output.shape, output.dtype) == (given[2].shape, torch.float16)
    assert (state.shape, state.dtype) == (given[5].shape, torch.float32)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.float32])
@pytest.mark.parametrize("tokens", [0, 1, 5, 65])
def test_pytorch_finds_it_in_order(implementation: str, dtype: torch.dtype, tokens: int) -> None:
    torch.library.opcheck(delta_rule_operator, (*in_type(inputs(tokens), dtype), 0.5, implementation))


@pytest.mark.parametrize(
    ("place", "shape", "message"),
    [
        (0, (1, 2, 3, 5), "query and key must both be"),
        (2, (1, 2, 4, 6), r"value must be \(1, 2, 3\)"),
        (3, (1, 2, 3, 4), r"log_decay must be \(batch, heads, tokens\) = \(1, 2, 3\)"),
        (4, (1, 1, 3), "beta must be"),
        (5, (1, 2, 6, 4), r"state must be \(batch, heads, key width, value width\) = \(1, 2, 4, 6\)"),
    ],
)
def test_it_refuses_what_does_not_fit(place: int, shape: tuple[int, ...], message: str) -> None:
    shapes = [(1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 6), (1, 2, 3), (1, 2, 3), (1, 2, 4, 6)]
    shapes[place] = shape
    with pytest.raises(ValueError, match=message):
        delta_rule(*map(torch.zeros, shapes), 1.0)


def test_it_refuses_an_unknown_implementation() -> None:
    with pytest.raises(ValueError, match="implementation must be one of"):
        delta_rule(*inputs(2), 1.0, "fast")
