"""How tensor cores multiply float32 by products of float16, in PyTorch: sums are cut off, not rounded.

Triton's interpreter sums a product from 0 and rounds the sum; it cannot tell what a sum that is handed on loses.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

STEP = 16  # pairs that one instruction adds to its sum
Product = Callable[[Tensor, Tensor, Tensor], Tensor]


def toward_zero(exact: Tensor) -> Tensor:
    """Return float64 as the float32 next to it toward 0."""
    near = exact.float()
    return torch.where(near.double().abs() > exact.abs(), torch.nextafter(near, torch.zeros_like(near)), near)


def nearest(x: Tensor) -> Tensor:
    """Return the number of tf32 next to each of float32, the larger one of two: PTX's ``cvt.rna.tf32.f32``."""
    mantissa, exponent = torch.frexp(x.double())
    scaled = mantissa * 2.0**11
    return torch.ldexp(scaled.sign() * (scaled.abs() + 0.5).floor(), exponent - 11).float()


def add_exact(left: Tensor, right: Tensor, total: Tensor) -> Tensor:
    """Return ``total + left @ right``, of which the sum is cut off after each step."""
    left, right = left.double(), right.double()
    for k in range(0, left.shape[1], STEP):
        total = toward_zero(total.double() + left[:, k : k + STEP] @ right[k : k + STEP])
    return total


def float16_parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return float32 as the nearest number of float16 and the nearest one to what is left."""
    high = x.half().float()
    return high, (x - high).half().float()


def power(x: Tensor) -> Tensor:
    """Return the power of two that brings the largest of some numbers to 2¹⁴ and beyond."""
    return torch.exp2(14 - x.abs().max().log2().floor())


def add_halves(left: Tensor, right: Tensor, total: Tensor) -> Tensor:
    """Return ``total + left @ right`` by three products of float16 parts, of factors times powers of two."""
    left_power, right_power = power(left), power(right)
    left_high, left_low = float16_parts(left * left_power)
    right_high, right_low = float16_parts(right * right_power)
    total = total * left_power * right_power
    for a, b in ((left_low, right_high), (left_high, right_low), (left_high, right_high)):
        total = add_exact(a, b, total)
    return total / left_power / right_power


def add_halves_from_zero(left: Tensor, right: Tensor, total: Tensor) -> Tensor:
    """As :func:`add_halves`, but summed from 0 and then added, as the solve's kernel does."""
    return total + add_halves(left, right, torch.zeros_like(total))


def add_one_half(left: Tensor, right: Tensor, total: Tensor) -> Tensor:
    """As :func:`add_halves_from_zero`, by one product."""
    left_power, right_power = power(left), power(right)
    halves = (left * left_power).half(), (right * right_power).half()
    return total + add_exact(*halves, torch.zeros_like(total)) / left_power / right_power


def add_float32(left: Tensor, right: Tensor, total: Tensor) -> Tensor:
    """The same in plain float32."""
    return total + left @ right
