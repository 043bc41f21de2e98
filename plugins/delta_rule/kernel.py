"""Triton kernels of the delta rule: two for several new tokens, one for a single token.

Several tokens are processed in chunks. ``delta_chunk_kernel`` computes what does not depend on the state (T, the
attention weights and the decays) for all chunks in parallel. Then each program of ``delta_state_kernel`` keeps BLOCK_N
columns of a head's state in registers and processes the chunks in order. Columns of the state are independent, so
programs need no synchronization.

Keys are multiplied CHUNK_D columns at a time; the state is kept transposed and split in the same way. Each product's
result is then in the registers where the next product reads its first operand, and operands fit beside the state.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

from lucid_deploy.plugins.block_inverse.kernel import invert_unit_lower
from lucid_deploy.plugins.shared.kernel import add_row_product, add_tf32_products, load_columns, nearest_tf32

LOWEST_LOG = tl.constexpr(-1e4)  # log α is clamped to it, as in blocked.py: exp gives 0, and sums stay finite


@triton.jit
def load_logs(p_log_decay, o_n, m_n):
    """Load log α, clamped to at least LOWEST_LOG; 0 where the mask ``m_n`` is false."""
    return tl.where(m_n, tl.maximum(tl.load(p_log_decay + o_n, mask=m_n, other=0.0), LOWEST_LOG), 0.0)


@triton.jit
def split(b_float, p_rows):
    """Split a float32 block of any magnitude into a high and a low part, to multiply by rows loaded from ``p_rows``.

    For bfloat16 rows the parts are bfloat16, together 16 significant bits. For float32 rows they are tf32, and also for
    float16 rows, since float16 parts could overflow.
    """
    if p_rows.dtype.element_ty == tl.bfloat16:
        b_high = b_float.to(tl.bfloat16)  # rounds; truncating as bfloat16_parts does would cost the state one bit
        b_low = (b_float - b_high.to(tl.float32)).to(tl.bfloat16)
    else:
        b_high, b_low = nearest_tf32(b_float)
    return b_high, b_low


@triton.jit
def add_times(b_high, b_low, b_rows, b_acc):
    """Return ``b_acc + (b_high + b_low) @ b_rows`` in float32, for parts from :func:`split` for the rows' dtype."""
    if b_rows.dtype == tl.bfloat16:
        b_acc = tl.dot(b_low, b_rows, b_acc)
        b_acc = tl.dot(b_high, b_rows, b_acc)
    elif b_rows.dtype == tl.float16:  # tf32 represents every float16 number exactly
        b_wide = b_rows.to(tl.float32)
        b_acc = tl.dot(b_low, b_wide, b_acc, input_precision="tf32")
        b_acc = tl.dot(b_high, b_wide, b_acc, input_precision="tf32")
    else:
        b_acc = add_tf32_products(b_high, b_low, b_rows, b_acc)
    return b_acc


@triton.jit
def add_part(b_high, b_low, b_rows, b_acc, is_first: tl.constexpr):
    """Do :func:`add_times` for one of several chunks of columns; ``is_first`` means that ``b_acc`` is 0.

    In float32 each chunk has its own accumulator, because tensor cores truncate every partial sum. For float16 and
    bfloat16 that would only cost registers: they take fewer sums, and the rounding of the two parts dominates.
    """
    if b_rows.dtype == tl.float32 and not is_first:
        b_acc += add_times(b_high, b_low, b_rows, tl.zeros_like(b_acc))
    else:
        b_acc = add_times(b_high, b_low, b_rows, b_acc)
    return b_acc


