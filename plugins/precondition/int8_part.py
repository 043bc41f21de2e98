"""Multiply E = exp(K̂K̂ᵀ/√d − √d) by Y in two products: its bfloat16 part by Y, and its int8 remainder by an int8 Y.

Tensor cores multiply int8 two (compute capability 8.0) or four times (GeForce: 8.6, 8.9, 12.0) as fast as bfloat16 with
float32 sums. Each column of a tile of Y has a scale, its largest magnitude / 127. The int8 tile is stored transposed,
since int8 products read four tokens side by side. Its tokens are in the order in which threads hold E.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

from lucid_deploy.plugins.shared.kernel import load_columns

LARGEST = tl.constexpr(127.0)  # largest int8 magnitude
STEPS = tl.constexpr(127.0 * 512.0)  # int8 steps per 1: remainders are at most 2⁻⁹, as E is at most 1
ROUND = tl.constexpr(12582912.0)  # 1.5 · 2²³: adding it rounds a float32 to an integer
ROUND_BITS = tl.constexpr(0x4B400000)  # bits of ROUND; adding an integer up to 2²² gives the bits of ROUND + integer
LEAST = tl.constexpr(1e-30)  # smallest step of a column, which avoids a division by 0
ALIGNMENT = tl.constexpr(256)


@triton.jit
def head_memory(p_work, i_batch_head, n_batch_heads, n_tiles, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return pointers to a head's inverse norms, scales and int8 tiles, which follow the counters in the workspace.

    Norms are float32 ``(B, H, n_tiles, BLOCK_N)``, scales float32 ``(B, H, n_tiles, BLOCK_D)`` and tiles int8
    ``(B, H, n_tiles, BLOCK_D, BLOCK_N)``.
    """
    n_all = tl.cast(n_batch_heads * n_tiles, tl.int64)
    i_first = i_batch_head.to(tl.int64) * n_tiles
    p_norms = p_work.to(tl.pointer_type(tl.int8)) + tl.cdiv(4 * (1 + n_batch_heads), ALIGNMENT) * ALIGNMENT
    p_scales = p_norms + n_all * (4 * BLOCK_N)
    p_bytes = p_scales + n_all * (4 * BLOCK_D) + i_first * (BLOCK_D * BLOCK_N)
    p_norms = p_norms.to(tl.pointer_type(tl.float32)) + i_first * BLOCK_N
    return p_norms, p_scales.to(tl.pointer_type(tl.float32)) + i_first * BLOCK_D, p_bytes


@triton.jit
def largest_shift(b_norms, m_rows, epsilon, shift):
    """Return the base-2 shift that makes E at most 1 in a block of rows, and close to 1 for the most similar keys.

    It is √d·√(m/(m + ε)) · log₂e, where m is the mean square of the block's largest key. With the usual shift, E and
    the training L_ii are small if all keys are small, so that half an int8 step is large beside L_ii.
    """
    b_least = tl.min(tl.where(m_rows, b_norms * b_norms, float("inf")), 0)
    return shift * tl.sqrt(tl.maximum(1.0 - epsilon * b_least, 0.0))


@triton.jit
def byte_order(o_n):
    """Return each token's position in an int8 tile: of each 16, tokens 2t, 2t + 1, 2t + 8, 2t + 9 are neighbours."""
    return (o_n & -16) | (o_n & 6) << 1 | (o_n & 8) >> 2 | (o_n & 1)


@triton.jit
def in_byte_order(b_rows, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Reorder the columns of ``(BLOCK_M, BLOCK_N)`` as :func:`byte_order`, without moves between threads."""
    b_rows = tl.reshape(b_rows, (BLOCK_M, BLOCK_N // 16, 2, 4, 2))
    return tl.reshape(tl.permute(b_rows, (0, 1, 3, 2, 4)), (BLOCK_M, BLOCK_N))


@triton.jit
def bfloat16_and_int8(b_e):
    """Split E, 0 to 1, into the nearest bfloat16 number and the remainder in int8 steps of 1 / STEPS.

    The remainder is the low byte of a float32 that is so large that it has no fractional bits. NaN is lost: the GPU's
    NaN, 0x7fffffff, is rounded to 0. Conversions that preserve NaN run at a quarter of the rate.
    """
    b_high = ((b_e.to(tl.int32, bitcast=True) + 32768) & -65536).to(tl.float32, bitcast=True)
    b_rest = (b_e - b_high) * STEPS + ROUND
    return b_high.to(tl.bfloat16), b_rest.to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def store_bytes(p_scales, p_bytes, i_tile, b_y, m_n, i_first, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
                CHUNK_D: tl.constexpr):  # fmt: skip
    """Store columns of a tile of Y from ``i_first`` on, ``(BLOCK_N, CHUNK_D)``: scales and int8, 0 outside ``m_n``."""
    p_scales += i_tile * BLOCK_D
    p_bytes += tl.cast(i_tile, tl.int64) * (BLOCK_D * BLOCK_N)
    o_n = tl.arange(0, BLOCK_N)
    o_d = i_first + tl.arange(0, CHUNK_D)
    b_y = tl.where(m_n[:, None], b_y, 0.0)
    b_step = tl.maximum(tl.max(tl.abs(b_y), 0) / LARGEST, LEAST)
    tl.store(p_scales + o_d, b_step / STEPS)
    b_bytes = (b_y * (1.0 / b_step)[None, :] + ROUND).to(tl.int32, bitcast=True).to(tl.int8)
    tl.store(p_bytes + o_d[None, :] * BLOCK_N + byte_order(o_n)[:, None], b_bytes)


@triton.jit
def add_two_products(b_e, p_tile, m_tile, width, p_scales, p_bytes, i_tile, b_accs, BLOCK_N: tl.constexpr,
                     BLOCK_D: tl.constexpr, CHUNK_D: tl.constexpr):  # fmt: skip
    """Return ``b_accs``, float32 with CHUNK_D columns each, plus E times a tile of Y: a bfloat16 and an int8 product.

    Computing the int8 product first keeps fewer registers live.
    """
    BLOCK_M: tl.constexpr = b_e.shape[0]
    p_scales += i_tile * BLOCK_D
    p_bytes += tl.cast(i_tile, tl.int64) * (BLOCK_D * BLOCK_N)
    o_n = tl.arange(0, BLOCK_N)
    b_high, b_low = bfloat16_and_int8(b_e)
    b_low = in_byte_order(b_low, BLOCK_M, BLOCK_N)
    b_sums = ()
    for i in tl.static_range(len(b_accs)):
        o_d = i * CHUNK_D + tl.arange(0, CHUNK_D)
        b_y = load_columns(p_tile, o_n, m_tile, i * CHUNK_D, width, CHUNK_D)
        b_bytes = tl.load(p_bytes + o_d[:, None] * BLOCK_N + o_n[None, :])
        b_low_sum = tl.dot(b_low, tl.trans(b_bytes), tl.full((BLOCK_M, CHUNK_D), ROUND_BITS, tl.int32))
        b_low_sum = b_low_sum.to(tl.float32, bitcast=True) - ROUND
        b_acc = b_accs[i] + b_low_sum * tl.load(p_scales + o_d)[None, :]
        b_sums = b_sums + (tl.dot(b_high, b_y, b_acc),)  # type: ignore[assignment]  # noqa: RUF005
    return b_sums
