"""The preconditioner as one Triton kernel: a blocked triangular solve in which programs wait for each other.

A program solves a block row, BLOCK_M rows of one key/value head. It takes its number from an atomic counter, the
ticket, and waits only for smaller numbers, whose programs have started, so no launch order can deadlock. Block rows of
a head finish in order, so one counter per head says which rows of Y may be read.

A small kernel first computes the inverse norms of all keys, since every block row reads those of all earlier keys.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

from lucid_deploy.plugins.block_inverse.kernel import invert_unit_lower
from lucid_deploy.plugins.precondition.int8_part import add_two_products, head_memory, largest_shift, store_bytes
from lucid_deploy.plugins.precondition.powers import (
    E_POWER,
    PAST_TOKENS,
    key_factors,
    key_powers,
    largest_finite,
    powers_in,
    sum_factor,
)
from lucid_deploy.plugins.shared.kernel import (
    add_float16_products,
    add_product,
    float16_power,
    inverse_norms,
    load_columns,
    load_rows,
    load_tokens,
    row_shifts,
)

PADDING = tl.constexpr(0.0)  # stored as the inverse norm of padding, and loaded beyond the end


@triton.jit
def norms_in(p_work, n_batch_heads):
    """Return a pointer to the inverse norms in the workspace, which follow the ticket and the counters."""
    return (p_work + 1 + n_batch_heads).to(tl.pointer_type(tl.float32))


@triton.jit(do_not_specialize=["n_new", "n_past", "n_heads", "n_batch_heads", "width_units"])
def key_norms_kernel(
    p_k,
    p_k_past,
    p_y_past,
    p_mask,
    p_work,
    n_new,
    n_past,
    n_heads,
    n_batch_heads,
    width_units,
    epsilon,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDTH_UNIT: tl.constexpr,
):
    """Write the inverse norms of BLOCK_N keys, past keys first, PADDING for padding; program ids: head, tile.

    In float32 it also writes the powers of two by which :func:`precondition_kernel` multiplies rows of past Y.

    Args:
        p_k, p_k_past, width_units: As in :func:`precondition_kernel`.
        p_y_past: As there; given in float32 only.
        p_mask: ``(B, n_past + n_new)`` bytes, 0 at padding.
        p_work: As there; inverse norms, float32 ``(B, H, n_past + n_new)``, follow the counters.
    """
    width = width_units * WIDTH_UNIT
    i_batch_head = tl.program_id(0)
    n_tokens = n_past + n_new
    o_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_tokens = load_tokens(p_mask + (i_batch_head // n_heads).to(tl.int64) * n_tokens, o_n, o_n < n_tokens)
    m_past = m_tokens & (o_n < n_past)
    b_k_past = load_rows(p_k_past + i_batch_head.to(tl.int64) * n_past * width, o_n, m_past, width, BLOCK_D)
    m_new = m_tokens & (o_n >= n_past)
    b_k_new = load_rows(p_k + i_batch_head.to(tl.int64) * n_new * width, o_n - n_past, m_new, width, BLOCK_D)
    b_norms = inverse_norms(tl.where(m_past[:, None], b_k_past, b_k_new), m_tokens, width, epsilon)
    b_norms = tl.where(b_norms == PADDING, float("nan"), b_norms)  # 0 here: the key's squares overflowed
    p_norms = norms_in(p_work, n_batch_heads) + i_batch_head.to(tl.int64) * n_tokens
    tl.store(p_norms + o_n, tl.where(m_tokens, b_norms, PADDING), mask=o_n < n_tokens)
    if p_k.dtype.element_ty == tl.float32:
        tl.static_assert(BLOCK_N == PAST_TOKENS, "a program writes one power")
        b_y = load_rows(p_y_past + i_batch_head.to(tl.int64) * n_past * width, o_n, m_past, width, BLOCK_D)
        p_end = norms_in(p_work, n_batch_heads) + tl.cast(n_batch_heads, tl.int64) * n_tokens
        p_past, _ = powers_in(p_end, i_batch_head, n_batch_heads, n_past, 0)
        tl.store(
            p_past + tl.program_id(1), float16_power(largest_finite(b_y)), mask=tl.program_id(1) * BLOCK_N < n_past
        )


@triton.jit(do_not_specialize=["n_new", "n_past", "n_heads", "n_batch_heads", "width_units"])
def key_tiles_kernel(
    p_k,
    p_k_past,
    p_y_past,
    p_mask,
    p_work,
    n_new,
    n_past,
    n_heads,
    n_batch_heads,
    width_units,
    epsilon,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDTH_UNIT: tl.constexpr,
):
    """Write the inverse norms of a tile's BLOCK_N keys, and the tile of Y in int8 if its tokens are past tokens.

    Program ids: head, tile. Past tokens come first; the first new token starts a tile. Norms are PADDING at padding.

    Args:
        p_k, p_k_past, p_y_past, width_units: As in :func:`precondition_kernel`.
        p_mask: ``(B, n_past + n_new)`` bytes, 0 at padding.
        p_work: As there; norms, scales and tiles follow the counters, see :func:`.int8_part.head_memory`.
    """
    width = width_units * WIDTH_UNIT
    i_batch_head = tl.program_id(0)
    i_tile = tl.program_id(1)
    n_past_tiles = tl.cdiv(n_past, BLOCK_N)
    is_past = i_tile < n_past_tiles
    o_n = tl.arange(0, BLOCK_N)
    o_tokens = tl.where(is_past, i_tile, i_tile - n_past_tiles) * BLOCK_N + o_n
    p_tokens = p_mask + (i_batch_head // n_heads).to(tl.int64) * (n_past + n_new) + tl.where(is_past, 0, n_past)
    m_tokens = load_tokens(p_tokens, o_tokens, o_tokens < tl.where(is_past, n_past, n_new))
    o_past = i_batch_head.to(tl.int64) * n_past * width
    o_new = i_batch_head.to(tl.int64) * n_new * width
    b_k = load_rows(tl.where(is_past, p_k_past + o_past, p_k + o_new), o_tokens, m_tokens, width, BLOCK_D)
    b_norms = inverse_norms(b_k, m_tokens, width, epsilon)
    b_norms = tl.where(b_norms == PADDING, float("nan"), b_norms)  # as in key_norms_kernel
    n_tiles = tl.num_programs(1)
    p_norms, p_scales, p_bytes = head_memory(p_work, i_batch_head, n_batch_heads, n_tiles, BLOCK_N, BLOCK_D)
    tl.store(p_norms + i_tile * BLOCK_N + o_n, tl.where(m_tokens, b_norms, PADDING))
    if is_past:
        b_y = load_rows(p_y_past + o_past, o_tokens, m_tokens, width, BLOCK_D).to(tl.float32)
        # A key without a finite norm makes E NaN, which splitting E would lose: infinite scales preserve it.
        b_y = tl.where((b_norms - b_norms == 0.0)[:, None], b_y, float("inf"))
        store_bytes(p_scales, p_bytes, i_tile, b_y, m_tokens, 0, BLOCK_N, BLOCK_D, BLOCK_D)


@triton.jit
def product_of_keys(b_rows, b_row_norms, b_others, b_norms):
    """Return dot products of two sets of keys, in a new accumulator; float32 keys are first scaled by their key powers.

    Tensor cores truncate sums: a new accumulator for each chunk keeps a key's score with itself from drifting down.
    """
    b_acc = tl.zeros((b_rows.shape[0], b_others.shape[0]), tl.float32)
    if b_rows.dtype == tl.float32:
        b_rows *= key_powers(b_row_norms)[:, None]
        b_others *= key_powers(b_norms)[:, None]
        b_acc = add_float16_products(b_rows, tl.trans(b_others), b_acc)
    else:
        b_acc = tl.dot(b_rows, tl.trans(b_others), b_acc)
    return b_acc


@triton.jit
def scores(p_rows, m_rows, b_rows, b_row_norms, p_tile, m_tile, b_norms, width, BLOCK_D: tl.constexpr,
           CHUNK_D: tl.constexpr):  # fmt: skip
    """Return the products of a block's keys with a tile's, ``(BLOCK_M, BLOCK_N)`` float32.

    If CHUNK_D < BLOCK_D (registers cannot hold both in full), it loads CHUNK_D columns of both at a time.
    """
    o_m = tl.arange(0, b_row_norms.shape[0])
    o_n = tl.arange(0, b_norms.shape[0])
    if CHUNK_D == BLOCK_D:
        return product_of_keys(b_rows, b_row_norms, load_rows(p_tile, o_n, m_tile, width, BLOCK_D), b_norms)
    b_scores = tl.zeros((b_row_norms.shape[0], b_norms.shape[0]), tl.float32)
    for i in tl.static_range(0, BLOCK_D, CHUNK_D):
        b_part = load_columns(p_rows, o_m, m_rows, i, width, CHUNK_D)
        b_tile_part = load_columns(p_tile, o_n, m_tile, i, width, CHUNK_D)
        b_scores += product_of_keys(b_part, b_row_norms, b_tile_part, b_norms)
    return b_scores


@triton.jit
def own_scores(p_rows, m_rows, b_rows, b_row_norms, width, BLOCK_D: tl.constexpr, CHUNK_D: tl.constexpr):
    """Return the products of a block's keys with one another, ``(BLOCK_M, BLOCK_M)`` float32, as :func:`scores`."""
    if CHUNK_D == BLOCK_D:
        return product_of_keys(b_rows, b_row_norms, b_rows, b_row_norms)
    return scores(p_rows, m_rows, b_rows, b_row_norms, p_rows, m_rows, b_row_norms, width, BLOCK_D, CHUNK_D)


