"""What float32 loses where tensor cores multiply it in the solve: the bounds of plugins/precondition/README.md."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lucid_deploy.plugins.precondition.reference import precondition_reference
from tests.plugins.kernel_cases import EPS, FACTOR, FLOOR
from tests.plugins.problems import keys, relative
from tests.plugins.tensor_cores import (
    Product,
    add_float32,
    add_halves,
    add_halves_from_zero,
    add_one_half,
    float16_parts,
)

WIDTH, CHUNK, ROWS, COLUMNS = 128, 32, 64, 32  # of the tiles at this width


def make_keys(kind: float | str, tokens: int) -> Tensor:
    if kind == "repeated":
        return keys(0.0, 3, WIDTH, seed=1)[torch.arange(tokens) % 3].float()
    return keys(float(kind), tokens, WIDTH, seed=1).float()


def weights(k: Tensor, rows: slice, columns: slice, multiply: Product) -> Tensor:
    """Return E of a tile, its scores multiplied by chunks of the width as in the kernel."""
    norms, root_d = torch.rsqrt(k.square().mean(1) + EPS), math.sqrt(WIDTH)
    scores = torch.zeros(rows.stop - rows.start, columns.stop - columns.start)
    for i in range(0, WIDTH, CHUNK):
        scores = multiply(k[rows, i : i + CHUNK], k[columns, i : i + CHUNK].mT, scores)
    scale = math.log2(math.e) / root_d
    return torch.exp2(scores * (norms[rows] * scale)[:, None] * norms[columns] - root_d * math.log2(math.e))


def solve(k: Tensor, v: Tensor, multiply_keys: Product, multiply_values: Product) -> Tensor:
    """Solve block row by block row as the kernel does, all but its two products exactly."""
    y = torch.zeros_like(v)
    for first in range(0, len(k), ROWS):
        rows = slice(first, first + ROWS)
        total = torch.zeros(ROWS, WIDTH)
        for start in range(0, first, COLUMNS):
            columns = slice(start, start + COLUMNS)
            total = multiply_values(weights(k, rows, columns, multiply_keys), y[columns], total)
        own = weights(k, rows, rows, multiply_keys).tril(-1).double() + torch.eye(ROWS, dtype=torch.float64)
        y[rows] = torch.linalg.solve_triangular(own, (v[rows] - total).double(), upper=False).float()
    return y


def error(kind: float | str, tokens: int, multiply_keys: Product, multiply_values: Product) -> float:
    k, v = make_keys(kind, tokens), torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(2))
    shaped = [x.double()[None, None] for x in (k, v)]
    nothing = shaped[0][:, :, :0]
    exact = precondition_reference(*shaped, nothing, nothing, torch.ones(1, tokens, dtype=torch.bool), EPS)[0, 0]
    return relative(solve(k, v, multiply_keys, multiply_values), exact)


def test_a_product_of_three_loses_2_to_the_minus_21_of_each_pair_at_most() -> None:
    """Of that, half is the product of the two rests, which has either sign, as the rest of what is lost has."""
    generator = torch.Generator().manual_seed(0)
    x, y = (1 + torch.rand(2, 1 << 16, generator=generator)) * 2.0 ** torch.randint(
        -2, 15, (2, 1 << 16), generator=generator
    )
    (x_high, x_low), (y_high, y_low) = (tuple(part.double() for part in float16_parts(each)) for each in (x, y))
    size = x.double() * y.double()
    assert bool(((x_low * y_low).abs() <= 2.0**-22 * size).all())
    for whole, high, low in ((x, x_high, x_low), (y, y_high, y_low)):
        assert bool(((high + low - whole.double()).abs() <= 2.0**-23 * whole).all())
    lost = (x_low * y_high + x_high * y_low + x_high * y_high - x.double() * y.double()) / size
    assert lost.abs().max() <= 2.0**-21
    assert lost.abs().max() > 2.0**-23, "the bound is near what happens"
    assert lost.mean().abs() < 2.0**-21 / 100


@pytest.mark.parametrize("kind", [0.0, 0.5, 0.9, 0.99, "repeated"])
def test_the_solve_is_as_exact_as_in_plain_float32(kind: float | str) -> None:
    found, plain = (error(kind, 320, way, way) for way in (add_halves_from_zero, add_float32))
    assert found <= FACTOR["float32"] * plain + FLOOR["float32"]


@pytest.mark.parametrize("kind", [0.5, 0.9, 0.99, "repeated"])
def test_one_product_would_fail_that_gate(kind: float | str) -> None:
    found, plain = (error(kind, 128, way, way) for way in (add_one_half, add_float32))
    assert found > 20 * plain


@pytest.mark.parametrize(("kind", "in_keys"), [(0.9, True), (0.99, True), ("repeated", True), (0.5, False)])
def test_sums_that_are_handed_on_lose_more_than_sums_from_zero(kind: float | str, in_keys: bool) -> None:
    """Of keys by chunks of the width; of E and Y by tiles, where keys are little alike and every row has many."""
    ways = (add_halves, add_halves_from_zero) if in_keys else (add_halves_from_zero, add_halves)
    from_zero = error(kind, 512, add_halves_from_zero, add_halves_from_zero)
    assert error(kind, 512, *ways) > 1.25 * from_zero