@triton.jit(do_not_specialize=["n_new", "n_key_units"])
def delta_chunk_kernel(
    p_query,
    p_key,
    p_log_decay,
    p_beta,
    p_work,
    n_new,
    n_key_units,
    scale,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDTH_UNIT: tl.constexpr,
    CHUNK_D: tl.constexpr,
):
    """Compute T = (I + tril(diag(β)(Γ ∘ KKᵀ), −1))⁻¹ diag(β) and scale · (Γ ∘ QKᵀ); program ids: chunk, head.

    Args:
        p_query, p_key: ``(B, H, n_new, key width)``.
        p_log_decay, p_beta: ``(B, H, n_new)``; log_decay is float32.
        p_work: For each head and chunk, ``(2 BLOCK_M + 2, BLOCK_M)`` float32: T, the attention weights, and two rows of
            decays: from the chunk's start to each token (γ), and from each token to the chunk's end (γ_C/γ).
        n_key_units: Key width / WIDTH_UNIT, so that the compiler knows a divisor of the width.
        scale: Factor of the outputs.
        CHUNK_D: Number of key columns multiplied at once.
    """
    width = n_key_units * WIDTH_UNIT
    i_chunk = tl.program_id(0)
    i_head = tl.program_id(1).to(tl.int64)
    i_first = i_chunk * BLOCK_M
    o_m = tl.arange(0, BLOCK_M)
    m_rows = i_first + o_m < n_new
    o_rows = (i_head * n_new + i_first) * width
    o_gates = i_head * n_new + i_first

    b_scores = tl.zeros((BLOCK_M, BLOCK_M), tl.float32)
    b_attended = tl.zeros((BLOCK_M, BLOCK_M), tl.float32)
    for i in tl.static_range(0, BLOCK_D, CHUNK_D):
        b_k = load_columns(p_key + o_rows, o_m, m_rows, i, width, CHUNK_D)
        b_q = load_columns(p_query + o_rows, o_m, m_rows, i, width, CHUNK_D)
        if b_k.dtype == tl.float32 and i > 0:  # as in add_part
            b_scores += add_row_product(b_k, tl.trans(b_k), tl.zeros((BLOCK_M, BLOCK_M), tl.float32))
            b_attended += add_row_product(b_q, tl.trans(b_k), tl.zeros((BLOCK_M, BLOCK_M), tl.float32))
        else:
            b_scores = add_row_product(b_k, tl.trans(b_k), b_scores)
            b_attended = add_row_product(b_q, tl.trans(b_k), b_attended)

    # log γ_i/γ_j is summed over tokens j+1 … i directly: subtracting cumulative sums would cancel where α is small.
    b_g = load_logs(p_log_decay + o_gates, o_m, m_rows)
    b_beta = tl.load(p_beta + o_gates + o_m, mask=m_rows, other=0.0).to(tl.float32)
    m_below = o_m[:, None] > o_m[None, :]
    b_between = tl.cumsum(tl.where(m_below, b_g[:, None], 0.0), axis=0)
    b_gamma = tl.where(o_m[:, None] >= o_m[None, :], tl.exp(b_between), 0.0)
    p_tiles = p_work + (i_head * tl.num_programs(0) + i_chunk) * (2 * BLOCK_M * BLOCK_M + 2 * BLOCK_M)
    o_tile = o_m[:, None] * BLOCK_M + o_m[None, :]
    p_gates = p_tiles + 2 * BLOCK_M * BLOCK_M
    tl.store(p_gates + o_m, tl.exp(tl.cumsum(b_g, axis=0)))
    tl.store(p_gates + BLOCK_M + o_m, tl.sum(tl.where(o_m[:, None] == BLOCK_M - 1, b_gamma, 0.0), axis=0))
    tl.store(p_tiles + BLOCK_M * BLOCK_M + o_tile, b_attended * b_gamma * scale)
    b_system = tl.where(m_below, b_scores * b_gamma * b_beta[:, None], 0.0)
    tl.store(p_tiles + o_tile, invert_unit_lower(b_system, BLOCK_M, "tf32x3") * b_beta[None, :])


@triton.jit
def load_state(p_state, o_e, value_width, width, BLOCK_D: tl.constexpr, CHUNK_D: tl.constexpr):
    """Load columns ``o_e`` of a head's state as a tuple of transposed ``(BLOCK_N, CHUNK_D)`` blocks, padded with 0."""
    b_states = ()
    for i in tl.static_range(0, BLOCK_D, CHUNK_D):
        o_d = i + tl.arange(0, CHUNK_D)
        m_state = (o_e < value_width)[:, None] & (o_d < width)[None, :]
        b_part = tl.load(p_state + o_d[None, :] * value_width + o_e[:, None], mask=m_state, other=0.0)
        b_states = b_states + (b_part,)  # type: ignore[assignment]  # noqa: RUF005
    return b_states


