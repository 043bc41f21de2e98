"""Triton kernels of decode attention, in one pass over the cache: the new keys are extra query rows.

The weights of a new key, E = exp(k̂·k̂_j/√d − √d), are softmax weights with a known peak, √d (or √d + log L_ii, which
also divides the row by L_ii). So queries and new keys share the product with K and the product with Y. For several new
tokens a triangular system of at most 16 × 16 remains, which is solved when the splits of the cache are combined.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

from lucid_deploy.plugins.block_inverse.kernel import invert_unit_lower
from lucid_deploy.plugins.decode_attention.parts import average_float32_in_parts, average_in_parts, first_half
from lucid_deploy.plugins.decode_attention.parts_float8 import average_float8_in_parts
from lucid_deploy.plugins.decode_attention.tile import (
    LEAST_ROWS,
    add_values,
    load_queries,
    load_tile_tokens,
    multiply_keys,
)
from lucid_deploy.plugins.shared.kernel import (
    inverse_norms,
    inverse_power,
    load_rows,
    load_scales,
    load_tokens,
    row_shifts,
)

SMALLEST = tl.constexpr(2.0**-126)  # smallest normal float32
HIDDEN = tl.constexpr(-1.0)  # replaces the inverse norm of a token that is padding or beyond the end


@triton.jit(do_not_specialize=["n_past", "n_heads", "n_groups", "n_new", "n_splits", "width_units"])
def decode_split_kernel(
    p_q,
    p_k_new,
    p_k,
    p_y,
    p_k_scale,
    p_y_scale,
    p_mask,
    p_work,
    n_past,
    n_heads,
    n_groups,
    n_new,
    n_splits,
    width_units,
    epsilon,
    scale,
    shift,
    diagonal,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDTH_UNIT: tl.constexpr,
    CHUNK_D: tl.constexpr,
    ADD_SQUARES: tl.constexpr = None,
    Y_BY_FLOAT32: tl.constexpr = None,
    PARTS: tl.constexpr = None,
    PAIRS: tl.constexpr = None,
):
    """Attend to every ``n_splits``-th tile of the cache; program ids: batch and head, split, tile of ROWS rows.

    A head's rows are its queries, query head by query head, then its new keys. Splits interleave their tiles, so that
    all programs are equally busy even if a static cache is only partly filled.

    With scales the cache is E4M3. The scale of a row of K multiplies its scores, in float32. The scale of a row of Y
    multiplies its weights if Q is bfloat16 or PARTS is given; else the row is multiplied in float32 and rounded to
    float16, as a float16 cache would hold it.

    Args:
        p_q: ``(B, H·n_groups, n_new, width)``.
        p_k_new: ``(B, H, n_new, width)``.
        p_k, p_y: ``(B, H, n_past, width)``, E4M3 or of the type of Q; masked rows are never read.
        p_k_scale, p_y_scale: ``(B, H, n_past)``, float32; None if K and Y have the type of Q.
        p_mask: ``(B, n_past + n_new)`` bytes, 0 at padding.
        p_work: float32: sums ``(B·H, n_splits, (n_groups + 1)·n_new, width)``, then peaks and sums of weights, both
            without the last axis.
        scale, shift, diagonal, width_units: As in ``precondition_kernel``.
        CHUNK_D: Columns that are multiplied at once.
        ADD_SQUARES: As in ``multiply_keys``.
        Y_BY_FLOAT32: As in ``add_values``; for a cache of E4M3 only.
        PARTS: Number of warps that each attend to their own tokens of every tile; None: all warps share the tile.
        PAIRS: As in ``average_float32_in_parts``.
    """
    DTYPE: tl.constexpr = p_q.dtype.element_ty
    ALL_ROWS: tl.constexpr = ROWS if ROWS > LEAST_ROWS else LEAST_ROWS
    EACH_ROW: tl.constexpr = ADD_SQUARES and ROWS == LEAST_ROWS
    if WIDTH_UNIT == BLOCK_D:  # then the compiler knows the stride of rows, and columns need no mask
        width: tl.constexpr = BLOCK_D
    else:
        width = width_units * WIDTH_UNIT
    per_column = 1.0 / width
    n_queries = n_groups * n_new
    n_rows = n_queries + n_new
    i_batch_head = tl.program_id(0)
    i_split = tl.program_id(1)
    o_n = tl.arange(0, BLOCK_N)
    o_r = tl.program_id(2) * ROWS + tl.arange(0, ALL_ROWS)
    m_new = (o_r >= n_queries) & (o_r < n_rows)
    p_mask += (i_batch_head // n_heads).to(tl.int64) * (n_past + n_new)
    o_rows = i_batch_head.to(tl.int64) * n_past
    o_cache = o_rows * width

    p_q += i_batch_head.to(tl.int64) * n_queries * width
    p_k_new += i_batch_head.to(tl.int64) * n_new * width
    b_rows, b_rests, b_row_powers, b_new_norms = load_queries(
        p_q,
        p_k_new,
        o_r,
        n_queries,
        m_new,
        width,
        epsilon,
        BLOCK_D,
        CHUNK_D,
        p_k_scale is not None,
        PARTS is not None and tl.float32 == DTYPE,
    )
    b_row_scale = tl.where(m_new, b_new_norms, 1.0) * scale * inverse_power(b_row_powers)
    # Multiplies scores in the FMA that subtracts the peaks. In float32 without PARTS, scores could overflow before, so
    # b_row_scale multiplies them earlier.
    b_last_scale = tl.full((ROWS,), 1.0, tl.float32) if DTYPE == tl.float32 and PARTS is None else b_row_scale  # noqa: SIM300
    # The scale is 0 where a new key's sum of squares overflowed, and −∞ (the score of padding) times 0 would be NaN.
    if DTYPE == tl.bfloat16 or (DTYPE == tl.float32 and PARTS is not None):  # noqa: SIM300
        b_last_scale = tl.maximum(b_last_scale, SMALLEST)
    b_shift = row_shifts(b_new_norms, epsilon, shift, diagonal)
    if ROWS < ALL_ROWS:
        o_r = tl.arange(0, ROWS)
        m_new = first_half(m_new.to(tl.int32)) != 0
        b_last_scale, b_shift = first_half(b_last_scale), first_half(b_shift)

    if PARTS is None:
        b_peak = tl.where(m_new, b_shift, float("-inf"))
        b_weights = tl.zeros((ROWS, BLOCK_N), tl.float32)  # each row is summed after the loop
        b_accs = ()
        for _ in tl.static_range(0, BLOCK_D, CHUNK_D):
            b_accs = b_accs + (tl.zeros((ROWS, CHUNK_D), tl.float32),)  # type: ignore[assignment]  # noqa: RUF005
        for i in range(i_split, tl.cdiv(n_past, BLOCK_N), n_splits):
            o_tile = o_cache + tl.cast(i * BLOCK_N, tl.int64) * width
            m_tile = load_tile_tokens(p_mask + i * BLOCK_N, o_n, i * BLOCK_N + o_n < n_past)
            b_scores, b_squares, b_powers = multiply_keys(
                b_rows, b_rests, p_k + o_tile, m_tile, width, ROWS, BLOCK_N, CHUNK_D, ADD_SQUARES
            )
            if not ADD_SQUARES:
                b_squares = tl.sum(b_squares, axis=1)
            elif not EACH_ROW:
                b_squares = tl.max(tl.trans(b_squares), axis=1)  # without trans every warp would reduce all squares
            b_mean = b_squares * per_column
            if p_k_scale is None:
                b_norms = tl.rsqrt(b_mean + epsilon)
                b_softmax_scale = 1.0
                b_y_scales = None
                if DTYPE == tl.float32:  # noqa: SIM300
                    b_softmax_scale = inverse_power(b_powers)[None, :]
                    b_norms *= inverse_power(b_powers)
            else:
                b_k_scales = load_scales(p_k_scale + o_rows + i * BLOCK_N, o_n, m_tile)
                b_softmax_scale = b_k_scales[None, :]
                b_y_scales = load_scales(p_y_scale + o_rows + i * BLOCK_N, o_n, m_tile)
                b_factors = b_softmax_scale if EACH_ROW else b_k_scales
                b_norms = tl.rsqrt(b_mean * b_factors * b_factors + epsilon) * b_factors
            if EACH_ROW:
                m_seen = m_tile
            else:
                b_norms = tl.where(m_tile, b_norms, HIDDEN)
                m_seen = b_norms != HIDDEN  # m_tile in the scores' layout, without loading the mask again
            b_factors = tl.where(m_new[:, None], b_norms if EACH_ROW else b_norms[None, :], b_softmax_scale)
            if DTYPE == tl.float32:  # noqa: SIM300
                b_factors *= b_row_scale[:, None]  # a score times only one of the powers could overflow
            b_scores = tl.where(m_seen[None, :], b_scores * b_factors, float("-inf"))
            b_next = tl.where(m_new, b_shift, tl.maximum(b_peak, tl.max(b_scores, axis=1) * b_last_scale))
            b_safe = tl.where(b_next == float("-inf"), 0.0, b_next)  # no token yet: −∞ − (−∞) would be NaN
            b_p = tl.exp2(b_scores * b_last_scale[:, None] - b_safe[:, None])
            b_decay = tl.exp2(b_peak - b_safe)
            b_weights = b_weights * b_decay[:, None] + b_p
            b_accs = add_values(
                b_p, b_decay, p_y + o_tile, b_y_scales, m_tile, width, b_accs, BLOCK_N, CHUNK_D, DTYPE, Y_BY_FLOAT32
            )
            b_peak = b_next
    elif p_k_scale is not None:
        b_peak, b_weights, b_accs = average_float8_in_parts(
            p_k + o_cache, p_y + o_cache, p_k_scale + o_rows, p_y_scale + o_rows, p_mask, n_past, i_split, n_splits,
            width, epsilon, b_rows, m_new, b_last_scale, b_shift, BLOCK_N, BLOCK_D, CHUNK_D, PARTS
        )  # fmt: skip
    elif DTYPE == tl.float32:  # noqa: SIM300
        b_peak, b_weights, b_accs = average_float32_in_parts(
            p_k + o_cache, p_y + o_cache, p_mask, n_past, i_split, n_splits, width, epsilon, b_rows, b_rests, m_new,
            b_last_scale, b_shift, BLOCK_N, BLOCK_D, CHUNK_D, PARTS, PAIRS
        )  # fmt: skip
    else:
        b_peak, b_weights, b_accs = average_in_parts(
            p_k + o_cache, p_y + o_cache, p_mask, n_past, i_split, n_splits, width, epsilon, b_rows, m_new,
            b_last_scale, b_shift, BLOCK_N, BLOCK_D, CHUNK_D, PARTS
        )  # fmt: skip

    o_part = (i_batch_head.to(tl.int64) * n_splits + i_split) * n_rows
    n_parts = tl.num_programs(0).to(tl.int64) * n_splits * n_rows
    m_rows = o_r < n_rows
    for i in tl.static_range(len(b_accs)):
        o_d = i * CHUNK_D + tl.arange(0, CHUNK_D)
        p_sums = p_work + o_part * width + o_r[:, None] * width + o_d[None, :]
        tl.store(p_sums, b_accs[i], mask=m_rows[:, None] & (o_d < width)[None, :])
    tl.store(p_work + n_parts * width + o_part + o_r, b_peak, mask=m_rows)
    p_weights = p_work + n_parts * width + n_parts + o_part + o_r
    tl.store(p_weights, tl.sum(b_weights, axis=1) if PARTS is None else b_weights, mask=m_rows)


@triton.jit(do_not_specialize=["n_past", "n_heads", "n_groups", "n_splits", "width_units"])
def decode_combine_kernel(
    p_q,
    p_k_new,
    p_v_new,
    p_mask,
    p_work,
    p_o,
    p_y_new,
    n_past,
    n_heads,
    n_groups,
    n_splits,
    width_units,
    epsilon,
    scale,
    shift,
    diagonal,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDTH_UNIT: tl.constexpr,
):
    """Combine the splits into the output and Y of one new token; program ids: batch and head, query head in its group.

    Args:
        p_q, p_o: ``(B, H·n_groups, 1, width)``.
        p_k_new, p_v_new, p_y_new: ``(B, H, 1, width)``.
        p_mask, p_work, scale, shift, diagonal, width_units: As in :func:`decode_split_kernel`.
    """
    width = width_units * WIDTH_UNIT
    n_rows = n_groups + 1
    i_batch_head = tl.program_id(0)
    i_group = tl.program_id(1)
    o_s = tl.arange(0, BLOCK_S)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < width
    n_parts = tl.num_programs(0).to(tl.int64) * n_splits * n_rows
    p_peaks = p_work + n_parts * width
    p_weights = p_peaks + n_parts

    peak = float("-inf")
    weight = 0.0
    b_sum = tl.zeros((BLOCK_D,), tl.float32)
    b_received = tl.zeros((BLOCK_D,), tl.float32)
    for i in range(0, n_splits, BLOCK_S):
        m_s = i + o_s < n_splits
        o_part = (i_batch_head.to(tl.int64) * n_splits + i + o_s) * n_rows
        b_peaks = tl.load(p_peaks + o_part + i_group, mask=m_s, other=float("-inf"))
        b_weights = tl.load(p_weights + o_part + i_group, mask=m_s, other=0.0)
        m_tile = m_s[:, None] & m_d[None, :]
        b_sums = tl.load(p_work + (o_part + i_group)[:, None] * width + o_d[None, :], mask=m_tile, other=0.0)
        b_new_sums = tl.load(p_work + (o_part + n_groups)[:, None] * width + o_d[None, :], mask=m_tile, other=0.0)
        next_peak = tl.maximum(peak, tl.max(b_peaks, axis=0))
        safe = tl.where(next_peak == float("-inf"), 0.0, next_peak)
        decay = tl.exp2(peak - safe)
        b_factors = tl.exp2(b_peaks - safe)
        weight = weight * decay + tl.sum(b_weights * b_factors, axis=0)
        b_sum = b_sum * decay + tl.sum(b_sums * b_factors[:, None], axis=0)
        b_received += tl.sum(b_new_sums, axis=0)
        peak = next_peak

    o_query = (i_batch_head.to(tl.int64) * n_groups + i_group) * width + o_d
    o_new = i_batch_head.to(tl.int64) * width + o_d
    is_token = tl.load(p_mask + (i_batch_head // n_heads).to(tl.int64) * (n_past + 1) + n_past) != 0
    b_v = tl.load(p_v_new + o_new, mask=m_d, other=0.0).to(tl.float32)
    b_q = tl.load(p_q + o_query, mask=m_d, other=0.0).to(tl.float32)
    b_k = tl.load(p_k_new + o_new, mask=m_d, other=0.0).to(tl.float32)
    norm = tl.rsqrt(tl.sum(b_k * b_k, axis=0) / width + epsilon)
    factor = tl.exp2(shift - row_shifts(norm, epsilon, shift, diagonal))
    b_y = tl.where(is_token, b_v * factor - b_received, b_v)
    own_score = tl.sum(b_q * b_k, axis=0) * scale
    next_peak = tl.maximum(peak, own_score)
    own = tl.exp2(own_score - next_peak)
    decay = tl.exp2(peak - next_peak)
    b_o = (b_sum * decay + own * b_y) / (weight * decay + own)
    tl.store(p_o + o_query, b_o.to(p_o.dtype.element_ty), mask=m_d)
    if i_group == 0:
        tl.store(p_y_new + o_new, b_y.to(p_y_new.dtype.element_ty), mask=m_d)


@triton.jit(do_not_specialize=["n_past", "n_heads", "n_groups", "n_new", "n_splits", "width_units"])
def verify_combine_kernel(
    p_q,
    p_k_new,
    p_v_new,
    p_mask,
    p_work,
    p_o,
    p_y_new,
    n_past,
    n_heads,
    n_groups,
    n_new,
    n_splits,
    width_units,
    epsilon,
    scale,
    shift,
    diagonal,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDTH_UNIT: tl.constexpr,
):
    """Combine the splits into the outputs and Y of up to BLOCK_M new tokens; program ids as for one token.

    Every program of a head solves the same triangular system, so that none waits for another.

    Args:
        p_q, p_o: ``(B, H·n_groups, n_new, width)``.
        p_k_new, p_v_new, p_y_new: ``(B, H, n_new, width)``.
        p_mask, p_work, scale, shift, diagonal, width_units: As in :func:`decode_split_kernel`.
    """
    width = width_units * WIDTH_UNIT
    n_queries = n_groups * n_new
    n_rows = n_queries + n_new
    i_batch_head = tl.program_id(0)
    i_group = tl.program_id(1)
    o_m = tl.arange(0, BLOCK_M)
    o_d = tl.arange(0, BLOCK_D)
    m_rows = o_m < n_new
    m_tile = m_rows[:, None] & (o_d < width)[None, :]
    o_tile = o_m[:, None] * width + o_d[None, :]
    n_parts = tl.num_programs(0).to(tl.int64) * n_splits * n_rows
    p_peaks = p_work + n_parts * width
    p_weights = p_peaks + n_parts

    b_peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    b_weight = tl.zeros((BLOCK_M,), tl.float32)
    b_sum = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    b_received = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for i in range(0, n_splits):
        o_part = (i_batch_head.to(tl.int64) * n_splits + i) * n_rows
        o_query = o_part + i_group * n_new
        b_part_peak = tl.load(p_peaks + o_query + o_m, mask=m_rows, other=float("-inf"))
        b_part_weight = tl.load(p_weights + o_query + o_m, mask=m_rows, other=0.0)
        b_next = tl.maximum(b_peak, b_part_peak)
        b_safe = tl.where(b_next == float("-inf"), 0.0, b_next)
        b_decay = tl.exp2(b_peak - b_safe)
        b_factor = tl.exp2(b_part_peak - b_safe)
        b_weight = b_weight * b_decay + b_part_weight * b_factor
        b_part = tl.load(p_work + o_query * width + o_tile, mask=m_tile, other=0.0)
        b_sum = b_sum * b_decay[:, None] + b_part * b_factor[:, None]
        b_received += tl.load(p_work + (o_part + n_queries) * width + o_tile, mask=m_tile, other=0.0)
        b_peak = b_next

    p_mask += (i_batch_head // n_heads).to(tl.int64) * (n_past + n_new) + n_past
    m_tokens = load_tokens(p_mask, o_m, m_rows)
    o_new = i_batch_head.to(tl.int64) * n_new * width
    b_k = load_rows(p_k_new + o_new, o_m, m_rows, width, BLOCK_D)
    b_norms = inverse_norms(b_k, m_rows, width, epsilon)
    b_shift = row_shifts(b_norms, epsilon, shift, diagonal)
    b_scores = tl.dot(b_k, tl.trans(b_k), input_precision="tf32x3") * scale
    b_e = tl.exp2(b_scores * b_norms[:, None] * b_norms[None, :] - b_shift[:, None])
    m_earlier = (o_m[:, None] > o_m[None, :]) & m_tokens[None, :]
    b_inverse = invert_unit_lower(tl.where(m_earlier & m_tokens[:, None], b_e, 0.0), BLOCK_M, "tf32x3")
    b_v = load_rows(p_v_new + o_new, o_m, m_rows, width, BLOCK_D).to(tl.float32)
    b_rhs = b_v * tl.exp2(shift - b_shift)[:, None] - b_received
    b_y = tl.dot(b_inverse, tl.where(m_tokens[:, None], b_rhs, 0.0), input_precision="tf32x3")
    b_y = tl.where(m_tokens[:, None], b_y, b_v)

    o_queries = (i_batch_head.to(tl.int64) * n_groups + i_group) * n_new * width
    b_q = load_rows(p_q + o_queries, o_m, m_rows, width, BLOCK_D)
    b_own = tl.dot(b_q, tl.trans(b_k), input_precision="tf32x3") * scale
    m_seen = m_earlier | (o_m[:, None] == o_m[None, :])  # a token always sees itself
    b_own = tl.where(m_seen, b_own, float("-inf"))
    b_next = tl.maximum(b_peak, tl.max(b_own, axis=1))
    b_p = tl.exp2(b_own - b_next[:, None])
    b_decay = tl.exp2(b_peak - b_next)
    b_weight = b_weight * b_decay + tl.sum(b_p, axis=1)
    b_o = tl.dot(b_p, b_y, b_sum * b_decay[:, None], input_precision="tf32x3") / b_weight[:, None]
    tl.store(p_o + o_queries + o_tile, b_o.to(p_o.dtype.element_ty), mask=m_tile)
    if i_group == 0:
        tl.store(p_y_new + o_new + o_tile, b_y.to(p_y_new.dtype.element_ty), mask=m_tile)
