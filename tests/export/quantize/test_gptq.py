"""GPTQ against its definition, column by column in float64; against a package: tests/compat/test_auto_gptq.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lucid_deploy.artifact.quantization import QuantizedTensor
from lucid_deploy.artifact.quantized_bytes import unpack_nibbles
from lucid_deploy.errors import LucidError
from lucid_deploy.export.quantize.gptq import column_order, round_columns, round_weight
from lucid_deploy.export.quantize.hqq import hqq_matrix
from lucid_deploy.export.quantize.nearest import METHOD as NEAREST

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


def by_definition(weight: torch.Tensor, scales: torch.Tensor, hessian: torch.Tensor, order: list[int]):
    """Round one column; change those that are left by its error times a row of the inverse of what is left of H."""
    left, weight = list(order), weight.clone()
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    numbers = torch.zeros_like(weight)
    while left:
        inverse = torch.linalg.inv(damped[left][:, left])
        column = left[0]
        numbers[:, column] = (weight[:, column] / scales[:, column]).round().clamp(*LIMITS)
        error = weight[:, column] - numbers[:, column] * scales[:, column]
        weight[:, left] -= torch.outer(error, inverse[0] / inverse[0, 0])
        left = left[1:]
    return numbers.to(torch.int8)


@pytest.mark.parametrize(("width", "correlation", "dead"), [(1, 0.0, False), (40, 0.9, True), (150, 0.99, False)])
def test_it_is_the_definition(width: int, correlation: float, dead: bool) -> None:
    """150 columns: more than are brought up to date at once."""
    weight, hessian = layer(width, 6, correlation, dead)
    scales = (weight.abs().amax(dim=1, keepdim=True) / 8).expand_as(weight)
    order = column_order(hessian)
    assert order.columns.equal(torch.argsort(hessian.diagonal(), descending=True, stable=True))
    found = round_columns(weight, scales, order, LIMITS)
    assert found.equal(by_definition(weight, scales, hessian, order.columns.tolist()))


def test_inputs_that_are_all_alike() -> None:
    alike = torch.ones(8, 8, dtype=torch.float64)
    with pytest.raises(LucidError, match="Give more text"):
        column_order(alike, 0.0)
    assert column_order(alike).factor.isfinite().all()
    assert column_order(torch.zeros(4, 4, dtype=torch.float64)).factor.equal(torch.eye(4).double())


@pytest.mark.parametrize(("bits", "offsets", "positive"), [(4, True, False), (4, False, False), (8, False, True)])
def test_outputs_are_nearer_than_those_of_the_same_grid(bits: int, offsets: bool, positive: bool) -> None:
    """Scales and offsets are those without text; a block of zeros stays zeros."""
    weight, hessian = layer(64, 48, 0.9)
    weight = weight.float()
    weight[3, :32] = 0
    tensor = QuantizedTensor((48, 64), 32, bits=bits, offsets=offsets)
    found, stands_for = round_weight(weight, column_order(hessian), tensor, bits, "float32", positive)
    if offsets:
        packed, scales, shift = hqq_matrix(weight, tensor, bits)
        assert torch.equal(found.offsets, shift)
    else:
        (rows,) = NEAREST.round(weight, tensor, bits, "float32", positive)
        packed, scales, shift = rows.packed, torch.as_tensor(rows.scales), torch.zeros(48, 2)

    def lost(numbers: np.ndarray) -> float:
        whole = torch.from_numpy((unpack_nibbles(numbers) if bits == 4 else numbers).astype(np.float32))
        values = (whole - (1 << (bits - 1))) * scales[..., None] + shift[..., None]
        error = (values.flatten(1) - weight).double()
        if numbers is found.packed:
            torch.testing.assert_close(stands_for, values.flatten(1))
            assert values[3, 0].abs().max() < 1e-6
        return float(((error @ hessian) * error).sum())

    assert lost(found.packed) < 0.7 * lost(packed)