@triton.jit
def weights(b_scores, b_row_scale, b_norms, b_shift, FLOAT32: tl.constexpr):
    """Return 2^(score − shift) in float32 from products of raw keys: E / L_ii with the shifts of :func:`row_shifts`.

    E is exp(K̂ K̂ᵀ/√d − √d). With FLOAT32 the keys were multiplied by powers of two before the product.
    """
    if FLOAT32:
        b_norms = key_factors(b_norms)
    return tl.exp2(b_scores * b_row_scale[:, None] * b_norms[None, :] - b_shift[:, None])


@triton.jit
def add_products(b_e, p_tile, m_tile, width, power, b_accs, BLOCK_N: tl.constexpr, CHUNK_D: tl.constexpr):
    """Return ``b_accs``, float32 with CHUNK_D columns each, plus the products of E with a tile of Y.

    In float32 the caller has multiplied E by 2⁹, and Y is multiplied by ``power`` here; the sum is divided by both.
    """
    o_n = tl.arange(0, BLOCK_N)
    b_sums = ()
    for i in tl.static_range(len(b_accs)):
        b_y = load_columns(p_tile, o_n, m_tile, i * CHUNK_D, width, CHUNK_D)
        if b_y.dtype == tl.float32:
            b_sum = add_float16_products(b_e, b_y * power, tl.zeros_like(b_accs[i]))
            b_sums = b_sums + (b_accs[i] + b_sum * sum_factor(power),)  # type: ignore[assignment]  # noqa: RUF005
        else:
            b_sums = b_sums + (add_product(b_e, b_y, b_accs[i]),)  # type: ignore[assignment]  # noqa: RUF005
    return b_sums


