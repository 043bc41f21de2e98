"""Decode attention in one pass over the cache: the new key rides along as one more query row.

The last row of every tile is the new key. Its weights E = exp(k̂·k̂_j/√d − √d) are softmax weights with a peak that is
known beforehand, √d (or √d + log L_ii, which divides the row by L_ii), so both kinds of row share the scores' product
and the product with Y.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

from lucid_deploy.plugins.shared.kernel import add_product, inverse_norms, load_rows, load_tokens, row_shifts


@triton.jit(do_not_specialize=["n_past", "n_heads", "n_groups", "n_splits", "width_units"])
def decode_split_kernel(
    p_q,
    p_k_new,
    p_k,
    p_y,
    p_mask,
    p_work,
    n_past,
    n_heads,
    n_groups,
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
):
    """Average every ``n_splits``-th tile of the cache; program (batch and head, split, ROWS − 1 of the query heads).

    Tiles are dealt out in turn, so that a static cache that is only partly filled keeps all programs equally busy.

    Args:
        p_q: ``(B, H·n_groups, 1, width)``.
        p_k_new: ``(B, H, 1, width)``.
        p_k, p_y: ``(B, H, n_past, width)``; rows that the mask hides are never read.
        p_mask: ``(B, n_past + 1)`` bytes.
        p_work: float32: sums ``(B·H, n_splits, n_groups + 1, width)``, then peaks and weights without the last axis.
        scale, shift, diagonal, width_units: As in the preconditioner.
    """
    width = width_units * WIDTH_UNIT
    n_rows = n_groups + 1
    i_batch_head = tl.program_id(0)
    i_split = tl.program_id(1)
    i_first_query = tl.program_id(2) * (ROWS - 1)
    o_n = tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, BLOCK_D)
    o_r = tl.arange(0, ROWS)
    m_new_row = o_r == ROWS - 1
    m_queries = (o_r < ROWS - 1) & (i_first_query + o_r < n_groups)
    p_mask += (i_batch_head // n_heads).to(tl.int64) * (n_past + 1)
    o_cache = i_batch_head.to(tl.int64) * n_past * width

    o_queries = (i_batch_head.to(tl.int64) * n_groups + i_first_query) * width
    b_q = load_rows(p_q + o_queries, o_r, m_queries, width, BLOCK_D)
    b_k_new = load_rows(p_k_new + i_batch_head.to(tl.int64) * width, o_r * 0, m_new_row, width, BLOCK_D)
    b_new_norm = inverse_norms(b_k_new, m_new_row, width, epsilon)
    b_row_scale = tl.where(m_new_row, b_new_norm, 1.0) * scale
    b_shift = row_shifts(b_new_norm, epsilon, shift, diagonal)
    b_q = tl.where(m_new_row[:, None], b_k_new, b_q)

    b_peak = tl.where(m_new_row, b_shift, float("-inf"))
    b_weight = tl.zeros((ROWS,), tl.float32)
    b_acc = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for i in range(i_split, tl.cdiv(n_past, BLOCK_N), n_splits):
        o_tile = o_cache + tl.cast(i * BLOCK_N, tl.int64) * width
        m_tile = load_tokens(p_mask + i * BLOCK_N, o_n, i * BLOCK_N + o_n < n_past)
        b_k = load_rows(p_k + o_tile, o_n, m_tile, width, BLOCK_D)
        b_norms = inverse_norms(b_k, m_tile, width, epsilon)
        b_scores = tl.dot(b_q, tl.trans(b_k), input_precision="tf32x3") * b_row_scale[:, None]
        b_scores *= tl.where(m_new_row[:, None], b_norms[None, :], 1.0)
        b_scores = tl.where(m_tile[None, :], b_scores, float("-inf"))
        b_next = tl.where(m_new_row, b_shift, tl.maximum(b_peak, tl.max(b_scores, axis=1)))
        b_safe = tl.where(b_next == float("-inf"), 0.0, b_next)  # no token yet: −∞ − (−∞) would be NaN
        b_p = tl.exp2(b_scores - b_safe[:, None])
        b_decay = tl.exp2(b_peak - b_safe)
        b_weight = b_weight * b_decay + tl.sum(b_p, axis=1)
        b_acc = add_product(b_p, load_rows(p_y + o_tile, o_n, m_tile, width, BLOCK_D), b_acc * b_decay[:, None])
        b_peak = b_next

    o_part = (i_batch_head.to(tl.int64) * n_splits + i_split) * n_rows
    n_parts = tl.num_programs(0).to(tl.int64) * n_splits * n_rows
    o_out = tl.where(m_new_row, n_groups, i_first_query + o_r)
    m_out = m_queries | (m_new_row & (i_first_query + o_r == ROWS - 1))  # the new row from one program only
    p_sums = p_work + o_part * width + o_out[:, None] * width + o_d[None, :]
    tl.store(p_sums, b_acc, mask=m_out[:, None] & (o_d < width)[None, :])
    tl.store(p_work + n_parts * width + o_part + o_out, b_peak, mask=m_out)
    tl.store(p_work + n_parts * width + n_parts + o_part + o_out, b_weight, mask=m_out)


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
    """Join the splits, subtract for the new token's Y, and let every query see the new token; program (head, query).

    Args:
        p_q, p_o: ``(B, H·n_groups, 1, width)``.
        p_k_new, p_v_new, p_y_new: ``(B, H, 1, width)``.
        p_mask, p_work, scale, shift, diagonal, width_units: As in the kernel before.
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