@triton.jit
def multiply_state(b_states, p_key, p_query, o_m, m_rows, width, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
                   CHUNK_D: tl.constexpr):  # fmt: skip
    """Return (K S)ᵀ and (Q S)ᵀ for a chunk's keys and queries, each ``(BLOCK_N, BLOCK_M)`` float32."""
    b_of_keys = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    b_of_queries = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for i in tl.static_range(len(b_states)):
        b_high, b_low = split(b_states[i], p_key)
        b_k = load_columns(p_key, o_m, m_rows, i * CHUNK_D, width, CHUNK_D)
        b_of_keys = add_part(b_high, b_low, tl.trans(b_k), b_of_keys, i == 0)
        b_q = load_columns(p_query, o_m, m_rows, i * CHUNK_D, width, CHUNK_D)
        b_of_queries = add_part(b_high, b_low, tl.trans(b_q), b_of_queries, i == 0)
    return b_of_keys, b_of_queries


@triton.jit
def correct_state(b_states, decay, b_r, p_key, o_m, m_rows, width, BLOCK_N: tl.constexpr, CHUNK_D: tl.constexpr):
    """Return the transposed state times the decay, plus Rᵀ K; ``b_r`` is Rᵀ.

    Each product has its own accumulator: tensor cores truncate sums, and errors accumulate in the state.
    """
    b_high, b_low = split(b_r, p_key)
    b_next = ()
    for i in tl.static_range(len(b_states)):
        b_k = load_columns(p_key, o_m, m_rows, i * CHUNK_D, width, CHUNK_D)
        b_sum = add_times(b_high, b_low, b_k, tl.zeros((BLOCK_N, CHUNK_D), tl.float32))
        b_next = b_next + (b_states[i] * decay + b_sum,)  # type: ignore[assignment]  # noqa: RUF005
    return b_next


