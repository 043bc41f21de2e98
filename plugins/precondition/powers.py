"""Powers of two that bring float32 keys and Y into the range of float16, whose parts tensor cores multiply.

Multiplying by them is exact, and so is dividing by them behind a product. Keys have one a row, of their norm; Y has one
for 64 past tokens and for each block row, of its largest number, in the workspace behind the inverse norms. E over L_ii
is at most e^(√d/4), and is made larger in its exponent.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

from lucid_deploy.plugins.shared.kernel import EXPONENT, ONE

MANTISSA = tl.constexpr(0x007FFFFF)  # of float32's bits
KEY_POWER = tl.constexpr(64.0)  # the root of a key's mean square is 32 to 64: its largest number at most 1024
# E over L_ii is at most exp(√d(√r − r)), r = m/(m + ε): e⁴ in heads up to 256 wide, and e⁴ · 2⁹ is 27,954.
E_POWER = tl.constexpr(9)
SUM_FACTOR = tl.constexpr((2 * 127 - E_POWER.value) << 23)  # less a power's bits: 2⁻⁹ over it
PAST_TOKENS = tl.constexpr(64)  # that have one power


@triton.jit
def key_powers(b_norms):
    """Return what keys are multiplied by: a power of two of their inverse norms; infinite where these are, or NaN."""
    return (b_norms.to(tl.int32, bitcast=True) & EXPONENT).to(tl.float32, bitcast=True) * KEY_POWER


@triton.jit
def key_factors(b_norms):
    """Return the inverse norms of keys that were multiplied by :func:`key_powers`."""
    b_bits = (b_norms.to(tl.int32, bitcast=True) & MANTISSA) | ONE
    return b_bits.to(tl.float32, bitcast=True) * (1.0 / KEY_POWER)


@triton.jit
def largest_finite(b_y):
    """Return the largest of the absolute values that are numbers; 0 if there is none."""
    b_size = tl.abs(b_y)
    return tl.max(tl.max(tl.where(b_size < float("inf"), b_size, 0.0), 1), 0)


@triton.jit
def sum_factor(power):
    """Return what a product of E and rows that were multiplied by ``power`` is multiplied by."""
    return (-power.to(tl.int32, bitcast=True) + SUM_FACTOR).to(tl.float32, bitcast=True)


@triton.jit
def powers_in(p_norms_end, i_batch_head, n_batch_heads, n_past, n_rows):
    """Return where a head's powers for past rows of Y stand, and those for its ``n_rows`` block rows.

    They are float32, past ones ``(B, H, ⌈n_past / PAST_TOKENS⌉)``, then ``(B, H, n_rows)``.
    """
    n_past_powers = tl.cdiv(n_past, PAST_TOKENS)
    p_past = p_norms_end + i_batch_head.to(tl.int64) * n_past_powers
    p_new = p_norms_end + tl.cast(n_batch_heads, tl.int64) * n_past_powers + i_batch_head.to(tl.int64) * n_rows
    return p_past, p_new
