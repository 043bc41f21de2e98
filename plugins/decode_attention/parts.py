"""Triton functions of decoding: loops over the cache in which each warp has its own part of a tile's tokens.

Each warp attends to its own tokens, with its own peaks and sums, and the parts are combined once, after the loop. So in
the loop no warp waits for another's peak or reads another's weights. Products are batched, one for each part, and the
compiler assigns each to one warp.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

from lucid_deploy.plugins.shared.kernel import (
    add_product,
    bfloat16_parts,
    cut_pairs_tf32,
    multiply_add,
    nearest_tf32,
    opaque_copy,
    split_tf32,
)

LEAST_TOKENS = tl.constexpr(16)  # fewest tokens of a part: columns of the product with K, depth of that with Y
LOWEST = tl.constexpr(-1e36)  # below the low part of any finite square; sums of it are finite
SMALLEST = tl.constexpr(2.0**-126)  # smallest normal float32
REGISTER_COLUMNS = tl.constexpr(64)  # most columns of the queries' low parts that fit into registers
LANES = tl.constexpr(4)  # threads that hold one row of eight columns of a product's tf32 operand
SUM_COLUMNS = tl.constexpr(8)  # fewest columns of a product; here all hold the same sums of weights
LEAST_EPSILON = tl.constexpr(1e-37)  # keeps the factor of a masked token, whose key is 0, finite


@triton.jit
def factor_tokens(TOKENS: tl.constexpr):
    """Return the tokens' indices in the order of :func:`as_factor`."""
    o_n = tl.arange(0, TOKENS)
    return (o_n & -8) + (o_n & 3) * 2 + (o_n >> 2 & 1)


