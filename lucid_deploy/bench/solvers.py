"""Ways to solve LUCID's triangular system, in types of numbers, for comparing them: L = I + X, X strictly lower.

Each takes X and the right-hand side rounded to a type, accumulates products in float32 (float64 for float64), and
rounds whatever it keeps to that type. They are readable, not fast: :mod:`lucid_deploy.plugins.precondition` is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lucid_deploy.plugins.block_inverse.reference import invert_unit_lower
from lucid_deploy.plugins.shared.keys import compute_dtype, normalize_keys

BLOCK = 64
DTYPES = ("float32", "float16", "bfloat16")
Solver = Callable[[Tensor, Tensor], Tensor]


def entries(k: Tensor, eps: float) -> Tensor:
    """Return X = exp(K̂K̂ᵀ/√d − √d) below the diagonal and 0 elsewhere: ``(…, N, D)`` to ``(…, N, N)``."""
    root_d = math.sqrt(k.shape[-1])
    k_hat = normalize_keys(k, eps)
    return torch.exp(k_hat @ k_hat.mT / root_d - root_d).tril(-1)


def solve_dense(x: Tensor, v: Tensor) -> Tensor:
    """Solve with LAPACK's triangular solver: the whole matrix at once."""
    work = compute_dtype(v.dtype)
    return torch.linalg.solve_triangular(x.to(work), v.to(work), upper=False, unitriangular=True).to(v.dtype)


def solve_by_substitution(x: Tensor, v: Tensor) -> Tensor:
    """Solve row by row: y_i = v_i − Σ_{j<i} x_ij y_j. Shapes as in :func:`solve_dense`."""
    work, y = compute_dtype(v.dtype), torch.zeros_like(v)
    for i in range(v.shape[-2]):
        seen = x[..., i : i + 1, :i].to(work) @ y[..., :i, :].to(work)  # (…, 1, D)
        y[..., i : i + 1, :] = (v[..., i : i + 1, :].to(work) - seen).to(v.dtype)
    return y


def solve_blocked(x: Tensor, v: Tensor) -> Tensor:
    """Solve block row by block row with merged inverses of the diagonal blocks. Shapes as in :func:`solve_dense`."""
    work, y = compute_dtype(v.dtype), torch.zeros_like(v)
    for start in range(0, v.shape[-2], BLOCK):
        rows = slice(start, min(start + BLOCK, v.shape[-2]))
        size = rows.stop - start
        seen = x[..., rows, :start].to(work) @ y[..., :start, :].to(work)  # (…, b, D)
        block = x.new_zeros((*x.shape[:-2], BLOCK, BLOCK), dtype=work)
        block[..., :size, :size] = x[..., rows, rows].to(work)
        inverse = invert_unit_lower(block)[..., :size, :size].to(v.dtype).to(work)
        y[..., rows, :] = (inverse @ (v[..., rows, :].to(work) - seen)).to(v.dtype)
    return y


def solve_by_powers(x: Tensor, v: Tensor) -> Tensor:
    """Multiply by ∏ (I + (−X)^(2^k)), which is L⁻¹ on paper. A warning, not a method: keys that resemble each other.

    The powers of −X grow like binomials and alternate, so their sum cancels. Shapes as in :func:`solve_dense`.
    """
    work, y, power = compute_dtype(v.dtype), v, -x
    for _ in range(max(1, math.ceil(math.log2(v.shape[-2])))):
        y = (y.to(work) + power.to(work) @ y.to(work)).to(v.dtype)
        power = (power.to(work) @ power.to(work)).to(v.dtype)
    return y


SOLVERS: dict[str, Solver] = {
    "dense": solve_dense,
    "blocked": solve_blocked,
    "substitution": solve_by_substitution,
    "powers": solve_by_powers,
}


def solve(name: str, dtype: str, x: Tensor, v: Tensor) -> Tensor:
    """Solve with X and V rounded to a type; the result has V's own type."""
    rounded = getattr(torch, dtype)
    return SOLVERS[name](x.to(rounded), v.to(rounded)).to(v.dtype)


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Return the largest ‖found − exact‖ / ‖exact‖ over the heads ``(…, N, D)``; infinite if a number is not finite."""
    difference = (found.double() - exact).flatten(-2).norm(dim=-1) / exact.flatten(-2).norm(dim=-1)
    return float(difference.max()) if bool(difference.isfinite().all()) else math.inf
