"""Powers of two that bring float32 keys and Y into the range of float16, so that they can be split into float16 parts.

Multiplying by a power of two is exact, and so is dividing the products. Each key has its own, from its norm. Y has one
for every 64 past tokens and one for each block of new rows, from the largest magnitude; these are in the workspace,
after the inverse norms. The weights E / L_ii, at most e^(√d/4), are scaled by adding to their exponents.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

from lucid_deploy.plugins.shared.kernel import EXPONENT, ONE

MANTISSA = tl.constexpr(0x007FFFFF)  # float32's mantissa bits
KEY_POWER = tl.constexpr(64.0)  # brings a key's sqrt(mean(K²) + ε) to 32 … 64, so that no magnitude exceeds 1024
# E / L_ii is at most exp(√d(√r − r)), r = m/(m + ε): e⁴ for heads up to 256 wide. e⁴ · 2⁹ = 27,954 fits float16.
E_POWER = tl.constexpr(9)
SUM_FACTOR = tl.constexpr((2 * 127 - E_POWER.value) << 23)  # minus the bits of a power p: the bits of 2⁻⁹ / p
PAST_TOKENS = tl.constexpr(64)  # past tokens that share a power


@triton.jit
def key_powers(b_norms):
    """Return the powers of two to multiply keys by, from their inverse norms; infinity if these are infinite or NaN."""
    return (b_norms.to(tl.int32, bitcast=True) & EXPONENT).to(tl.float32, bitcast=True) * KEY_POWER


@triton.jit
def key_factors(b_norms):
    """Return the inverse norms of keys that were multiplied by their :func:`key_powers`."""
    b_bits = (b_norms.to(tl.int32, bitcast=True) & MANTISSA) | ONE
    return b_bits.to(tl.float32, bitcast=True) * (1.0 / KEY_POWER)


@triton.jit
def largest_finite(b_y):
    """Return the largest finite magnitude in ``b_y``; 0 if there is none."""
    b_size = tl.abs(b_y)
    return tl.max(tl.max(tl.where(b_size < float("inf"), b_size, 0.0), 1), 0)


@triton.jit
def sum_factor(power):
    """Return 2⁻⁹ / ``power``: undoes the scaling of E by 2⁹ and of Y by ``power`` in their product."""
    return (-power.to(tl.int32, bitcast=True) + SUM_FACTOR).to(tl.float32, bitcast=True)


@triton.jit
def powers_in(p_norms_end, i_batch_head, n_batch_heads, n_past, n_rows):
    """Return pointers to a head's powers of two for past rows of Y, and to those for its ``n_rows`` blocks of new rows.

    In the workspace they are float32: for the past ``(B, H, ⌈n_past / PAST_TOKENS⌉)``, then ``(B, H, n_rows)``.
    """
    n_past_powers = tl.cdiv(n_past, PAST_TOKENS)
    p_past = p_norms_end + i_batch_head.to(tl.int64) * n_past_powers
    p_new = p_norms_end + tl.cast(n_batch_heads, tl.int64) * n_past_powers + i_batch_head.to(tl.int64) * n_rows
    return p_past, p_new
