"""Triton functions of decoding: load query rows, and multiply them with one tile of the cache."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

from lucid_deploy.plugins.shared.kernel import (
    add_product,
    bfloat16_parts,
    cut_tf32,
    float16_parts,
    float16_power,
    load_columns,
    round_tf32,
)

LEAST_ROWS = tl.constexpr(16)  # fewest rows of a tensor core's product
LOWEST = tl.constexpr(-3.0e38)  # close to the lowest bfloat16 number


@triton.jit
def load_tile_tokens(p_mask, o_n, m_n):
    """Return which positions are tokens, as ``load_tokens`` does, to mask loads of tensor cores' operands.

    The compiler lays out a product's operands for the narrowest type that they depend on. For the mask's bytes that
    would take hundreds of moves between registers. It does not see the bytes behind a maximum, here over one column.
    """
    b_bytes = tl.load(p_mask + o_n[:, None] + tl.arange(0, 1)[None, :], mask=m_n[:, None], other=0)
    return tl.max(b_bytes.to(tl.int32), axis=1) != 0


@triton.jit
def load_queries(p_q, p_k_new, o_r, n_queries, m_new, width, epsilon, BLOCK_D: tl.constexpr, CHUNK_D: tl.constexpr,
                 FLOAT8: tl.constexpr, TF32: tl.constexpr = False):  # fmt: skip
    """Return queries and new keys in chunks of columns, low parts (float32 only), powers, and keys' inverse norms.

    In float32 the rows are multiplied by powers of two and split into two parts: float16 or, with TF32, tf32. With a
    cache of E4M3, bfloat16 rows are multiplied by the powers and rounded to float16. Otherwise the powers are 1.
    """
    IS_FLOAT32: tl.constexpr = p_q.dtype.element_ty == tl.float32
    b_numbers, b_rows, b_rests = (), (), ()
    b_square = tl.zeros((o_r.shape[0], CHUNK_D), tl.float32)
    b_largest = tl.zeros((o_r.shape[0], CHUNK_D), tl.float32)
    for i in tl.static_range(0, BLOCK_D, CHUNK_D):
        b_k = load_columns(p_k_new, o_r - n_queries, m_new, i, width, CHUNK_D)
        b_q = load_columns(p_q, o_r, o_r < n_queries, i, width, CHUNK_D)
        b_q = tl.where(m_new[:, None], b_k, b_q)
        if TF32:
            b_square = tl.fma(b_k, b_k, b_square)
        else:
            b_square += b_k.to(tl.float32) * b_k.to(tl.float32)
        b_largest = tl.maximum(b_largest, tl.abs(b_q.to(tl.float32)))
        b_numbers = b_numbers + (b_q,)  # type: ignore[assignment]  # noqa: RUF005
    b_norms = tl.where(m_new, tl.rsqrt(tl.sum(b_square, axis=1) / width + epsilon), 0.0)
    b_powers = tl.full((o_r.shape[0],), 1.0, tl.float32)
    if IS_FLOAT32 or (FLOAT8 and p_q.dtype.element_ty == tl.bfloat16):
        b_powers = float16_power(tl.max(b_largest, axis=1))
        for i in tl.static_range(len(b_numbers)):
            if TF32:
                b_high, b_low = round_tf32(b_numbers[i] * b_powers[:, None])
            else:
                b_high, b_low = float16_parts(b_numbers[i].to(tl.float32) * b_powers[:, None])
            b_rows = b_rows + (b_high,)  # type: ignore[assignment]  # noqa: RUF005
            if IS_FLOAT32:
                b_rests = b_rests + (b_low,)  # type: ignore[assignment]  # noqa: RUF005
    else:
        b_rows = b_numbers
    return b_rows, b_rests, b_powers, b_norms


@triton.jit
def add_columns(b_rows, b_sums):
    """Add the row sums of ``b_rows``, of a half type, to each row of ``b_sums``, ``(LEAST_ROWS, BLOCK_N)``."""
    b_ones = tl.full((LEAST_ROWS, b_rows.shape[1]), 1.0, b_rows.dtype)
    return tl.dot(b_ones, tl.trans(b_rows), b_sums)


@triton.jit
def multiply_keys(b_rows, b_rests, p_tile, m_tile, width, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
                  CHUNK_D: tl.constexpr, ADD_SQUARES: tl.constexpr):  # fmt: skip
    """Return scores ``(ROWS, BLOCK_N)``, keys' squares summed over chunks ``(BLOCK_N, CHUNK_D)``, and keys' powers.

    Columns are read in chunks, so that few threads share a row: this saves masks, addresses and sums across threads.

    In float32 each key is first multiplied by a power of two, made from its largest magnitude. The scores contain it,
    and the caller divides by it. In the other types the powers are 1.

    With ADD_SQUARES tensor cores sum the squares over all columns: ``(LEAST_ROWS, BLOCK_N)``, all rows alike. Thus
    keys are read from shared memory once. For E4M3, a square / 16 is exact in float16. For bfloat16, a square is split
    into two bfloat16 parts; the second is finite even if the first is infinite, since ∞ − ∞ would be NaN. For float16,
    squares are first summed over chunks in float32 and then split into two bfloat16 parts, which hold 16 bits.
    """
    o_n = tl.arange(0, BLOCK_N)
    b_square = tl.zeros((BLOCK_N, CHUNK_D), tl.float32)
    b_scores = tl.zeros((ROWS, BLOCK_N), tl.float32)
    b_small = tl.zeros((ROWS, BLOCK_N), tl.float32)
    b_sums = tl.zeros((LEAST_ROWS, BLOCK_N), tl.float32)
    b_largest = tl.zeros((BLOCK_N, CHUNK_D), tl.float32)
    b_keys = ()
    b_powers = tl.full((BLOCK_N,), 1.0, tl.float32)
    for i in tl.static_range(len(b_rows)):
        b_k = load_columns(p_tile, o_n, m_tile, i * CHUNK_D, width, CHUNK_D)
        if ADD_SQUARES and p_tile.dtype.element_ty == tl.bfloat16:
            b_high = b_k * b_k
            b_low = tl.maximum(tl.fma(b_k, b_k, -b_high), LOWEST)
            b_sums = add_columns(b_low, b_sums)
            b_sums = add_columns(b_high, b_sums)
        elif ADD_SQUARES and p_tile.dtype.element_ty == tl.float8e4nv:
            b_half = b_k.to(tl.float16)
            b_sums = add_columns(b_half * (b_half * (1.0 / 16.0)), b_sums)  # 448² would overflow float16
        else:
            b_square += b_k.to(tl.float32) * b_k.to(tl.float32)
        if p_tile.dtype.element_ty == tl.float32:
            b_largest = tl.maximum(b_largest, tl.abs(b_k))
            b_keys = b_keys + (b_k,)  # type: ignore[assignment]  # noqa: RUF005
        else:
            if len(b_rests) > 0:
                b_small = tl.dot(b_rests[i], tl.trans(b_k.to(tl.float16)), b_small)
            b_scores = tl.dot(b_rows[i], tl.trans(b_k.to(b_rows[i].dtype)), b_scores)
    if p_tile.dtype.element_ty == tl.float32:
        b_powers = float16_power(tl.max(b_largest, axis=1))
        for i in tl.static_range(len(b_rows)):
            b_high, b_low = float16_parts(b_keys[i] * b_powers[:, None])
            b_small = tl.dot(b_rows[i], tl.trans(b_low), b_small)
            b_small = tl.dot(b_rests[i], tl.trans(b_high), b_small)
            b_scores = tl.dot(b_rows[i], tl.trans(b_high), b_scores)
    if p_tile.dtype.element_ty == tl.float8e4nv:
        b_sums *= 16.0
    if ADD_SQUARES and p_tile.dtype.element_ty == tl.float16:
        b_high, b_low = bfloat16_parts(b_square)
        b_sums = add_columns(b_low, b_sums)
        b_sums = add_columns(b_high, b_sums)
    return b_scores + b_small, b_sums if ADD_SQUARES else b_square, b_powers


@triton.jit
def add_values(b_p, b_decay, p_tile, b_scales, m_tile, width, b_accs, BLOCK_N: tl.constexpr, CHUNK_D: tl.constexpr,
               DTYPE: tl.constexpr, Y_BY_FLOAT32: tl.constexpr):  # fmt: skip
    """Return ``b_accs``, CHUNK_D columns each, times the decay plus the products of weights with a tile of Y.

    If Q is bfloat16, the scales of Y multiply the weights, whose bfloat16 parts do not overflow. In float16 they could.
    With Y_BY_FLOAT32, E4M3 is converted to float32 first: the direct conversion runs at an eighth of the rate on 9.0.
    """
    o_n = tl.arange(0, BLOCK_N)
    if b_scales is not None and DTYPE != tl.float16:  # noqa: SIM300
        b_p *= b_scales[None, :]
    b_high, b_low = round_tf32(b_p)
    b_sums = ()
    for i in tl.static_range(len(b_accs)):
        b_y = load_columns(p_tile, o_n, m_tile, i * CHUNK_D, width, CHUNK_D)
        if b_scales is not None:
            if DTYPE == tl.float16:  # noqa: SIM300
                b_y = b_y.to(tl.float32) * b_scales[:, None]
            elif Y_BY_FLOAT32:
                b_y = b_y.to(tl.float32)
            b_y = b_y.to(DTYPE)
        b_acc = b_accs[i] * b_decay[:, None]
        if b_y.dtype == tl.float32:
            b_y_high, b_y_low = cut_tf32(b_y)
            b_sum = tl.dot(b_low, b_y_high, input_precision="tf32")
            b_sum = tl.dot(b_high, b_y_low, b_sum, input_precision="tf32")
            b_acc += tl.dot(b_high, b_y_high, b_sum, input_precision="tf32")
        else:
            b_acc = add_product(b_p, b_y, b_acc)
        b_sums = b_sums + (b_acc,)  # type: ignore[assignment]  # noqa: RUF005
    return b_sums
