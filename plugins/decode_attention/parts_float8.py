"""Triton functions of decoding: the loop over a cache of E4M3 in which each warp has its own part of a tile's tokens.

As in ``parts.py``: each warp attends to its own tokens, and the parts are combined once, after the loop.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

from lucid_deploy.plugins.decode_attention.parts import (
    LEAST_EPSILON,
    LEAST_TOKENS,
    add_own_products,
    diagonals,
    load_part_columns,
    load_part_tokens,
    of_each_part,
    row_halves,
    stack_rows,
)
from lucid_deploy.plugins.shared.kernel import INTERPRETED, float16_parts, float16_power, inverse_power

BYTE = tl.constexpr(8)  # bits
EIGHT = tl.constexpr(8)  # sums of weights per row in the loop, each over every eighth token
PAIR = tl.constexpr(2)  # columns of Y that are loaded as one number
HEADROOM = tl.constexpr(2.0**-6)  # with the training diagonal, new keys' weights reach exp(√d/4), 55 at width 256


@triton.jit
def load_part_pairs(p_rows, o_n, m_n, i_first, width, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load as ``load_part_columns`` does, but two one-byte columns as an int16: ``(parts, tokens, BLOCK / 2)``.

    A product needs two tokens of a column in a register; to fill it, the compiler would read bytes one by one.
    """
    o_d = i_first // PAIR + tl.arange(0, BLOCK // PAIR)
    m_columns = m_n[:, :, None]
    if 2 * (i_first + BLOCK) > BLOCK_D:
        m_columns = m_columns & (o_d < width // PAIR)[None, None, :]
    p_pairs = p_rows.to(tl.pointer_type(tl.int16)) + o_n[:, :, None] * (width // PAIR) + o_d[None, None, :]
    return tl.load(tl.max_contiguous(p_pairs, (2, 1, BLOCK)), mask=m_columns, other=0)


@triton.jit
def unpack_pairs(b_pairs):
    """Return the E4M3 numbers in the low bytes of int16, and those in the high bytes, as float16, which is exact.

    For the two int16 in a register, the assembly joins the two low bytes and the two high bytes, then converts both.
    """
    if INTERPRETED:
        b_low = b_pairs.to(tl.int8).to(tl.float8e4nv, bitcast=True).to(tl.float16)
        b_high = (b_pairs >> BYTE).to(tl.int8).to(tl.float8e4nv, bitcast=True).to(tl.float16)
    else:
        b_low, b_high = tl.inline_asm_elementwise(
            """{
            .reg .b32 sorted;
            .reg .b16 low, high;
            prmt.b32 sorted, $2, $2, 0x3120;
            mov.b32 {low, high}, sorted;
            cvt.rn.f16x2.e4m3x2 $0, low;
            cvt.rn.f16x2.e4m3x2 $1, high;
            }""",
            "=r,=r,r",
            [b_pairs],
            dtype=(tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )
    return b_low, b_high


@triton.jit
def weight_power(b_largest):
    """Return the power of two for products of weights with scales of Y, from each part's largest scale ``(parts,)``.

    It brings that scale to 2⁸ … 2⁹ only, since weights of new keys may be larger than 1.
    """
    return float16_power(b_largest) * HEADROOM


@triton.jit
def add_both_products(b_high, b_rest, b_y, b_acc, ALL_ROWS: tl.constexpr):
    """Return ``b_acc`` plus both parts of weights times Y: by one product for fewer than ALL_ROWS rows, else by two."""
    if b_high.shape[1] < ALL_ROWS:
        b_first, b_second = row_halves(tl.dot(stack_rows(b_high, b_rest), b_y))
        b_sum = b_acc + (b_first + b_second)
    else:
        b_sum = tl.dot(b_rest, b_y, tl.dot(b_high, b_y, b_acc))
    return b_sum


@triton.jit
def average_float8_in_parts(p_k, p_y, p_k_scale, p_y_scale, p_mask, n_past, i_first, n_step, width, epsilon, b_rows,
                            m_new, b_row_scale, b_shift,
                            BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK_D: tl.constexpr,
                            PARTS: tl.constexpr):  # fmt: skip
    """Attend as ``average_in_parts`` does, over an E4M3 cache: ``b_rows`` are float16; K and Y become float16.

    The scale of a row of Y multiplies its token's weights, in float32. A power of two brings the product into the range
    of float16: each part's power follows its largest scale so far, and sums are rescaled when it or a peak changes.
    """
    ROWS: tl.constexpr = b_shift.shape[0]
    ALL_ROWS: tl.constexpr = b_rows[0].shape[0]
    TOKENS: tl.constexpr = BLOCK_N // PARTS
    o_n = tl.arange(0, PARTS)[:, None] * TOKENS + tl.arange(0, TOKENS)[None, :]
    per_column = 1.0 / width
    least = tl.maximum(epsilon, LEAST_EPSILON)
    m_new, b_row_scale, b_shift, b_peak = of_each_part(m_new, b_row_scale, b_shift, PARTS)
    b_weights = tl.zeros((PARTS, ROWS, EIGHT), tl.float32)
    b_largest = tl.zeros((PARTS,), tl.float32)
    b_all, b_evens, b_odds = (), (), ()
    for i in tl.static_range(len(b_rows)):
        b_all = b_all + (tl.broadcast_to(b_rows[i][None, :, :], (PARTS, ALL_ROWS, CHUNK_D)),)  # type: ignore[assignment]  # noqa: RUF005
        b_evens = b_evens + (tl.zeros((PARTS, ROWS, CHUNK_D // PAIR), tl.float32),)  # type: ignore[assignment]  # noqa: RUF005
        b_odds = b_odds + (tl.zeros((PARTS, ROWS, CHUNK_D // PAIR), tl.float32),)  # type: ignore[assignment]  # noqa: RUF005
    for i in range(i_first, tl.cdiv(n_past, BLOCK_N), n_step):
        o_tile = tl.cast(i * BLOCK_N, tl.int64) * width
        m_tile = load_part_tokens(p_mask + i * BLOCK_N, o_n, i * BLOCK_N + o_n < n_past)
        b_k_scales = tl.load(p_k_scale + i * BLOCK_N + o_n, mask=m_tile, other=0.0)
        b_y_scales = tl.load(p_y_scale + i * BLOCK_N + o_n, mask=m_tile, other=0.0)
        b_scores = tl.zeros((PARTS, ALL_ROWS, TOKENS), tl.float32)
        b_squares = tl.zeros((BLOCK_N // LEAST_TOKENS, LEAST_TOKENS, LEAST_TOKENS), tl.float32)
        for j in tl.static_range(len(b_all)):
            b_k = load_part_columns(p_k + o_tile, o_n, m_tile, j * CHUNK_D, width, CHUNK_D, BLOCK_D).to(tl.float16)
            b_scores = tl.dot(b_all[j], tl.permute(b_k, (0, 2, 1)), b_scores)
            b_squares = add_own_products(b_k, b_squares)
        if ROWS < ALL_ROWS:
            b_scores, _ = row_halves(b_scores)
        b_means = diagonals(b_squares, PARTS) * per_column
        b_norms = tl.rsqrt(b_means * b_k_scales * b_k_scales + least) * b_k_scales
        b_hidden = tl.where(m_tile, 0.0, float("-inf"))
        b_factors = tl.where(m_new[:, :, None], b_norms[:, None, :], b_k_scales[:, None, :])
        b_scores = tl.fma(b_scores, b_factors, b_hidden[:, None, :])
        b_next = tl.where(m_new, b_shift, tl.maximum(b_peak, tl.max(b_scores, axis=2) * b_row_scale))
        b_safe = tl.where(b_next == float("-inf"), 0.0, b_next)  # no token yet: −∞ − (−∞) would be NaN
        b_p = tl.exp2(b_scores * b_row_scale[:, :, None] - b_safe[:, :, None])
        b_decay = tl.exp2(b_peak - b_safe)
        b_eights = tl.sum(tl.reshape(b_p, (PARTS, ROWS, TOKENS // EIGHT, EIGHT)), axis=2)
        b_weights = b_weights * b_decay[:, :, None] + b_eights
        b_power = weight_power(b_largest)
        b_largest = tl.maximum(b_largest, tl.max(b_y_scales, axis=1))
        b_moved = weight_power(b_largest)
        b_move = (b_decay * (b_moved * inverse_power(b_power))[:, None])[:, :, None]
        b_high, b_rest = float16_parts(b_p * (b_y_scales * b_moved[:, None])[:, None, :])
        b_next_evens, b_next_odds = (), ()
        for j in tl.static_range(len(b_all)):
            b_pairs = load_part_pairs(p_y + o_tile, o_n, m_tile, j * CHUNK_D, width, CHUNK_D, BLOCK_D)
            b_y_even, b_y_odd = unpack_pairs(b_pairs)
            b_even = add_both_products(b_high, b_rest, b_y_even, b_evens[j] * b_move, ALL_ROWS)
            b_odd = add_both_products(b_high, b_rest, b_y_odd, b_odds[j] * b_move, ALL_ROWS)
            b_next_evens = b_next_evens + (b_even,)  # type: ignore[assignment]  # noqa: RUF005
            b_next_odds = b_next_odds + (b_odd,)  # type: ignore[assignment]  # noqa: RUF005
        b_evens, b_odds = b_next_evens, b_next_odds
        b_peak = b_next

    b_top = tl.max(b_peak, axis=0)
    b_factors = tl.exp2(b_peak - tl.where(b_top == float("-inf"), 0.0, b_top)[None, :])
    b_sum = tl.sum(tl.sum(b_weights, axis=2) * b_factors, axis=0)
    b_factors = (b_factors * inverse_power(weight_power(b_largest))[:, None])[:, :, None]
    b_joined = ()
    for j in tl.static_range(len(b_evens)):
        b_even = tl.sum(b_evens[j] * b_factors, axis=0)
        b_odd = tl.sum(b_odds[j] * b_factors, axis=0)
        b_joined = b_joined + (tl.reshape(tl.join(b_even, b_odd), (ROWS, CHUNK_D)),)  # type: ignore[assignment]  # noqa: RUF005
    return b_top, b_sum, b_joined
