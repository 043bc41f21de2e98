"""The preconditioner as one kernel: a blocked triangular solve whose block rows wait for each other on the device.

A program solves BLOCK_M rows of one key/value head. It takes its number from an atomic ticket, so every program it
waits for has a smaller number, has started, and cannot itself wait for a later one: no launch order can deadlock. Rows
finish in order within a head, so one counter per head says which Y may be read.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

from lucid_deploy.plugins.kernels.common import add_product, inverse_norms, load_rows, load_tokens

LEAF = tl.constexpr(16)  # substitution up to here, merging above: the smallest block a tensor core multiplies


@triton.jit
def weights(b_k, b_row_scale, b_k_other, m_other, width, epsilon, shift):
    """Return E = exp(K̂ K̂ᵀ/√d − √d), float32: scores of the raw keys first, both norms after the product."""
    b_scores = tl.dot(b_k, tl.trans(b_k_other), input_precision="tf32x3")
    b_norms = inverse_norms(b_k_other, m_other, width, epsilon)
    return tl.exp2(b_scores * b_row_scale[:, None] * b_norms[None, :] - shift)


@triton.jit
def merge_halves(b_x, b_t, HALF: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr):
    """Return T − T (M ∘ X) T, where M joins two neighbouring HALF-wide blocks whose inverses stand in T."""
    o_row = tl.arange(0, BLOCK)[:, None]
    o_column = tl.arange(0, BLOCK)[None, :]
    m_merge = (o_row // (2 * HALF) == o_column // (2 * HALF)) & (o_row // HALF != o_column // HALF)
    b_product = tl.dot(tl.where(m_merge, b_x, 0.0), b_t, input_precision=PRECISION)
    return b_t - tl.dot(b_t, b_product, input_precision=PRECISION)


@triton.jit
def invert_unit_lower(b_x, BLOCK: tl.constexpr, PRECISION: tl.constexpr):
    """Return (I + X)⁻¹ for a strictly lower triangular ``(BLOCK, BLOCK)`` X, in float32 and without cancellation.

    All 16-wide diagonal blocks by substitution at once, then two neighbours into one until one is left. Products are
    float32 to 16 bits at least (PRECISION), sums float32.
    """
    N_LEAVES: tl.constexpr = BLOCK // LEAF
    o_block = tl.arange(0, N_LEAVES)
    o_leaf = tl.arange(0, LEAF)
    m_diagonal = (o_block[:, None] == o_block[None, :])[:, None, :, None]
    b_x_leaves = tl.sum(tl.where(m_diagonal, tl.reshape(b_x, (N_LEAVES, LEAF, N_LEAVES, LEAF)), 0.0), axis=2)
    b_eye = tl.where(o_leaf[:, None] == o_leaf[None, :], 1.0, 0.0)
    b_leaves = tl.zeros((N_LEAVES, LEAF, LEAF), tl.float32) + b_eye[None, :, :]
    for i in range(LEAF - 1):
        b_column = tl.sum(tl.where(o_leaf[None, None, :] == i, b_x_leaves, 0.0), axis=2)
        b_solved = tl.sum(tl.where(o_leaf[None, :, None] == i, b_leaves, 0.0), axis=1)
        b_leaves -= b_column[:, :, None] * b_solved[:, None, :]
    b_t = tl.reshape(tl.where(m_diagonal, b_leaves[:, :, None, :], 0.0), (BLOCK, BLOCK))
    for level in tl.static_range(4):
        if (LEAF << level) < BLOCK:
            b_t = merge_halves(b_x, b_t, LEAF << level, BLOCK, PRECISION)
    return b_t


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
    b_row_scale = inverse_norms(b_k, m_tokens, width, epsilon) * scale

    # The diagonal block needs no other row's result: inverted here, it is off the path from one block row to the next.
    b_e_own = weights(b_k, b_row_scale, b_k, m_tokens, width, epsilon, shift)
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
            b_e = weights(b_k, b_row_scale, b_k_tile, m_tile, width, epsilon, shift)
            b_y_tile = load_rows(tl.where(is_past, p_y_past, p_y) + o_tile, o_n, m_tile, width, BLOCK_D)
            b_acc = add_product(b_e, b_y_tile, b_acc)
        i_tile = n_ready

    b_v = load_rows(p_v + o_rows, o_m, m_rows, width, BLOCK_D).to(tl.float32)
    b_y = tl.dot(b_inverse, tl.where(m_tokens[:, None], b_v - b_acc, 0.0), input_precision=PRECISION)
    b_y = tl.where(m_tokens[:, None], b_y, b_v)
    p_out = p_y + o_rows + o_m[:, None] * width + o_d[None, :]
    tl.store(p_out, b_y.to(p_y.dtype.element_ty), mask=m_rows[:, None] & (o_d < width)[None, :])
    tl.debug_barrier()  # every thread's rows are written before the one thread that counts them up
    tl.atomic_add(p_done, 1, sem="release")