@triton.jit(do_not_specialize=["n_new", "n_past", "n_batch_heads", "width_units"])
def precondition_kernel(
    p_k,
    p_v,
    p_k_past,
    p_y_past,
    p_y,
    p_work,
    n_new,
    n_past,
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
    CHUNK_D: tl.constexpr,
    INT8: tl.constexpr = 0,
):
    """Solve ``L Y = V``.

    Args:
        p_k, p_v, p_y: ``(B, H, n_new, width)``: raw keys, values, result.
        p_k_past, p_y_past: ``(B, H, n_past, width)``; never read when ``n_past`` is 0.
        p_work: ``1 + n_batch_heads`` int32, 0 at launch: the ticket, then each head's count of finished block rows.
            Then inverse norms, followed in float32 by powers of two, and with INT8 by scales and tiles.
        width_units: width / WIDTH_UNIT, so that the compiler knows a divisor of the width.
        scale: log₂e / √width.
        shift: √width · log₂e.
        diagonal: 0 for L_ii = 1, 1 for the training diagonal.
        CHUNK_D: Columns of keys and of Y that are multiplied at once; BLOCK_D for all.
        INT8: 1 to split E into a bfloat16 and an int8 number; for bfloat16 tensors, after :func:`key_tiles_kernel`.
    """
    # With INT8 and narrow heads, shared memory limits occupancy, so registers have room for the next tile's norms.
    NORMS_AHEAD: tl.constexpr = INT8 and BLOCK_D <= 64
    FLOAT32: tl.constexpr = p_k.dtype.element_ty == tl.float32
    PRECISION: tl.constexpr = "tf32x3" if FLOAT32 else "bf16x3"
    width = width_units * WIDTH_UNIT
    i_ticket = tl.atomic_add(p_work, 1, sem="relaxed")
    i_row = i_ticket // n_batch_heads  # the first rows of all heads come first, so that all heads run in parallel
    i_batch_head = i_ticket % n_batch_heads
    p_done = p_work + 1 + i_batch_head
    o_new = i_batch_head.to(tl.int64) * n_new * width
    o_past = i_batch_head.to(tl.int64) * n_past * width
    if INT8:
        tl.static_assert(BLOCK_M == BLOCK_N, "a block row is an int8 tile")
        n_all_tiles = tl.cdiv(n_past, BLOCK_N) + tl.cdiv(n_new, BLOCK_N)
        p_norms, p_scales, p_bytes = head_memory(p_work, i_batch_head, n_batch_heads, n_all_tiles, BLOCK_N, BLOCK_D)
        p_row_norms = p_norms + tl.cdiv(n_past, BLOCK_N) * BLOCK_N
    else:
        p_norms = norms_in(p_work, n_batch_heads) + i_batch_head.to(tl.int64) * (n_past + n_new)
        p_row_norms = p_norms + n_past
    if FLOAT32:
        tl.static_assert(PAST_TOKENS % BLOCK_N == 0, "past tokens of a tile have one power")
        p_end = norms_in(p_work, n_batch_heads) + tl.cast(n_batch_heads, tl.int64) * (n_past + n_new)
        p_past_powers, p_powers = powers_in(p_end, i_batch_head, n_batch_heads, n_past, tl.cdiv(n_new, BLOCK_M))

    o_m = tl.arange(0, BLOCK_M)
    o_n = tl.arange(0, BLOCK_N)
    i_first = i_row * BLOCK_M
    o_rows = o_new + i_first.to(tl.int64) * width
    m_rows = i_first + o_m < n_new
    b_row_norms = tl.load(p_row_norms + i_first + o_m, mask=m_rows, other=PADDING)
    m_tokens = b_row_norms != PADDING
    b_k = load_rows(p_k + o_rows, o_m, m_tokens, width, BLOCK_D)
    b_row_scale = (key_factors(b_row_norms) if FLOAT32 else b_row_norms) * scale
    b_shift = row_shifts(b_row_norms, epsilon, shift, diagonal)
    if INT8:
        e_shift = largest_shift(b_row_norms, m_tokens, epsilon, shift)

    # The diagonal block depends on no other block row: it is inverted here, before the program waits for others.
    b_own = own_scores(p_k + o_rows, m_tokens, b_k, b_row_norms, width, BLOCK_D, CHUNK_D)
    b_e_own = weights(b_own, b_row_scale, b_row_norms, b_shift, FLOAT32)
    m_lower = (o_m[:, None] > o_m[None, :]) & m_tokens[:, None] & m_tokens[None, :]
    b_inverse = invert_unit_lower(tl.where(m_lower, b_e_own, 0.0), BLOCK_M, PRECISION)

    b_accs = ()  # CHUNK_D columns each, since registers cannot hold both parts of all columns of Y
    for _ in tl.static_range(0, BLOCK_D, CHUNK_D):
        b_accs = b_accs + (tl.zeros((BLOCK_M, CHUNK_D), tl.float32),)  # type: ignore[assignment]  # noqa: RUF005
    i_tile = 0
    n_past_tiles = tl.cdiv(n_past, BLOCK_N)
    n_tiles = n_past_tiles + i_row * (BLOCK_M // BLOCK_N)
    while i_tile < n_tiles:
        n_done = tl.atomic_add(p_done, 0, sem="acquire")
        is_past = i_tile < n_past_tiles  # one loop for past and new tiles halves code and registers
        n_ready = tl.minimum(n_past_tiles + tl.where(is_past, 0, n_done * (BLOCK_M // BLOCK_N)), n_tiles)
        i_first_tile = tl.where(is_past, 0, n_past_tiles)
        n_tokens = tl.where(is_past, n_past, n_new)
        p_k_tiles = tl.where(is_past, p_k_past + o_past, p_k + o_new)
        p_y_tiles = tl.where(is_past, p_y_past + o_past, p_y + o_new)
        p_tile_norms = p_norms + tl.where(is_past, 0, n_past)
        if NORMS_AHEAD:
            b_next = tl.load(p_norms + i_tile * BLOCK_N + o_n)
        for i in range(i_tile - i_first_tile, n_ready - i_first_tile):  # all ready tiles, without polling between them
            if INT8:
                if NORMS_AHEAD:
                    b_norms = b_next
                    b_next = tl.load(p_norms + tl.minimum(i_first_tile + i + 1, n_all_tiles - 1) * BLOCK_N + o_n)
                else:
                    b_norms = tl.load(p_norms + (i_first_tile + i) * BLOCK_N + o_n)
            else:
                o_tokens = i * BLOCK_N + o_n
                b_norms = tl.load(p_tile_norms + o_tokens, mask=o_tokens < n_tokens, other=PADDING)
            m_tile = b_norms != PADDING
            o_tile = tl.cast(i * BLOCK_N, tl.int64) * width
            b_scores = scores(
                p_k + o_rows, m_tokens, b_k, b_row_norms, p_k_tiles + o_tile, m_tile, b_norms, width, BLOCK_D, CHUNK_D
            )
            if INT8:
                b_e = weights(b_scores, b_row_scale, b_norms, tl.full((BLOCK_M,), e_shift, tl.float32), FLOAT32)
                b_accs = add_two_products(
                    b_e, p_y_tiles + o_tile, m_tile, width, p_scales, p_bytes, i_first_tile + i, b_accs,
                    BLOCK_N, BLOCK_D, CHUNK_D,
                )  # fmt: skip
            elif FLOAT32:
                b_e = weights(b_scores, b_row_scale, b_norms, b_shift - E_POWER, FLOAT32)
                i_power = tl.where(is_past, i * BLOCK_N // PAST_TOKENS, i * BLOCK_N // BLOCK_M)
                power = tl.load(tl.where(is_past, p_past_powers, p_powers) + i_power)
                b_accs = add_products(b_e, p_y_tiles + o_tile, m_tile, width, power, b_accs, BLOCK_N, CHUNK_D)
            else:
                b_e = weights(b_scores, b_row_scale, b_norms, b_shift, FLOAT32)
                b_accs = add_products(b_e, p_y_tiles + o_tile, m_tile, width, 1.0, b_accs, BLOCK_N, CHUNK_D)
        i_tile = n_ready

    largest = 0.0
    for i in tl.static_range(len(b_accs)):
        b_v = load_columns(p_v + o_rows, o_m, m_rows, i * CHUNK_D, width, CHUNK_D).to(tl.float32)
        if INT8:  # E was not divided by L_ii, since that could make it larger than 1
            b_rhs = b_v * tl.exp2(shift - b_shift)[:, None] - b_accs[i] * tl.exp2(e_shift - b_shift)[:, None]
        else:
            b_rhs = b_v * tl.exp2(shift - b_shift)[:, None] - b_accs[i]
        b_y = tl.dot(b_inverse, tl.where(m_tokens[:, None], b_rhs, 0.0), input_precision=PRECISION)
        b_y = tl.where(m_tokens[:, None], b_y, b_v)
        o_d = i * CHUNK_D + tl.arange(0, CHUNK_D)
        p_out = p_y + o_rows + o_m[:, None] * width + o_d[None, :]
        tl.store(p_out, b_y.to(p_y.dtype.element_ty), mask=m_rows[:, None] & (o_d < width)[None, :])
        if FLOAT32:
            largest = tl.maximum(largest, largest_finite(tl.where(m_tokens[:, None], b_y, 0.0)))
        if INT8:
            i_own_tile = n_past_tiles + i_row
            store_bytes(p_scales, p_bytes, i_own_tile, b_y, m_tokens, i * CHUNK_D, BLOCK_N, BLOCK_D, CHUNK_D)
    if FLOAT32:
        tl.store(p_powers + i_row, float16_power(largest))
    tl.debug_barrier()  # all threads have written their rows before one thread increments the counter
    tl.atomic_add(p_done, 1, sem="release")