@triton.jit
def as_factor(b_p):
    """Reorder the tokens of weights ``(parts, rows, tokens)`` so that each stays in its register as a tf32 operand.

    Of eight columns, a thread has two neighbours in a product's result, but two that are four apart in an operand.
    """
    PARTS: tl.constexpr = b_p.shape[0]
    ROWS: tl.constexpr = b_p.shape[1]
    TOKENS: tl.constexpr = b_p.shape[2]
    b_pairs = tl.permute(tl.reshape(b_p, (PARTS, ROWS, TOKENS // 8, 4, 2)), (0, 1, 2, 4, 3))
    return tl.reshape(b_pairs, (PARTS, ROWS, TOKENS))


@triton.jit
def load_part_tokens(p_mask, o_n, m_n):
    """Return which tokens, ``(parts, tokens)``, are not padding, as ``load_tile_tokens`` does."""
    o_one = tl.arange(0, 1)[None, None, :]
    b_bytes = tl.load(p_mask + o_n[:, :, None] + o_one, mask=m_n[:, :, None], other=0)
    return tl.max(b_bytes.to(tl.int32), axis=2) != 0


@triton.jit
def load_part_columns(p_rows, o_n, m_n, i_first, width, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load as ``load_columns`` does: ``(parts, tokens, BLOCK)``. Columns in the first half of BLOCK_D need no mask.

    With few tokens or in float32, the compiler would put tokens of two parts alternately into shared memory, and reads
    of Y's columns would have 4-way bank conflicts. ``max_contiguous`` falsely says that two parts are contiguous; with
    that hint the tokens of each part lie in shared memory one after another.
    """
    o_d = i_first + tl.arange(0, BLOCK)
    m_columns = m_n[:, :, None]
    if 2 * (i_first + BLOCK) > BLOCK_D:
        m_columns = m_columns & (o_d < width)[None, None, :]
    p_columns = p_rows + o_n[:, :, None] * width + o_d[None, None, :]
    if o_n.shape[1] == LEAST_TOKENS or p_rows.dtype.element_ty == tl.float32:
        p_columns = tl.max_contiguous(p_columns, (2, 1, BLOCK))
    return tl.load(p_columns, mask=m_columns, other=0.0)


@triton.jit
def add_own_products(b_keys, b_sums):
    """Return ``b_sums`` plus, for every 16 keys of a part, their products with one another; diagonals are squares.

    A product's index in the batch, modulo the number of warps, is its part's index, so the part's warp computes it.
    """
    PARTS: tl.constexpr = b_keys.shape[0]
    PIECES: tl.constexpr = b_keys.shape[1] // LEAST_TOKENS
    COLUMNS: tl.constexpr = b_keys.shape[2]
    b_pieces = tl.permute(tl.reshape(b_keys, (PARTS, PIECES, LEAST_TOKENS, COLUMNS)), (1, 0, 2, 3))
    b_pieces = tl.reshape(b_pieces, (PIECES * PARTS, LEAST_TOKENS, COLUMNS))
    return tl.dot(b_pieces, tl.permute(b_pieces, (0, 2, 1)), b_sums)


@triton.jit
def diagonals(b_sums, PARTS: tl.constexpr):
    """Return the keys' sums of squares ``(PARTS, tokens)``: the diagonals of what :func:`add_own_products` returned."""
    PIECES: tl.constexpr = b_sums.shape[0] // PARTS
    o_n = tl.arange(0, LEAST_TOKENS)
    m_own = (o_n[:, None] == o_n[None, :])[None, :, :]
    b_bits = tl.where(m_own, b_sums.to(tl.int32, bitcast=True), 0)
    b_squares = tl.sum(b_bits, axis=2).to(
        tl.float32, bitcast=True
    )  # all but one of the numbers are 0, so they can be summed as integers, which is cheaper than float32
    b_squares = tl.permute(tl.reshape(b_squares, (PIECES, PARTS, LEAST_TOKENS)), (1, 0, 2))
    return tl.reshape(b_squares, (PARTS, PIECES * LEAST_TOKENS))


@triton.jit
def first_half(b_rows):
    """Return the first half of ``b_rows``, ``(rows,)``."""
    b_first, _ = tl.split(tl.permute(tl.reshape(b_rows, (2, b_rows.shape[0] // 2)), (1, 0)))
    return b_first


@triton.jit
def row_halves(b_rows):
    """Return the first and the second half of the rows of ``(parts, rows, columns)``."""
    PARTS: tl.constexpr = b_rows.shape[0]
    ROWS: tl.constexpr = b_rows.shape[1]
    COLUMNS: tl.constexpr = b_rows.shape[2]
    return tl.split(tl.permute(tl.reshape(b_rows, (PARTS, 2, ROWS // 2, COLUMNS)), (0, 2, 3, 1)))


@triton.jit
def stack_rows(b_first, b_second):
    """Return both arguments' rows, ``(parts, 2 · rows, columns)``: the inverse of :func:`row_halves`."""
    PARTS: tl.constexpr = b_first.shape[0]
    ROWS: tl.constexpr = b_first.shape[1]
    COLUMNS: tl.constexpr = b_first.shape[2]
    return tl.reshape(tl.permute(tl.join(b_first, b_second), (0, 3, 1, 2)), (PARTS, 2 * ROWS, COLUMNS))


@triton.jit
def add_few_product(b_p, b_y, b_acc):
    """Add as ``add_product`` does, for 8 rows of weights; the product's other 8 are low parts or, in float16, zeros.

    A thread has one row of each group of eight, so adding both halves needs no other thread.
    """
    if b_y.dtype == tl.bfloat16:
        b_high, b_low = bfloat16_parts(b_p)
        b_first, b_second = row_halves(tl.dot(stack_rows(b_high, b_low), b_y))
        b_first += b_second
    else:
        b_half = b_p.to(tl.float16)
        b_first, _ = row_halves(tl.dot(stack_rows(b_half, tl.zeros_like(b_half)), b_y))
    return b_acc + b_first


@triton.jit
def of_each_part(m_new, b_row_scale, b_shift, PARTS: tl.constexpr):
    """Broadcast the three arguments ``(rows,)`` to ``(PARTS, rows)``; return them and the initial peaks."""
    ROWS: tl.constexpr = b_shift.shape[0]
    m_new = tl.broadcast_to(m_new[None, :], (PARTS, ROWS))
    b_row_scale = tl.broadcast_to(b_row_scale[None, :], (PARTS, ROWS))
    b_shift = tl.broadcast_to(b_shift[None, :], (PARTS, ROWS))
    return m_new, b_row_scale, b_shift, tl.where(m_new, b_shift, float("-inf"))


@triton.jit
def join_parts(b_peak, b_weights, b_accs):
    """Combine the parts: return peaks and sums of weights, ``(rows,)``, and sums of Y, ``(rows, columns)``."""
    b_top = tl.max(b_peak, axis=0)
    b_factors = tl.exp2(b_peak - tl.where(b_top == float("-inf"), 0.0, b_top)[None, :])
    b_joined = ()
    for j in tl.static_range(len(b_accs)):
        b_joined = b_joined + (tl.sum(b_accs[j] * b_factors[:, :, None], axis=0),)  # noqa: RUF005
    return b_top, tl.sum(b_weights * b_factors, axis=0), b_joined


@triton.jit
def average_in_parts(p_k, p_y, p_mask, n_past, i_first, n_step, width, epsilon, b_rows, m_new, b_row_scale, b_shift,
                     BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK_D: tl.constexpr,
                     PARTS: tl.constexpr):  # fmt: skip
    """Return peaks, sums of weights ``(rows,)`` and sums of Y, CHUNK_D columns each, over every ``n_step``-th tile.

    Scores of new keys are multiplied by the tokens' inverse norms. A masked token has a key of zeros, and −∞ is added
    to its score. Squares are exact; only their float32 sums are rounded.

    Args:
        p_k, p_y, p_mask: Pointers for this sequence and head.
        i_first: The first tile.
        b_rows: From ``load_queries``; if it has twice as many rows as ``b_shift``, only the first half counts.
        m_new, b_row_scale, b_shift: ``(rows,)``: which rows are new keys, the rows' factors, and the new keys' peaks.
        PARTS: Number of warps.
    """
    ROWS: tl.constexpr = b_shift.shape[0]
    ALL_ROWS: tl.constexpr = b_rows[0].shape[0]
    TOKENS: tl.constexpr = BLOCK_N // PARTS
    o_n = tl.arange(0, PARTS)[:, None] * TOKENS + tl.arange(0, TOKENS)[None, :]
    per_column = 1.0 / width
    least = tl.maximum(epsilon, LEAST_EPSILON)
    m_new, b_row_scale, b_shift, b_peak = of_each_part(m_new, b_row_scale, b_shift, PARTS)
    b_is_new = tl.where(m_new, 1.0, 0.0)[:, :, None]
    b_is_query = tl.where(m_new, 0.0, 1.0)[:, :, None]
    b_weights = tl.zeros((PARTS, ROWS, TOKENS), tl.float32)
    b_all, b_accs = (), ()
    for i in tl.static_range(len(b_rows)):
        b_all = b_all + (tl.broadcast_to(b_rows[i][None, :, :], (PARTS, ALL_ROWS, CHUNK_D)),)  # type: ignore[assignment]  # noqa: RUF005
        b_accs = b_accs + (tl.zeros((PARTS, ROWS, CHUNK_D), tl.float32),)  # type: ignore[assignment]  # noqa: RUF005
    for i in range(i_first, tl.cdiv(n_past, BLOCK_N), n_step):
        o_tile = tl.cast(i * BLOCK_N, tl.int64) * width
        m_tile = load_part_tokens(p_mask + i * BLOCK_N, o_n, i * BLOCK_N + o_n < n_past)
        b_scores = tl.zeros((PARTS, ALL_ROWS, TOKENS), tl.float32)
        b_squares = tl.zeros((BLOCK_N // LEAST_TOKENS, LEAST_TOKENS, LEAST_TOKENS), tl.float32)
        for j in tl.static_range(len(b_all)):
            b_k = load_part_columns(p_k + o_tile, o_n, m_tile, j * CHUNK_D, width, CHUNK_D, BLOCK_D)
            b_scores = tl.dot(b_all[j], tl.permute(b_k, (0, 2, 1)), b_scores)
            b_squares = add_own_products(b_k, b_squares)
        if ROWS < ALL_ROWS:
            b_scores, _ = row_halves(b_scores)
        b_norms = tl.rsqrt(diagonals(b_squares, PARTS) * per_column + least)
        b_hidden = tl.where(m_tile, 0.0, float("-inf"))
        b_factors = tl.fma(*tl.broadcast(b_norms[:, None, :], b_is_new), b_is_query)
        b_scores = tl.fma(b_scores, b_factors, b_hidden[:, None, :])
        b_next = tl.where(m_new, b_shift, tl.maximum(b_peak, tl.max(b_scores, axis=2) * b_row_scale))
        b_safe = tl.where(b_next == float("-inf"), 0.0, b_next)  # no token yet: −∞ − (−∞) would be NaN
        b_p = tl.exp2(b_scores * b_row_scale[:, :, None] - b_safe[:, :, None])
        b_decay = tl.exp2(b_peak - b_safe)[:, :, None]
        b_weights = b_weights * b_decay + b_p
        b_sums = ()
        for j in tl.static_range(len(b_accs)):
            b_y = load_part_columns(p_y + o_tile, o_n, m_tile, j * CHUNK_D, width, CHUNK_D, BLOCK_D)
            if ROWS < ALL_ROWS:
                b_acc = add_few_product(b_p, b_y, b_accs[j] * b_decay)
            else:
                b_acc = add_product(b_p, b_y, b_accs[j] * b_decay)
            b_sums = b_sums + (b_acc,)  # type: ignore[assignment]  # noqa: RUF005
        b_accs = b_sums
        b_peak = b_next
    return join_parts(b_peak, tl.sum(b_weights, axis=2), b_accs)


@triton.jit
def add_float32_products(b_high, b_low, b_others_high, b_others_low, b_acc, b_small):
    """Return ``b_acc`` plus high × high, and ``b_small`` plus high × low and low × high.

    Tensor cores truncate sums, so small terms are summed apart, where truncation loses little.
    """
    b_small = tl.dot(b_low, b_others_high, b_small, input_precision="tf32")
    b_small = tl.dot(b_high, b_others_low, b_small, input_precision="tf32")
    return tl.dot(b_high, b_others_high, b_acc, input_precision="tf32"), b_small


@triton.jit
def load_turned_columns(p_rows, o_n, m_n, i_first, width, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load as ``load_part_columns`` does, but transposed: ``(parts, BLOCK, tokens)``."""
    o_d = i_first + tl.arange(0, BLOCK)
    m_columns = m_n[:, None, :]
    if 2 * (i_first + BLOCK) > BLOCK_D:
        m_columns = m_columns & (o_d < width)[None, :, None]
    p_columns = p_rows + o_n[:, None, :] * width + o_d[None, :, None]
    p_columns = tl.max_contiguous(p_columns, (2, BLOCK, 1))
    return tl.load(p_columns, mask=m_columns, other=0.0)


@triton.jit
def add_threads_own(b_numbers):
    """Add the four of 16 columns that one thread holds as a product's operand: ``(parts, LANES, tokens)``."""
    PARTS: tl.constexpr = b_numbers.shape[0]
    TOKENS: tl.constexpr = b_numbers.shape[2]
    b_fours = tl.permute(tl.reshape(b_numbers, (PARTS, 2, 2, LANES, TOKENS)), (0, 3, 4, 1, 2))
    b_even, b_odd = tl.split(b_fours)
    b_even, b_odd = tl.split(b_even + b_odd)
    return b_even + b_odd


@triton.jit
def add_each_token(b_squares, ROWS: tl.constexpr):
    """Sum squares ``(parts, columns, tokens)`` over columns: ``(parts, ROWS, tokens)``, all rows alike.

    A product of ones with two tf32 parts of the squares leaves the sums in the registers that scores are in.
    """
    PARTS: tl.constexpr = b_squares.shape[0]
    TOKENS: tl.constexpr = b_squares.shape[2]
    # Threads first add their own columns, except with LEAST_TOKENS tokens, where Triton's layout of keys in shared
    # memory would have bank conflicts, and with more than 16 columns, where Triton would read keys twice.
    if TOKENS > LEAST_TOKENS and b_squares.shape[1] == 4 * LANES:
        b_high, b_low = nearest_tf32(add_threads_own(b_squares))
        b_low = tl.maximum(b_low, LOWEST)  # the low part of infinity is NaN
        b_both = tl.reshape(tl.permute(tl.join(b_high, b_low), (0, 3, 1, 2)), (PARTS, 2 * LANES, TOKENS))
        b_sums = tl.dot(tl.full((PARTS, ROWS, 2 * LANES), 1.0, tl.float32), b_both, input_precision="tf32")
    else:
        b_ones = tl.full((PARTS, ROWS, b_squares.shape[1]), 1.0, tl.float32)
        b_high, b_low = nearest_tf32(b_squares)
        b_sums = tl.dot(b_ones, tl.maximum(b_low, LOWEST), input_precision="tf32")
        b_sums = tl.dot(b_ones, b_high, b_sums, input_precision="tf32")
    return b_sums


@triton.jit
def multiply_values(b_high, b_low, b_y_high, b_y_low, ROWS: tl.constexpr):
    """Return weights times Y, both in two tf32 parts; a ``b_high`` of 2 · ROWS rows holds both parts of the weights."""
    if b_high.shape[1] > ROWS:
        b_sum = tl.dot(b_high, b_y_low, input_precision="tf32")
        b_sum, b_rest = row_halves(tl.dot(b_high, b_y_high, b_sum, input_precision="tf32"))
        b_sum += b_rest
    else:
        b_sum = tl.dot(b_low, b_y_high, input_precision="tf32")
        b_sum = tl.dot(b_high, b_y_low, b_sum, input_precision="tf32")
        b_sum = tl.dot(b_high, b_y_high, b_sum, input_precision="tf32")
    return b_sum


@triton.jit
def average_float32_in_parts(p_k, p_y, p_mask, n_past, i_first, n_step, width, epsilon, b_rows, b_rests, m_new,
                     b_row_scale, b_shift,
                     BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK_D: tl.constexpr,
                     PARTS: tl.constexpr, PAIRS: tl.constexpr):  # fmt: skip
    """Attend as :func:`average_in_parts` does, in float32; ``b_rows`` and ``b_rests`` are tf32 parts of scaled rows.

    Keys are split into tf32 parts in registers and are not scaled. A key's squares are first added in registers, into
    CHUNK_D sums; a product with ones adds up these sums. A thread has scores of two rows for each token and
    computes one norm for both. If there are half as many rows as a product has, the other half holds the low parts of
    queries, new keys and weights.

    Args:
        PAIRS: Whether instructions process two float32 numbers at once; None: no.
    """
    ROWS: tl.constexpr = b_shift.shape[0]
    ALL_ROWS: tl.constexpr = b_rows[0].shape[0]
    CHAIN: tl.constexpr = 32  # columns summed by tensor cores, which truncate sums, before a float32 addition
    TOKENS: tl.constexpr = BLOCK_N // PARTS
    o_n = tl.arange(0, PARTS)[:, None] * TOKENS + tl.arange(0, TOKENS)[None, :]
    o_y = tl.arange(0, PARTS)[:, None] * TOKENS + factor_tokens(TOKENS)[None, :]
    per_column = 1.0 / width
    m_new, b_row_scale, b_shift, b_peak = of_each_part(m_new, b_row_scale, b_shift, PARTS)
    b_is_new = tl.where(m_new, 1.0, 0.0)[:, :, None]
    b_is_query = tl.where(m_new, 0.0, 1.0)[:, :, None]
    b_weights = tl.zeros((PARTS, ROWS, SUM_COLUMNS), tl.float32)
    b_each = tl.full((PARTS, TOKENS, SUM_COLUMNS), 1.0, tl.float32)
    b_one = tl.full((1, 1, 1), 1.0, tl.float32)
    b_all, b_left, b_accs = (), (), ()
    for i in tl.static_range(len(b_rows)):
        b_first, b_second = b_rows[i][None, :, :], b_rests[i][None, :, :]
        if ROWS < ALL_ROWS:
            b_first = stack_rows(row_halves(b_first)[0], row_halves(b_second)[0])
        b_all = b_all + (tl.broadcast_to(b_first, (PARTS, ALL_ROWS, CHUNK_D)),)  # type: ignore[assignment]  # noqa: RUF005
        b_second = tl.broadcast_to(b_second, (PARTS, ALL_ROWS, CHUNK_D))
        if BLOCK_D > REGISTER_COLUMNS and ROWS == ALL_ROWS:
            b_second = opaque_copy(b_second)
        b_left = b_left + (b_second,)  # type: ignore[assignment]  # noqa: RUF005
        b_accs = b_accs + (tl.zeros((PARTS, ROWS, CHUNK_D), tl.float32),)  # type: ignore[assignment]  # noqa: RUF005
    for i in range(i_first, tl.cdiv(n_past, BLOCK_N), n_step):
        o_tile = tl.cast(i * BLOCK_N, tl.int64) * width
        m_tile = load_part_tokens(p_mask + i * BLOCK_N, o_n, i * BLOCK_N + o_n < n_past)
        m_y = load_part_tokens(p_mask + i * BLOCK_N, o_y, i * BLOCK_N + o_y < n_past)
        b_scores = tl.zeros((PARTS, ALL_ROWS, TOKENS), tl.float32)
        b_sum = tl.zeros((PARTS, ALL_ROWS, TOKENS), tl.float32)
        b_squares = tl.zeros((PARTS, CHUNK_D, TOKENS), tl.float32)
        b_small = tl.zeros((PARTS, ALL_ROWS, TOKENS), tl.float32)
        for j in tl.static_range(len(b_all)):
            b_k = load_turned_columns(p_k + o_tile, o_n, m_tile, j * CHUNK_D, width, CHUNK_D, BLOCK_D)
            b_k_high, b_k_low = split_tf32(b_k, PAIRS)
            if ROWS < ALL_ROWS:
                b_small = tl.dot(b_all[j], b_k_low, b_small, input_precision="tf32")
                b_sum = tl.dot(b_all[j], b_k_high, b_sum, input_precision="tf32")
            else:
                b_sum, b_small = add_float32_products(b_all[j], b_left[j], b_k_high, b_k_low, b_sum, b_small)
            if (j + 1) * CHUNK_D == CHAIN:
                b_scores = b_sum
                b_sum = tl.zeros((PARTS, ALL_ROWS, TOKENS), tl.float32)
            elif (j + 1) * CHUNK_D % CHAIN == 0:
                b_scores = multiply_add(b_sum, b_one, b_scores, PAIRS)
                b_sum = tl.zeros((PARTS, ALL_ROWS, TOKENS), tl.float32)
            b_squares = multiply_add(b_k, b_k, b_squares, PAIRS)
        b_norms, _ = row_halves(add_each_token(b_squares, ALL_ROWS))
        b_norms = tl.rsqrt(tl.maximum(b_norms * per_column + epsilon, SMALLEST))
        if ROWS < ALL_ROWS:
            b_scores, b_rest = row_halves(b_scores)
            b_small = row_halves(b_small)[0] + b_rest
        else:
            b_norms = stack_rows(b_norms, b_norms)
        b_hidden = tl.where(m_tile, 0.0, float("-inf"))
        b_factors = multiply_add(b_norms, b_is_new, b_is_query, PAIRS)
        b_scores = multiply_add(b_small, b_one, b_scores, PAIRS)
        b_scores = multiply_add(b_scores, b_factors, b_hidden[:, None, :], PAIRS)
        b_next = tl.where(m_new, b_shift, tl.maximum(b_peak, tl.max(b_scores, axis=2) * b_row_scale))
        b_safe = tl.where(b_next == float("-inf"), 0.0, b_next)  # no token yet: −∞ − (−∞) would be NaN
        b_p = tl.exp2(b_scores * b_row_scale[:, :, None] - b_safe[:, :, None])
        b_decay = tl.exp2(b_peak - b_safe)[:, :, None]
        if ROWS < ALL_ROWS:
            b_high, b_low = split_tf32(as_factor(b_p), None)  # PAIRS would use other registers than the product
            b_high = stack_rows(b_high, b_low)
            b_sum, b_rest = row_halves(tl.dot(b_high, b_each, input_precision="tf32"))
            b_sum += b_rest
        else:
            b_high, b_low = split_tf32(as_factor(b_p), PAIRS)
            b_sum = tl.dot(b_low, b_each, input_precision="tf32")
            b_sum = tl.dot(b_high, b_each, b_sum, input_precision="tf32")
        b_weights = b_weights * b_decay + b_sum
        b_moved = ()
        for j in tl.static_range(len(b_accs)):
            b_y = load_part_columns(p_y + o_tile, o_y, m_y, j * CHUNK_D, width, CHUNK_D, BLOCK_D)
            b_y_high, b_y_low = cut_pairs_tf32(b_y, PAIRS)
            b_sum = multiply_values(b_high, b_low, b_y_high, b_y_low, ROWS)
            b_moved = b_moved + (multiply_add(b_accs[j], b_decay, b_sum, PAIRS),)  # type: ignore[assignment]  # noqa: RUF005
        b_accs = b_moved
        b_peak = b_next
    return join_parts(b_peak, tl.max(b_weights, axis=2), b_accs)
