"""Kernels around the powers of two for float32. Imported in an interpreter's process."""

# mypy: disallow-untyped-defs=False

import triton
import triton.language as tl

from lucid_deploy.plugins.precondition.powers import (
    key_factors,
    key_powers,
    largest_finite,
    powers_in,
    sum_factor,
)
from lucid_deploy.plugins.shared.kernel import float16_power


@triton.jit
def keys_kernel(p_norms, p_powers, p_factors, BLOCK: tl.constexpr):
    """Write what keys with these inverse norms are multiplied by, and what is left of the norms."""
    o = tl.arange(0, BLOCK)
    b_norms = tl.load(p_norms + o)
    tl.store(p_powers + o, key_powers(b_norms))
    tl.store(p_factors + o, key_factors(b_norms))


@triton.jit
def rows_kernel(p_y, p_out, M: tl.constexpr, D: tl.constexpr):
    """Write the largest finite number of a block, its power of two, and the factor of sums."""
    b_y = tl.load(p_y + tl.arange(0, M)[:, None] * D + tl.arange(0, D)[None, :])
    largest = largest_finite(b_y)
    power = float16_power(largest)
    tl.store(p_out, largest)
    tl.store(p_out + 1, power)
    tl.store(p_out + 2, sum_factor(power))


@triton.jit(do_not_specialize=["n_heads", "n_past", "n_rows"])
def places_kernel(p_memory, n_heads, n_past, n_rows):
    """Write head + 1 at a head's first past power, and 100 + head at that of its first block row."""
    p_past, p_new = powers_in(p_memory, tl.program_id(0), n_heads, n_past, n_rows)
    if n_past > 0:
        tl.store(p_past, tl.program_id(0) + 1.0)
    tl.store(p_new, tl.program_id(0) + 100.0)
