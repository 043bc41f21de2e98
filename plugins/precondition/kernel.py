"""The preconditioner as one kernel: a blocked triangular solve whose block rows wait for each other on the device.

A program solves BLOCK_M rows of one key/value head. It takes its number from an atomic ticket, so every program it
waits for has a smaller number, has started, and cannot itself wait for a later one: no launch order can deadlock. Rows
finish in order within a head, so one counter per head says which Y may be read.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

from lucid_deploy.plugins.block_inverse.kernel import invert_unit_lower
from lucid_deploy.plugins.shared.kernel import add_product, inverse_norms, load_rows, load_tokens, row_shifts


@triton.jit
def weights(b_k, b_row_scale, b_k_other, m_other, width, epsilon, b_shift):
    """Return E = exp(K̂ K̂ᵀ/√d − √d) over L_ii, float32: scores of raw keys first, both norms after the product."""
    b_scores = tl.dot(b_k, tl.trans(b_k_other), input_precision="tf32x3")
    b_norms = inverse_norms(b_k_other, m_other, width, epsilon)
    return tl.exp2(b_scores * b_row_scale[:, None] * b_norms[None, :] - b_shift[:, None])


@triton.jit(do_not_specialize=["n_new", "n_past", "n_heads", "n_batch_heads", "width_units"])
def precondition_kernel(
    p_k,
    p_v,
    p_k_past,
    p_y_past,
    p_mask,
    p_y,
    p_work,
    n_new,
    n_past,
    n_heads,
    n_batch_heads,
    width_units,
    epsilon,
    scale,
    shift,
    diagonal,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDTH_UNIT: tl.constexpr,
):
    """Solve ``L Y = V``.

    Args:
        p_k, p_v, p_y: ``(B, H, n_new, width)``: raw keys, values, result.
        p_k_past, p_y_past: ``(B, H, n_past, width)``; never read when ``n_past`` is 0.
        p_mask: ``(B, n_past + n_new)`` bytes, 0 at padding.
        p_work: ``1 + n_batch_heads`` int32, all 0 at launch: the ticket, then finished block rows per head.
        width_units: width / WIDTH_UNIT, so that the compiler knows what the width is a multiple of.
        scale: log₂e / √width.
        shift: √width · log₂e.
        diagonal: 0: L_ii is 1; 1: it is training's.
    """
    PRECISION: tl.constexpr = "tf32x3" if p_k.dtype.element_ty == tl.float32 else "bf16x3"
    width = width_units * WIDTH_UNIT
    i_ticket = tl.atomic_add(p_work, 1, sem="relaxed")
    i_row = i_ticket // n_batch_heads  # the first rows of all heads come first, so that heads fill the device together
    i_batch_head = i_ticket % n_batch_heads
    p_done = p_work + 1 + i_batch_head
    o_new = i_batch_head.to(tl.int64) * n_new * width
    o_past = i_batch_head.to(tl.int64) * n_past * width
    p_mask += (i_batch_head // n_heads).to(tl.int64) * (n_past + n_new)

    o_m = tl.arange(0, BLOCK_M)
    o_n = tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, BLOCK_D)
    i_first = i_row * BLOCK_M
    o_rows = o_new + i_first.to(tl.int64) * width
    m_rows = i_first + o_m < n_new
    m_tokens = load_tokens(p_mask + n_past + i_first, o_m, m_rows)
    b_k = load_rows(p_k + o_rows, o_m, m_tokens, width, BLOCK_D)
    b_row_norms = inverse_norms(b_k, m_tokens, width, epsilon)
    b_row_scale = b_row_norms * scale
    b_shift = row_shifts(b_row_norms, epsilon, shift, diagonal)

    # The diagonal block needs no other row's result: inverted here, it is off the path from one block row to the next.
    b_e_own = weights(b_k, b_row_scale, b_k, m_tokens, width, epsilon, b_shift)
    m_lower = (o_m[:, None] > o_m[None, :]) & m_tokens[:, None] & m_tokens[None, :]
    b_inverse = invert_unit_lower(tl.where(m_lower, b_e_own, 0.0), BLOCK_M, PRECISION)

    b_acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    i_tile = 0
    n_past_tiles = tl.cdiv(n_past, BLOCK_N)
    n_tiles = n_past_tiles + i_row * (BLOCK_M // BLOCK_N)
    while i_tile < n_tiles:
        n_done = tl.atomic_add(p_done, 0, sem="acquire")
        n_ready = tl.minimum(n_past_tiles + n_done * (BLOCK_M // BLOCK_N), n_tiles)
        for i in range(i_tile, n_ready):  # everything that is ready, without another look at the counter
            is_past = i < n_past_tiles  # one loop for both kinds of tile: half the code, half the registers
            i_first_token = (i - tl.where(is_past, 0, n_past_tiles)) * BLOCK_N
            n_tokens = tl.where(is_past, n_past, n_new)
            o_tile = tl.where(is_past, o_past, o_new) + tl.cast(i_first_token, tl.int64) * width
            p_tile_mask = p_mask + tl.where(is_past, 0, n_past) + i_first_token
            m_tile = load_tokens(p_tile_mask, o_n, i_first_token + o_n < n_tokens)
            b_k_tile = load_rows(tl.where(is_past, p_k_past, p_k) + o_tile, o_n, m_tile, width, BLOCK_D)
            b_e = weights(b_k, b_row_scale, b_k_tile, m_tile, width, epsilon, b_shift)
            b_y_tile = load_rows(tl.where(is_past, p_y_past, p_y) + o_tile, o_n, m_tile, width, BLOCK_D)
            b_acc = add_product(b_e, b_y_tile, b_acc)
        i_tile = n_ready

    b_v = load_rows(p_v + o_rows, o_m, m_rows, width, BLOCK_D).to(tl.float32)
    b_rhs = b_v * tl.exp2(shift - b_shift)[:, None] - b_acc
    b_y = tl.dot(b_inverse, tl.where(m_tokens[:, None], b_rhs, 0.0), input_precision=PRECISION)
    b_y = tl.where(m_tokens[:, None], b_y, b_v)
    p_out = p_y + o_rows + o_m[:, None] * width + o_d[None, :]
    tl.store(p_out, b_y.to(p_y.dtype.element_ty), mask=m_rows[:, None] & (o_d < width)[None, :])
    tl.debug_barrier()  # every thread's rows are written before the one thread that counts them up
    tl.atomic_add(p_done, 1, sem="release")