@triton.jit(do_not_specialize=["n_new", "n_key_units", "n_value_units"])
def delta_state_kernel(
    p_query,
    p_key,
    p_value,
    p_state,
    p_work,
    p_output,
    p_new_state,
    n_new,
    n_key_units,
    n_value_units,
    scale,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDTH_UNIT: tl.constexpr,
    CHUNK_D: tl.constexpr,
):
    """Process all chunks in order for BLOCK_N columns of a head's state; program ids: head, block of columns.

    R = T (V − (γ ∘ K) S), outputs scale · (γ ∘ Q) S + A R, S ← γ_C S + ((γ_C/γ) ∘ K)ᵀ R; γ, Γ as in blocked.py. T and
    A = scale · (Γ ∘ QKᵀ) come from the workspace. S, V, R and the outputs are kept transposed, one row per column of S.

    Args:
        p_value, p_output: ``(B, H, n_new, value width)``.
        p_state, p_new_state: ``(B, H, key width, value width)``, float32.
        n_value_units: Value width / WIDTH_UNIT.
        p_query, p_key, p_work, n_key_units, scale, CHUNK_D: As in ``delta_chunk_kernel``.
    """
    width = n_key_units * WIDTH_UNIT
    value_width = n_value_units * WIDTH_UNIT
    i_head = tl.program_id(0).to(tl.int64)
    o_m = tl.arange(0, BLOCK_M)
    o_e = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_e = o_e < value_width
    o_tile = o_m[:, None] * BLOCK_M + o_m[None, :]
    o_values = o_m[None, :] * value_width + o_e[:, None]
    o_state = i_head * width * value_width
    n_chunks = tl.cdiv(n_new, BLOCK_M)

    b_states = load_state(p_state + o_state, o_e, value_width, width, BLOCK_D, CHUNK_D)
    for i_chunk in range(n_chunks):
        i_first = i_chunk * BLOCK_M
        m_rows = i_first + o_m < n_new
        o_rows = i_head * n_new + i_first
        p_keys = p_key + o_rows * width
        p_queries = p_query + o_rows * width
        m_tile = m_e[:, None] & m_rows[None, :]
        p_tiles = p_work + (i_head * n_chunks + i_chunk) * (2 * BLOCK_M * BLOCK_M + 2 * BLOCK_M)
        p_gates = p_tiles + 2 * BLOCK_M * BLOCK_M
        b_from_start = tl.load(p_gates + o_m)

        b_known, b_o = multiply_state(b_states, p_keys, p_queries, o_m, m_rows, width, BLOCK_N, BLOCK_M, CHUNK_D)
        b_v = tl.load(p_value + o_rows * value_width + o_values, mask=m_tile, other=0.0).to(tl.float32)
        b_high, b_low = nearest_tf32(b_v - b_known * b_from_start[None, :])
        b_t = tl.load(p_tiles + o_tile)
        b_r = add_times(b_high, b_low, tl.trans(b_t), tl.zeros((BLOCK_N, BLOCK_M), tl.float32))
        b_high, b_low = nearest_tf32(b_r)
        b_attended = tl.load(p_tiles + BLOCK_M * BLOCK_M + o_tile)
        b_o = add_times(b_high, b_low, tl.trans(b_attended), b_o * (b_from_start * scale)[None, :])
        tl.store(p_output + o_rows * value_width + o_values, b_o.to(p_output.dtype.element_ty), mask=m_tile)
        decay = tl.load(p_gates + BLOCK_M - 1)
        b_r *= tl.load(p_gates + BLOCK_M + o_m)[None, :]
        b_states = correct_state(b_states, decay, b_r, p_keys, o_m, m_rows, width, BLOCK_N, CHUNK_D)
    for i in tl.static_range(len(b_states)):
        o_d = i * CHUNK_D + tl.arange(0, CHUNK_D)
        p_out = p_new_state + o_state + o_d[None, :] * value_width + o_e[:, None]
        tl.store(p_out, b_states[i], mask=m_e[:, None] & (o_d < width)[None, :])


@triton.jit(do_not_specialize=["n_key_units", "n_value_units"])
def delta_decode_kernel(
    p_query,
    p_key,
    p_value,
    p_log_decay,
    p_beta,
    p_state,
    p_output,
    p_new_state,
    n_key_units,
    n_value_units,
    scale,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDTH_UNIT: tl.constexpr,
):
    """Update BLOCK_N columns of a head's state with one token, in float32; program ids: head, block of columns.

    The arguments are those of the kernels above, for n_new = 1.
    """
    width = n_key_units * WIDTH_UNIT
    value_width = n_value_units * WIDTH_UNIT
    i_head = tl.program_id(0).to(tl.int64)
    o_d = tl.arange(0, BLOCK_D)
    o_e = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_d = o_d < width
    m_e = o_e < value_width
    o_state = i_head * width * value_width + o_d[:, None] * value_width + o_e[None, :]
    m_state = m_d[:, None] & m_e[None, :]
    b_k = tl.load(p_key + i_head * width + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_q = tl.load(p_query + i_head * width + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_v = tl.load(p_value + i_head * value_width + o_e, mask=m_e, other=0.0).to(tl.float32)
    beta = tl.load(p_beta + i_head).to(tl.float32)
    decay = tl.exp(tl.load(p_log_decay + i_head))
    b_s = tl.load(p_state + o_state, mask=m_state, other=0.0) * decay
    b_r = beta * (b_v - tl.sum(b_k[:, None] * b_s, axis=0))
    b_s += b_k[:, None] * b_r[None, :]
    b_o = scale * tl.sum(b_q[:, None] * b_s, axis=0)
    tl.store(p_output + i_head * value_width + o_e, b_o.to(p_output.dtype.element_ty), mask=m_e)
    tl.store(p_new_state + o_state, b_s, mask=m_state)
