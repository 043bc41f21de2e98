"""How many parts bfloat16's weights need: the bound of plugins/precondition/README.md, and what lies below it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.plugins.kernel_cases import round_weights
from tests.plugins.problems import keys, relative

TOKENS, WIDTH = 384, 64
STEPS = 127 * 512  # of int8 rests in 1
TILE = 64  # tokens whose bytes share a step
ALLOWED = 1 / 4  # norm of E at which the bound of one part, 2 · 2⁻⁸ ‖E‖, is what storing Y costs: about 2⁻⁹


def weights(correlation: float | str) -> Tensor:
    """Return the strictly lower part of L, float64; ``repeated``: the same three keys over and over."""
    if correlation == "repeated":
        k = keys(0.0, 3, WIDTH, seed=1)[torch.arange(TOKENS) % 3]
    else:
        k = keys(float(correlation), TOKENS, WIDTH, seed=1)
    k = k / k.square().mean(-1, keepdim=True).sqrt()
    return torch.exp(k @ k.mT / math.sqrt(WIDTH) - math.sqrt(WIDTH)).tril(-1)


def one_part(e: Tensor) -> Tensor:
    return e.to(torch.bfloat16).double()


def two_parts(e: Tensor) -> Tensor:
    """As ``bfloat16_parts``: the high part is cut off, the low one rounded."""
    single = e.float()
    high = (single.view(torch.int32) & -65536).view(torch.float32)
    return high.double() + (single - high).to(torch.bfloat16).double()


def float16_part(e: Tensor) -> Tensor:
    return e.to(torch.float16).double()


def bfloat16_and_int8(e: Tensor) -> Tensor:
    """As ``bfloat16_and_int8``: rounded, and what is left in steps of 2⁻⁹ / 127."""
    high = e.float().to(torch.bfloat16).double()
    return high + ((e - high) * STEPS).round() / STEPS


def row_norm(e: Tensor) -> float:
    """Return the root mean square over rows of a row's Euclidean norm."""
    return math.sqrt(e.square().sum(1).mean().item())


def solve(e: Tensor, v: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(e + torch.eye(TOKENS, dtype=torch.float64), v, upper=False, unitriangular=True)


def errors(correlation: float | str) -> tuple[Tensor, float, dict[str, tuple[float, float]]]:
    """Return E, what bfloat16's rounding of Y alone costs, and for each way to round E the error and its bound."""
    e, v = (
        weights(correlation),
        torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64),
    )
    exact = solve(e, v)
    found = {}
    parts = (
        ("one", one_part(e), 2.0**-8, 1e-38),
        ("two", two_parts(e), 2.0**-15, 1e-38),
        ("float16", float16_part(e), 2.0**-11, 2.0**-25),
        ("int8", bfloat16_and_int8(e), 2.0**-8, 1e-38),
        ("gate", round_weights(e.float(), torch.bfloat16).double(), 2.0**-11, 1e-38),
    )
    for name, rounded, unit, least in parts:
        lost = (rounded - e).abs()
        assert bool((lost <= unit * e * (1 + 2.0**-12) + least).all())
        bound = 2 * torch.linalg.matrix_norm(rounded - e, 2).item()
        found[name] = (relative(solve(rounded, v), exact), bound / (1 - bound) if bound < 1 else math.inf)
    return e, relative(exact.to(torch.bfloat16), exact), found


@pytest.mark.parametrize("correlation", [0.0, 0.9, 0.99, "repeated"])
def test_the_bound_holds_and_two_parts_cost_less_than_storing_y(correlation: float | str) -> None:
    _, stored, found = errors(correlation)
    for error, bound in found.values():
        assert error <= bound
    assert found["two"][0] < stored / 4
    assert found["int8"][0] < stored / 4


@pytest.mark.parametrize("correlation", [0.5, 0.9, 0.99])
def test_one_part_costs_more_than_storing_y_with_keys_that_are_alike(correlation: float | str) -> None:
    e, stored, found = errors(correlation)
    assert torch.linalg.matrix_norm(e, 2) > ALLOWED
    assert found["one"][0] > stored / 2, "already with keys correlated 0.5"
    assert correlation == 0.5 or found["one"][0] > 5 * stored


def test_one_part_would_do_with_independent_keys() -> None:
    e, stored, found = errors(0.0)
    assert torch.linalg.matrix_norm(e, 2) < ALLOWED
    assert found["one"][0] < stored / 4


@pytest.mark.parametrize("correlation", [0.5, 0.9, 0.99])
def test_one_float16_part_costs_as_much_as_storing_y_where_a_row_of_e_has_norm_8(correlation: float) -> None:
    e, stored, found = errors(correlation)
    foretold = stored * row_norm(e) / 8
    assert foretold / 2 < found["float16"][0] < foretold * 2
    assert correlation < 0.99 or found["float16"][0] > stored
    assert found["two"][0] < found["float16"][0] / 8


@pytest.mark.parametrize("correlation", [0.0, 0.9, 0.99, "repeated"])
def test_the_gate_of_the_kernels_would_not_see_one_float16_part(correlation: float | str) -> None:
    _, stored, found = errors(correlation)
    assert found["float16"][0] <= found["gate"][0] * 1.01 + stored / 100


def solve_with_bytes(e: Tensor, low: Tensor, v: Tensor) -> Tensor:
    """Solve by rows of tiles: ``low`` of E times Y in bytes, a step for each column of a tile; the rest exactly."""
    y, rounded = torch.zeros_like(v), torch.zeros_like(v)
    for first in range(0, len(v), TILE):
        rows = slice(first, first + TILE)
        right = v[rows] - (e - low)[rows, :first] @ y[:first] - low[rows, :first] @ rounded[:first]
        y[rows] = torch.linalg.solve_triangular(e[rows, rows], right, upper=False, unitriangular=True)
        step = y[rows].abs().amax(0) / 127
        rounded[rows] = (y[rows] / step).round() * step
    return y


@pytest.mark.parametrize("larger", [1, 10, 100, 1000])
def test_large_values_take_bytes_from_the_others_of_their_tile(larger: int) -> None:
    """In each tile one token has a key of its own and larger values: what bytes cost the others (docs/tensorrt.md)."""
    generator = torch.Generator().manual_seed(5)
    k, v = (torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2))
    others = torch.arange(TOKENS) % TILE != 5
    k[others] = math.sqrt(0.9) * k[0] + math.sqrt(0.1) * k[others]
    v[~others] *= larger
    k = k / k.square().mean(1, keepdim=True).sqrt()
    e = torch.exp(k @ k.T / math.sqrt(WIDTH) - math.sqrt(WIDTH)).tril(-1)
    unit = torch.eye(TOKENS, dtype=torch.float64)
    exact = torch.linalg.solve_triangular(e + unit, v, upper=False, unitriangular=True)

    def error(found: Tensor) -> float:
        return ((found - exact).norm(dim=1) / exact.norm(dim=1))[others].median().item()

    high = one_part(e)
    low = bfloat16_and_int8(e) - high
    in_bytes = error(solve_with_bytes(high + low + unit, low, v))
    stored = error(exact.to(torch.bfloat16).double())
    one = error(torch.linalg.solve_triangular(high + unit, v, upper=False, unitriangular=True))
    assert in_bytes < (stored if larger <= 10 else 1.2 * one)
    assert in_bytes > stored or larger < 1000
