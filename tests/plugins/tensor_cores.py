"""How tensor cores multiply float32 by three tf32 products, in PyTorch: factors and sums are cut off, not rounded.

Triton's interpreter sums a product from 0 and rounds the sum; it cannot tell what a sum that is handed on loses.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

STEP = 8  # pairs that one instruction adds to its sum
Product = Callable[[Tensor, Tensor, Tensor], Tensor]


def toward_zero(exact: Tensor) -> Tensor:
    """Return float64 as the float32 next to it toward 0."""
    near = exact.float()
    return torch.where(near.double().abs() > exact.abs(), torch.nextafter(near, torch.zeros_like(near)), near)


def cut(x: Tensor) -> Tensor:
    """Return float32 without what tensor cores ignore of a factor."""
    return (x.view(torch.int32) & -8192).view(torch.float32)


def nearest(x: Tensor) -> Tensor:
    """Return the number of tf32 next to each of float32, the larger one of two: PTX's ``cvt.rna.tf32.f32``."""
    mantissa, exponent = torch.frexp(x.double())
    scaled = mantissa * 2.0**11
    return torch.ldexp(scaled.sign() * (scaled.abs() + 0.5).floor(), exponent - 11).float()


def add_tf32(left: Tensor, right: Tensor, total: Tensor) -> Tensor:
    """Return ``total + left @ right``, ``(m, n)`` float32, of which each step's sum is cut off."""
    left, right = cut(left).double(), cut(right).double()
    for k in range(0, left.shape[1], STEP):
        total = toward_zero(total.double() + left[:, k : k + STEP] @ right[k : k + STEP])
    return total


def add_three(left: Tensor, right: Tensor, total: Tensor) -> Tensor:
    """As :func:`add_tf32`, by the three products of the nearest tf32 numbers and the rests, handing the sum on."""
    left_high, right_high = nearest(left), nearest(right)
    total = add_tf32(left - left_high, right_high, total)
    total = add_tf32(left_high, right - right_high, total)
    return add_tf32(left_high, right_high, total)


def add_from_zero(left: Tensor, right: Tensor, total: Tensor) -> Tensor:
    """As :func:`add_three`, but summed from 0 and then added, as the solve's kernel does and ``tf32x3`` did."""
    return total + add_three(left, right, torch.zeros_like(total))


def add_one(left: Tensor, right: Tensor, total: Tensor) -> Tensor:
    """As :func:`add_from_zero`, by one product."""
    return total + add_tf32(nearest(left), nearest(right), torch.zeros_like(total))


def add_float32(left: Tensor, right: Tensor, total: Tensor) -> Tensor:
    """The same in plain float32."""
    return total + left @ right
