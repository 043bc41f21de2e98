"""GPTQ against its definition, column by column in float64; against a package: tests/compat/test_auto_gptq.py."""

from __future__ import annotations

import pytest
import torch

from lucid_deploy.errors import LucidError
from lucid_deploy.export.quantize.gptq import column_order, round_columns

LIMITS = (-8, 7)


def layer(width: int, rows: int, correlation: float, dead: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and second moments of inputs that share a direction; float64."""
    generator = torch.Generator().manual_seed(width)
    common = torch.randn(1, width, generator=generator, dtype=torch.float64)
    own = torch.randn(4 * width, width, generator=generator, dtype=torch.float64)
    inputs = correlation**0.5 * common + (1 - correlation) ** 0.5 * own
    inputs *= torch.rand(width, generator=generator, dtype=torch.float64) + 0.1
    if dead:
        inputs[:, width // 3] = 0
    return torch.randn(rows, width, generator=generator, dtype=torch.float64), inputs.mT @ inputs / len(inputs)


def by_definition(weight: torch.Tensor, scales: torch.Tensor, hessian: torch.Tensor, damping: float, order: list[int]):
    """Round one column; change those that are left by its error times a row of the inverse of what is left of H."""
    left, weight = list(order), weight.clone()
    damped = hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    numbers = torch.zeros_like(weight)
    while left:
        inverse = torch.linalg.inv(damped[left][:, left])
        column = left[0]
        numbers[:, column] = (weight[:, column] / scales[:, column]).round().clamp(*LIMITS)
        error = weight[:, column] - numbers[:, column] * scales[:, column]
        weight[:, left] -= torch.outer(error, inverse[0] / inverse[0, 0])
        left = left[1:]
    return numbers.to(torch.int8)


@pytest.mark.parametrize("by_size", [True, False])
@pytest.mark.parametrize(("width", "correlation", "dead"), [(1, 0.0, False), (40, 0.9, True), (150, 0.99, False)])
def test_it_is_the_definition(width: int, correlation: float, dead: bool, by_size: bool) -> None:
    """150 columns: more than are brought up to date at once."""
    weight, hessian = layer(width, 6, correlation, dead)
    scales = (weight.abs().amax(dim=1, keepdim=True) / 8).expand_as(weight)
    order = column_order(hessian, 0.01, by_size)
    expected = torch.argsort(hessian.diagonal(), descending=True, stable=True) if by_size else torch.arange(width)
    assert order.columns.equal(expected)
    found = round_columns(weight, scales, order, LIMITS)
    assert found.equal(by_definition(weight, scales, hessian, 0.01, order.columns.tolist()))


def test_inputs_that_are_all_alike() -> None:
    alike = torch.ones(8, 8, dtype=torch.float64)
    with pytest.raises(LucidError, match="larger --gptq-damping"):
        column_order(alike, 0.0, True)
    assert column_order(alike, 0.01, True).factor.isfinite().all()
    assert column_order(torch.zeros(4, 4, dtype=torch.float64), 0.01, True).factor.equal(torch.eye(4).double())
